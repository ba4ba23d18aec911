"""Publishes a turn that is being written: its newest snapshot, for everyone who follows the turn.

    author ─ stores ─ publishes ──► Feed ◄─┬─ the tab that asked, at most RENDERS_PER_S times a second
    (never waits for a reader)             ├─ that tab, loaded again, or another one that shows the same chat
                                           └─ `apps.chat.view.live`, between two renderings

A snapshot is a copy of the turn that nobody changes, so everything drawn from it agrees with itself. A reader that was
away gets the newest one and misses those between, but never the last.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from dataclasses import dataclass

from apps.chat.conversation.turn import Turn
from toolkit.errors import InputError

RENDERS_PER_S = 2.0
PATIENCE_S = 10.0
"""A page takes some seconds to load while the model has all cores."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A turn as it was stored at one moment."""

    turn: Turn
    """A copy, which nobody changes."""
    is_queued: bool = False
    """Whether the turn waits for the model, which is answering another tab."""
    is_over: bool = False

    @property
    def state(self) -> tuple[object, ...]:
        """State of which every change reaches readers at once."""
        return self.turn.state, self.is_queued, self.is_over


class Feed:
    """Hands out the snapshots of one turn, from the question to its end."""

    def __init__(self, turn: Turn) -> None:
        self.newest = Snapshot(turn=turn.copy())
        self.followers: list[object] = []
        """The tabs that follow the turn."""
        self._error: BaseException | None = None
        self._left_at = time.monotonic()
        self._changed = threading.Condition()

    @property
    def trouble(self) -> str:
        """Why the turn broke off; empty if it did not."""
        return str(self._error or "")

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody has followed the turn for `PATIENCE_S`; a tab that is reloaded is away for a while."""
        return not self.followers and time.monotonic() - self._left_at > PATIENCE_S

    def publish(self, turn: Turn, *, is_queued: bool = False) -> None:
        """Publish what has just been stored of the turn."""
        self._tell(Snapshot(turn=turn.copy(), is_queued=is_queued))

    def end(self, turn: Turn, error: BaseException | None = None) -> None:
        """Publish the last snapshot, with the error that broke the turn off, if any."""
        self._error = error
        self._tell(Snapshot(turn=turn.copy(), is_over=True))

    def follow(self, tab: object) -> Generator[Snapshot, None, None]:
        """Yield the newest snapshot, and then each newer one: at once if its state is new, otherwise at most
        RENDERS_PER_S times a second. The last one is over.

        After it, raises what broke the turn off, unless that is an `InputError`, which is in `trouble`.
        """
        self.followers.append(tab)
        try:
            shown = self.newest
            while not shown.is_over:
                due_at = time.monotonic() + 1 / RENDERS_PER_S
                yield shown
                shown = self._after(shown, due_at)
            yield shown
        finally:
            self._left_at = time.monotonic()
            self.followers.remove(tab)
        if self._error and not isinstance(self._error, InputError):
            raise self._error

    def _after(self, shown: Snapshot, due_at: float) -> Snapshot:
        with self._changed:
            self._changed.wait_for(lambda: self.newest.state != shown.state, max(0.0, due_at - time.monotonic()))
            self._changed.wait_for(lambda: self.newest is not shown)
            return self.newest

    def _tell(self, snapshot: Snapshot) -> None:
        with self._changed:
            self.newest = snapshot
            self._changed.notify_all()
