"""Lets work go on at its own speed while a slower reader looks at it.

    work    ── item 1 ── item 2 ── item 3 ── item 4 ──►     its own thread, held up by nobody
    reader  ────── item 1 ──────────── item 3 ── item 4 ►   what was newest each time

A page takes longer to send than a model to write a few tokens; a model whose generator is the page's own would stand
still meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import closing
from typing import TypeVar

Item = TypeVar("Item")


def latest(work: Generator[Item, None, None]) -> Generator[Item, None, None]:
    """Run `work` on a thread of its own; yields its newest item, without those that came while the reader was away.

    The last item always comes, and what `work` raises is raised here. Closing the generator closes `work` at its next
    item, and returns when that is done.
    """
    changed = threading.Condition()
    newest: list[Item] = []
    raised: list[BaseException] = []
    has_ended = reader_left = False

    def run() -> None:
        nonlocal has_ended
        try:
            with closing(work):
                for item in work:
                    with changed:
                        newest[:] = [item]
                        changed.notify()
                    if reader_left:
                        return
        except BaseException as error:  # noqa: BLE001 – a panic of tokenizers is no Exception; the reader raises it
            raised.append(error)
        finally:
            with changed:
                has_ended = True
                changed.notify()

    worker = threading.Thread(target=run, name="latest", daemon=True)
    worker.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: newest or has_ended)
                items, newest[:] = newest.copy(), []
            if not items:
                break
            yield items[0]
    finally:
        reader_left = True
        worker.join()
    if raised:
        raise raised[0]
