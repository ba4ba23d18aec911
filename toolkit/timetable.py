"""Tracks the parts of a long run in their order, each with the seconds that it is expected to take.

Whoever runs the parts says when one begins; meanwhile every `Progress` can show how long the whole run still takes. A
`Progress` whose label is the name of a part begins that part, because one stage may hold two parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_current: ContextVar[Timetable | None] = ContextVar("timetable", default=None)


class Timetable:
    """Knows which part is running, how long the others will take, and how long the earlier ones took."""

    def __init__(self, planned_s: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        self.planned_s = dict(planned_s)
        self.taken_s: dict[str, float] = {}
        """Seconds of each part that has ended; a part that was found done is left out."""
        self._clock = clock
        self._part: str | None = None
        self._begun_at = 0.0

    def begin(self, part: str | None) -> None:
        """End the part before and begin this one; None says that all are done."""
        now = self._clock()
        if self._part is not None and self._part != part:
            self.taken_s[self._part] = now - self._begun_at
        if self._part != part:
            self._part, self._begun_at = part, now

    def left_s(self, part_left_s: float | None = None) -> float:
        """Return the seconds until everything is done; `part_left_s`: those of the running part, if they are known."""
        if self._part is None:
            return 0.0
        names = list(self.planned_s)
        later = names[names.index(self._part) + 1 :]
        if part_left_s is None:
            part_left_s = max(self.planned_s[self._part] - (self._clock() - self._begun_at), 0.0)
        return part_left_s + sum(self.planned_s[name] for name in later)


@contextmanager
def followed(timetable: Timetable) -> Iterator[Timetable]:
    """Within this context every `Progress` shows how long this timetable still takes."""
    token = _current.set(timetable)
    try:
        yield timetable
    finally:
        timetable.begin(None)
        _current.reset(token)


def current() -> Timetable | None:
    """Return the timetable that this run follows, if any."""
    return _current.get()
