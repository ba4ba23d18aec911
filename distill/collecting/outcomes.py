"""Decides what becomes of a request without an answer: it is recorded if the request is to blame, not if the server is.

    failed.jsonl    one line per failed request: which one, why, and the beginning of the server's response

One refused question must not end a run, and a server that is down or refuses the key must not be recorded as a failure
of every question. So a failure counts as the request's own once the server answers another request, or at the end if
it is of a kind that questions cause. A request that reached no server is sent again later. Too many failures in a row
end the run, and none of them is recorded: an expired login, say, answers every question with the same page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal, Protocol

from distill.store.failure import Failure
from toolkit.errors import InputError

MOST_IN_A_ROW = 16
MOST_AT_FIRST = 8
"""The same before the first answer."""
MOST_REFUSED = 32
"""The same if each failure may be its question's own, for example because it is too long."""

Cause = Literal["request", "server", "access", "connection"]
"""What a failure points to: the question, the server's state, missing access, or no connection."""


class FailureLog(Protocol):
    """Keeps failures."""

    def append(self, failure: Failure, /) -> object: ...


class Refusal(InputError):
    """A request that was not answered after all its tries."""

    def __init__(self, message: str, *, reason: str, cause: Cause, said: str) -> None:
        super().__init__(message)
        self.reason, self.cause, self.said = reason, cause, said


class Outcomes:
    """Records failures while requests are sent; `proven`: this server has answered such requests before."""

    def __init__(self, log: FailureLog, *, proven: bool) -> None:
        self.recorded: list[Failure] = []
        self._log, self._proven, self._answered = log, proven, False
        self._doubtful: list[tuple[Failure, Refusal]] = []

    def answered(self) -> None:
        """Record the doubtful failures: the server has just answered, so it was not to blame for them."""
        self._proven = self._answered = True
        self._record(failure for failure, refusal in self._doubtful if refusal.cause != "connection")
        self._doubtful.clear()

    def failed(self, failure: Failure, refusal: Refusal) -> bool:
        """Note a failure; return whether to send the request again later, because it reached no server.

        Raises `InputError` if too many requests in a row failed.
        """
        self._doubtful.append((failure, refusal))
        if len(self._doubtful) >= self._most():
            self._give_up()
        return refusal.cause == "connection"

    def _most(self) -> int:
        """Return how many failures in a row end the run."""
        if not self._proven:
            return MOST_AT_FIRST
        return MOST_REFUSED if all(refusal.cause == "request" for _, refusal in self._doubtful) else MOST_IN_A_ROW

    def end(self) -> None:
        """Settle what is doubtful once all requests were sent; raises `InputError` if the server may be to blame."""
        doubtful = []
        for failure, refusal in self._doubtful:
            if self._answered if refusal.cause == "access" else self._proven:
                self._record([failure])
            else:
                doubtful.append((failure, refusal))
        self._doubtful = doubtful
        if doubtful:
            self._give_up()

    def _record(self, failures: Iterable[Failure]) -> None:
        for failure in failures:
            self._log.append(failure)
            self.recorded.append(failure)

    def _give_up(self) -> None:
        last = self._doubtful[-1][1]
        raise InputError(f"{last} ({len(self._doubtful)} requests in a row failed and were not recorded)") from last


def reasons(failures: Iterable[Failure]) -> str:
    """Count failures by reason, the most frequent first."""
    return ", ".join(f"{count} × {reason}" for reason, count in Counter(f.reason for f in failures).most_common())
