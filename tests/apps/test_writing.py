"""Several tabs follow one turn that is being written; no page, no model."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest

from apps.chat.conversation import writing
from apps.chat.conversation.writing import Writing
from toolkit.errors import InputError

WAIT_S = 60.0


def counting(ended: threading.Event, to: int = 10**9) -> Generator[int, None, None]:
    try:
        for number in range(1, to + 1):
            time.sleep(0.001)
            yield number
    finally:
        ended.set()


def test_tabs_that_come_at_different_times_see_the_same_end() -> None:
    ended = threading.Event()
    written = Writing(counting(ended, to=300))
    first = written.follow("first", 0)
    assert next(first) == 0, "who follows before it is started sees its beginning"
    written.start()
    assert next(first) > 0
    second = written.follow("second", -1)
    assert next(second) == -1 and next(second) > 0
    assert written.followers == ["first", "second"]
    assert [*first][-1] == [*second][-1] == 300
    assert ended.is_set() and written.followers == []


def test_a_turn_goes_on_while_its_tab_is_loaded_again() -> None:
    ended = threading.Event()
    written = Writing(counting(ended, to=1000))
    written.start()
    gone = written.follow("gone", 0)
    next(gone)
    gone.close()
    time.sleep(0.3)
    assert not ended.is_set()
    assert [*written.follow("the same, loaded again", 0)][-1] == 1000


def test_what_nobody_follows_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "PATIENCE_S", 0.2)
    ended = threading.Event()
    written = Writing(counting(ended))
    written.start()
    follower = written.follow("a tab", 0)
    next(follower)
    assert not ended.wait(timeout=1.0), "somebody follows"
    follower.close()
    assert ended.wait(timeout=WAIT_S)


def test_all_who_follow_are_told_why_it_broke_off() -> None:
    def work() -> Generator[str, None, None]:
        yield "written"
        raise InputError("the disk is full")

    written = Writing(work())
    followers = [written.follow(tab, "begun") for tab in ("one", "two")]
    assert [next(follower) for follower in followers] == ["begun", "begun"]
    written.start()
    assert [[*follower][-1] for follower in followers] == ["written", "written"]
    assert written.trouble == "the disk is full"
