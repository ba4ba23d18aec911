"""Decides how many requests one server gets at once, and how many requests and tokens a minute.

    ConcurrencyLimit    adaptive: grows while the server answers promptly, shrinks when it refuses, queues or fails
    RateLimit                fixed: what a provider's contract allows a minute

The limit grows by one with each answer that begins until the first sign of congestion, by an eighth for each round of
answers afterwards, and it is cut when too many requests of the last round were refused or failed. Single failures are
no sign: at 5 % of them, a limit that each one cuts would never pass a handful. A server that batches requests writes
each of them more slowly the more there are, and still more in all; so the sign of a queue is the time until an answer
begins, not the time that it takes.
"""

from __future__ import annotations

import math

START = 8
"""Requests in flight at first, and the fewest of a server that fails instead of refusing."""
GROWTH = 1 / 8
"""How much the limit grows with each answer after the first cut."""
CUT_REFUSED, CUT_FAILED, CUT_QUEUED = 0.7, 0.5, 0.9
"""What is left of the limit after too many refusals, too many failures, and a long wait in a queue."""
TOO_MANY = 0.15
"""The share of requests that may be refused, or fail, before the limit is cut."""
FEWEST = 8
"""Requests whose outcome is awaited before their share counts."""
PROMPT_S = 1.0
"""An answer that begins within this time, or within `SLACK` times the quickest one's, is no sign of a queue."""
SLACK = 4.0
QUEUED_S = 20.0
"""Waiting this long, and `SLACK` times as long as is still prompt, shows a queue that is too long."""
FORGET = 1.01
"""The quickest beginning counts this much slower with each answer, so that one lucky request is forgotten."""
BURST_S = 5.0
"""Tokens that were not used are saved for this long."""


class ConcurrencyLimit:
    """How many requests one server gets at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(min(START, most))
        self.in_flight = 0
        self.epoch = 0
        """The number of cuts so far: a request sent before the last cut does not cut again."""
        self._is_growing_fast = True
        self._quickest_s = math.inf
        self._good = self._bad = 0
        """Outcomes of the last round of requests, or of the one before and a part of this."""

    @property
    def is_free(self) -> bool:
        return self.in_flight < max(1, int(self.limit))

    def began(self, waited_s: float, epoch: int) -> None:
        """Note that an answer has begun, so many seconds after its request was sent in that epoch."""
        self._good += 1
        if self._good + self._bad > max(2 * FEWEST, self.limit):
            self._good, self._bad = self._good // 2, self._bad // 2
        self._quickest_s = min(self._quickest_s * FORGET, waited_s)
        prompt_s = max(PROMPT_S, SLACK * self._quickest_s)
        if waited_s > max(QUEUED_S, SLACK * prompt_s):
            self._cut(CUT_QUEUED, epoch, 1)
        elif waited_s <= prompt_s and self.in_flight >= int(self.limit):  # more would have been sent
            self.limit = min(self.most, self.limit + (1.0 if self._is_growing_fast else GROWTH))

    def refused(self, epoch: int) -> None:
        """Note that the server said that it has too many requests."""
        self._bad += 1
        if self._is_too_bad():
            self._cut(CUT_REFUSED, epoch, 1)

    def failed(self, epoch: int) -> None:
        """Note an error of the server, a lost connection or silence."""
        self._bad += 1
        if self._is_too_bad():
            self._cut(CUT_FAILED, epoch, START)

    def _is_too_bad(self) -> bool:
        outcomes = self._good + self._bad
        return outcomes >= FEWEST and self._bad > TOO_MANY * outcomes

    def _cut(self, share: float, epoch: int, fewest: int) -> None:
        if epoch == self.epoch:
            self.epoch += 1
            self._is_growing_fast = False
            self._good = self._bad = 0
            self.limit = max(min(fewest, self.limit), self.limit * share)


class RateLimit:
    """Spaces requests so that a server gets at most so many requests and tokens a minute; None: as many as it takes."""

    def __init__(self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None) -> None:
        self._pause_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._tokens_per_s = tokens_per_minute / 60.0 if tokens_per_minute else math.inf
        self._next_at = -math.inf
        self._tokens, self._counted_at = 0.0, -math.inf
        """Tokens that may be asked for now; negative while those of earlier requests are being waited for."""

    def wait_s(self, now: float) -> float:
        """Return the seconds until the next request may be sent; `now`: a monotonic clock's."""
        owed_s = 0.0 if self._tokens_per_s == math.inf else max(0.0, -self._saved(now) / self._tokens_per_s)
        return max(0.0, self._next_at - now, owed_s)

    def sent(self, tokens: float, now: float) -> None:
        """Count a request that is expected to take so many tokens."""
        self._next_at = max(now, self._next_at) + self._pause_s
        if self._tokens_per_s < math.inf:
            self._tokens, self._counted_at = self._saved(now) - tokens, now

    def correct(self, expected: float, taken: float) -> None:
        """Replace a request's expected tokens by those that it took."""
        if self._tokens_per_s < math.inf:
            self._tokens += expected - taken

    def _saved(self, now: float) -> float:
        if self._counted_at == -math.inf:
            return 0.0
        return min(self._tokens_per_s * BURST_S, self._tokens + (now - self._counted_at) * self._tokens_per_s)
