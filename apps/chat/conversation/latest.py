"""Lets work go on at its own speed while slower readers look at it.

    work      ── item 1 ── item 2 ── item 3 ── item 4 ──►     its own thread, held up by nobody
    a reader  ────── item 1 ──────────── item 3 ── item 4 ►   what was newest each time

A page takes longer to send than a model to write a few tokens; a model whose generator is the page's own would stand
still meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import Generic, TypeVar

Item = TypeVar("Item")


class RenderPace:
    """Lets a stream of items through at most `per_s` times a second."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._shown_at = float("-inf")

    def is_due(self, now: float) -> bool:
        if now - self._shown_at < 1.0 / self._per_s:
            return False
        self._shown_at = now
        return True


class Latest(Iterable[Item], Generic[Item]):
    """Runs work on a thread of its own, once started; each iterator gives its newest item, each once.

    The last item always comes, and what the work raises is raised after it. Items that came while a reader was away
    are left out, but for the newest.
    """

    def __init__(self, work: Generator[Item, None, None]) -> None:
        self._work = work
        self._changed = threading.Condition()
        self._newest: list[Item] = []
        self._count = 0
        self._raised: BaseException | None = None
        self._has_ended = self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="latest", daemon=True)

    def start(self) -> Latest[Item]:
        self._thread.start()
        return self

    def __iter__(self) -> Iterator[Item]:
        seen = 0
        while news := self._after(seen):
            seen, item = news
            yield item
        if self._raised:
            raise self._raised

    def _after(self, seen: int) -> tuple[int, Item] | None:
        """How many items there are and the newest, once there are more than those `seen`; None where the work ends
        before."""
        with self._changed:
            self._changed.wait_for(lambda: self._count > seen or self._has_ended)
            return (self._count, self._newest[0]) if self._count > seen else None

    def close(self) -> None:
        """Close the work at its next item; returns when that is done."""
        self._is_closed = True
        self._thread.join()

    def _run(self) -> None:
        try:
            with closing(self._work):
                for item in self._work:
                    with self._changed:
                        self._newest[:] = [item]
                        self._count += 1
                        self._changed.notify_all()
                    if self._is_closed:
                        return
        except BaseException as error:  # noqa: BLE001 – a panic of tokenizers is no Exception; the readers raise it
            self._raised = error
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()
