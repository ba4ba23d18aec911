"""A request without an answer, as the store records it."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.records import Record


@dataclass(frozen=True, kw_only=True)
class Failure(Record):
    """A request that got no answer."""

    problem_id: str
    sample: int
    reason: str
    message: str
    request_hash: str
