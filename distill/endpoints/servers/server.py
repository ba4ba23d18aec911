"""One server of a teacher: how it is asked, what it has shown, and whether it should get requests now.

A server that failed several times in a row is drained: it gets no more requests for a while, then a single one, and
everything again once that is answered. A server that asks for a pause (Retry-After) gets none until the pause is over.
Times are a monotonic clock's, so that a clock that is set does not matter.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Self

from httpx2 import Headers

from distill.endpoints.servers.pace import ConcurrencyLimit, RateLimit
from distill.endpoints.servers.server_fields import ServerFields
from toolkit.generation.endpoint import KEY_VARIABLE
from toolkit.terminal import say

CONCURRENCY = 64
MOST_CONCURRENCY = 1024
DRAINED_AFTER = 5
"""Failures in a row after which a server is drained if others still answer."""
FIRST_REST_S, LONGEST_REST_S = 5.0, 300.0
"""How long a drained server rests; twice as long each time that it fails again."""
LONGEST_PAUSE_S = 900.0
"""A longer Retry-After is shortened."""
SHARE = 0.1
"""The weight of the newest answer in the running means."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What a user says of one server."""

    url: str
    model: str
    weight: float = 1.0
    """Its share of the requests in flight, as long as the servers are equally quick; it also scales its concurrency."""
    concurrency: float = CONCURRENCY
    """The most requests in flight."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    price_in: float | None = None
    price_out: float | None = None
    """Money for a million tokens."""
    key: str = KEY_VARIABLE
    """The environment variable with its key."""

    @property
    def name(self) -> str:
        return f"{self.url}#{self.model}"

    @property
    def most(self) -> int:
        return max(1, min(MOST_CONCURRENCY, round(self.concurrency * self.weight)))

    def share_of(self, worker: int, workers: int) -> Self | None:
        """Return what one of several workers, counted from 0, may ask of the server; None: it asks the others only.

        Together the workers have as many requests in flight, and send as many requests and tokens a minute, as one
        would.
        """
        most = self.most // workers + (worker < self.most % workers)
        if not most:
            return None
        asking = min(workers, self.most)
        return replace(
            self,
            concurrency=most / self.weight,
            requests_per_minute=self.requests_per_minute and self.requests_per_minute / asking,
            tokens_per_minute=self.tokens_per_minute and self.tokens_per_minute / asking,
        )


@dataclass(kw_only=True)
class Server:
    """The state of one server while it is asked."""

    settings: ServerSettings
    fields: ServerFields
    most: int
    now: Callable[[], float] = time.monotonic
    limit: ConcurrencyLimit = field(init=False)
    pace: RateLimit = field(init=False)
    failures: int = 0
    """Failures since the last answer."""
    answers: int = 0
    tokens: float = math.nan
    """The running mean of an answer's tokens, prompt included."""
    seconds: float = math.nan
    """The running mean of the time from a request to the end of its answer."""
    since: float = math.nan
    """When it began to answer what is counted as `answers_since`; anew after it was drained."""
    answers_since: int = 0
    is_drained: bool = False
    """Whether it failed so often that only one request at a time tries it."""
    is_closed: bool = False
    """Whether it refuses access, so that asking again is useless."""
    rests_until: float = -math.inf
    rest_s: float = FIRST_REST_S

    def __post_init__(self) -> None:
        self.limit = ConcurrencyLimit(self.most)
        self.pace = RateLimit(self.settings.requests_per_minute, self.settings.tokens_per_minute)

    @property
    def is_live(self) -> bool:
        return not (self.is_closed or self.is_drained)

    def wait_s(self) -> float:
        """Return the seconds until it may get a request; infinity if only an answer can free it."""
        if self.is_closed or not self.limit.is_free or (self.is_drained and self.limit.in_flight):
            return math.inf
        return self.rests_s()

    def rests_s(self) -> float:
        """Return the seconds until its pause is over and its pace allows a request."""
        now = self.now()
        return max(self.rests_until - now, self.pace.wait_s(now), 0.0)

    def finish_s(self) -> float:
        """Return how long a request takes that is sent now: as long as the last ones did, or, where more are in flight
        than it works on at once, until it is its turn. NaN if it has not answered yet."""
        if not self.answers_since:
            return self.seconds
        each_s = (self.now() - self.since) / self.answers_since
        return max(self.seconds, self.limit.in_flight * each_s)

    def answered(self, tokens: int | None, seconds: float) -> None:
        """Note an answer: its tokens, prompt included, if the server counted them, and its seconds."""
        if self.is_drained:
            say(f"{self.settings.url} answers again")
        self.failures, self.rest_s, self.is_drained = 0, FIRST_REST_S, False
        self.answers += 1
        if not self.answers_since:
            self.since = self.now() - seconds
        self.answers_since += 1
        self.seconds = _mean(self.seconds, seconds)
        if tokens is not None:
            self.tokens = _mean(self.tokens, tokens)

    def pause(self, seconds: float) -> None:
        """Send it nothing for so long, because it asked for that."""
        self.rests_until = max(self.rests_until, self.now() + min(seconds, LONGEST_PAUSE_S))

    def failed(self, trouble: str, *, others: bool) -> None:
        """Note a failure; `others`: whether requests can go to other servers meanwhile."""
        self.failures += 1
        if self.failures >= DRAINED_AFTER and others:
            if not self.is_drained:
                say(f"{self.settings.url} failed {self.failures} times in a row ({trouble}); it is tried again later")
            self.is_drained, self.answers_since = True, 0
            self.rests_until = self.now() + self.rest_s
            self.rest_s = min(2 * self.rest_s, LONGEST_REST_S)

    def close(self, trouble: str) -> None:
        """Send it nothing any more, because it refuses access."""
        if not self.is_closed:
            say(f"{self.settings.url} refuses access ({trouble}); the other servers answer without it")
        self.is_closed = True


def retry_after_s(headers: Headers) -> float:
    """Return the pause that a response asks for: seconds, or a date, which counts by the server's own clock; else 0.

    Source: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after.
    """
    given = headers.get("Retry-After", "").strip()
    try:
        seconds = float(given)
    except ValueError:
        until, said = _date(given), _date(headers.get("Date", ""))
        if until is None:
            return 0.0
        seconds = (until - (said or datetime.now(UTC))).total_seconds()
    return seconds if 0 < seconds < math.inf else 0.0


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _mean(mean: float, value: float) -> float:
    return value if math.isnan(mean) else (1 - SHARE) * mean + SHARE * value
