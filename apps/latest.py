"""Lets work go on at its own speed while a slower reader looks at it.

    work    ── item 1 ── item 2 ── item 3 ── item 4 ──►     its own thread, held up by nobody
    reader  ────── item 1 ──────────── item 3 ── item 4 ►   what was newest each time

A page takes longer to send than a model to write a few tokens; a model whose generator is the page's own would stand
still meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Latest(Iterator[Item], Generic[Item]):
    """Runs work on a thread of its own from now on; iterating gives its newest item, each once.

    The last item always comes, and what the work raises is raised after it. Items that came while the reader was away
    are left out, but for the newest.
    """

    def __init__(self, work: Generator[Item, None, None]) -> None:
        self._work = work
        self._changed = threading.Condition()
        self._newest: list[Item] = []
        self._raised: list[BaseException] = []
        self._has_ended = self._reader_left = False
        self._thread = threading.Thread(target=self._run, name="latest", daemon=True)
        self._thread.start()

    def __next__(self) -> Item:
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._has_ended)
            if self._newest:
                return self._newest.pop()
        if self._raised:
            raise self._raised.pop()
        raise StopIteration

    def close(self) -> None:
        """Close the work at its next item; returns when that is done."""
        self._reader_left = True
        self._thread.join()

    def _run(self) -> None:
        try:
            with closing(self._work):
                for item in self._work:
                    with self._changed:
                        self._newest[:] = [item]
                        self._changed.notify()
                    if self._reader_left:
                        return
        except BaseException as error:  # noqa: BLE001 – a panic of tokenizers is no Exception; the reader raises it
            self._raised.append(error)
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify()
