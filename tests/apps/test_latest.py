"""Work on a thread of its own, under a slow reader."""

from __future__ import annotations

import threading
from collections.abc import Generator

import pytest

from apps.chat.conversation.latest import Latest
from toolkit.errors import InputError


def test_the_work_does_not_wait_for_its_reader_who_gets_the_last_item() -> None:
    done = threading.Event()

    def work() -> Generator[int, None, None]:
        yield from range(1000)
        done.set()

    reader = iter(Latest(work()).start())
    first = next(reader)
    assert done.wait(timeout=60), "the work must go on while nobody reads"
    assert first == 999 or [*reader][-1] == 999


def test_items_come_in_their_order_and_none_twice() -> None:
    read = [*Latest(i for i in range(2000)).start()]
    assert read == sorted(set(read)) and read[-1] == 1999


def test_each_reader_gets_the_last_item() -> None:
    latest = Latest(i for i in range(2000)).start()
    assert [*latest][-1] == [*latest][-1] == 1999


def test_work_without_an_item_ends() -> None:
    assert [*Latest(i for i in range(0)).start()] == []


def test_what_the_work_raises_is_raised_after_its_items() -> None:
    def work() -> Generator[str, None, None]:
        yield "written"
        raise InputError("the disk is full")

    reader = iter(Latest(work()).start())
    assert next(reader) == "written"
    with pytest.raises(InputError, match="the disk is full"):
        next(reader)


def test_leaving_closes_the_work_before_it_returns() -> None:
    closed_on: list[str] = []

    def work() -> Generator[int, None, None]:
        try:
            number = 0
            while True:
                yield (number := number + 1)
        finally:
            closed_on.append(threading.current_thread().name)

    latest = Latest(work()).start()
    next(iter(latest))
    latest.close()
    assert closed_on == ["latest"]
