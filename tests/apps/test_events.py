"""How a page's events are told to the browser."""

from __future__ import annotations

import time
from collections.abc import Generator
from itertools import pairwise

from apps.chat.view.events import GAP_S, spaced


def test_updates_come_in_their_order_and_a_gap_apart() -> None:
    def work() -> Generator[int, None, None]:
        yield from range(4)

    told = [(update, time.monotonic()) for update in spaced(work())]
    assert [update for update, _ in told] == [0, 1, 2, 3]
    gaps = [later - at for (_, at), (_, later) in pairwise(told)]
    assert min(gaps) > 0.9 * GAP_S


def test_the_work_is_closed_with_its_reader() -> None:
    closed = []

    def work() -> Generator[str, None, None]:
        try:
            yield "first"
            yield "second"
        finally:
            closed.append("work")

    updates = spaced(work())
    next(updates)
    updates.close()
    assert closed == ["work"]
