"""What became of a request that got no answer: recorded where it is the request's own failure, and not where the
server's is.

    failed.jsonl    one line a failed request: whose, why, and the beginning of what the server said

One question that a server refuses must not end a run, and a server that is gone, or that refuses the key, must not be
recorded as the failure of each question. So a failure is believed where the server answered others: when the next
answer arrives, or at the end where it is of a kind that a question causes. Where nobody was there to ask, the request
waits for its next turn. Too many in a row, with no answer between them, end the run, and nothing is recorded of them: a
login that has expired answers each question with the same page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from toolkit.errors import InputError
from toolkit.records import AppendLog, Record

FAILED = "failed.jsonl"
MOST_IN_A_ROW = 16
MOST_AT_FIRST = 8
"""The same where nothing was answered yet."""
MOST_REFUSED = 32
"""The same where each failure may be its question's own, as one that is too long."""

Cause = Literal["request", "server", "access", "connection"]
"""What a failure seems to hang on: what was asked; how the server is; whether we may ask; whether anybody is there."""


@dataclass(frozen=True, kw_only=True)
class Failure(Record):
    """A request that got no answer."""

    problem_id: str
    sample: int
    reason: str
    message: str
    request_hash: str


class Refusal(InputError):
    """A request that was not answered, after as many tries as it is worth."""

    def __init__(self, message: str, *, reason: str, cause: Cause, said: str) -> None:
        super().__init__(message)
        self.reason, self.cause, self.said = reason, cause, said


class Outcomes:
    """Records failures while requests are asked; `proven`: this server has answered such requests before."""

    def __init__(self, log: AppendLog, *, proven: bool) -> None:
        self.recorded: list[Failure] = []
        self._log, self._proven, self._answered = log, proven, False
        self._doubtful: list[tuple[Failure, Refusal]] = []

    def answered(self) -> None:
        """The server has just answered, so what failed before was not for its sake."""
        self._proven = self._answered = True
        self._record(failure for failure, refusal in self._doubtful if refusal.cause != "connection")
        self._doubtful.clear()

    def failed(self, failure: Failure, refusal: Refusal) -> bool:
        """Whether the request must be asked later on, which is so where nobody was there to ask.

        Raises `InputError` where too many requests in a row failed.
        """
        self._doubtful.append((failure, refusal))
        if len(self._doubtful) >= self._most():
            self._give_up()
        return refusal.cause == "connection"

    def _most(self) -> int:
        """How many in a row end the run."""
        if not self._proven:
            return MOST_AT_FIRST
        return MOST_REFUSED if all(refusal.cause == "request" for _, refusal in self._doubtful) else MOST_IN_A_ROW

    def end(self) -> None:
        """All were asked. Raises `InputError` where some failed that may be the server's failure."""
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
        raise InputError(f"{last} ({len(self._doubtful)} requests in a row failed and count as not asked)") from last


def reasons(failures: Iterable[Failure]) -> str:
    """How many failed of what, the most frequent first."""
    return ", ".join(f"{count} × {reason}" for reason, count in Counter(f.reason for f in failures).most_common())
