"""Several readers of one turn that is being written; no page, no model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from apps.chat.conversation import feed as feeds
from apps.chat.conversation.feed import RENDERS_PER_S, Feed
from apps.chat.conversation.turn import Turn
from toolkit.errors import InputError

WAIT_S = 60.0


@pytest.fixture
def turn() -> Turn:
    return Turn(question="?", context_room=9999, state="thinking")


def writing(turn: Turn, feed: Feed, pieces: int, error: Exception | None = None) -> threading.Thread:
    """Start a thread that writes the turn."""

    def write() -> None:
        for _ in range(pieces):
            time.sleep(0.001)
            turn.reasoning += "."
            feed.publish(turn)
        turn.state = "done"
        feed.end(turn, error)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def test_the_author_does_not_wait_for_a_reader_who_gets_the_last_snapshot(turn: Turn) -> None:
    feed = Feed(turn)
    reader = feed.follow("tab")
    next(reader)
    writing(turn, feed, 1000).join(timeout=WAIT_S)
    assert feed.newest.is_over, "the turn must be written while nobody reads"
    assert [len(snapshot.turn.reasoning) for snapshot in reader] == [1000]


def test_snapshots_come_in_their_order_and_none_twice(turn: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "RENDERS_PER_S", 1000.0)
    feed = Feed(turn)
    writing(turn, feed, 300)
    read = [(len(snapshot.turn.reasoning), snapshot.is_over) for snapshot in feed.follow("tab")]
    assert read == sorted(set(read)) and read[-1] == (300, True) and len(read) > 2


def test_tabs_that_come_at_different_times_see_the_same_end(turn: Turn) -> None:
    feed = Feed(turn)
    first = feed.follow("first")
    assert next(first).turn.reasoning == "", "a tab that follows before anything is written sees the beginning"
    writing(turn, feed, 700)
    assert next(first).turn.reasoning
    second = feed.follow("second")
    assert next(second).turn.reasoning
    assert feed.followers == ["first", "second"]
    ends = [[*first][-1], [*second][-1]]
    assert ends[0] is ends[1] and len(ends[0].turn.reasoning) == 700
    assert feed.followers == []
    assert [*feed.follow("late")] == ends[:1]


def test_a_new_state_comes_at_once_and_more_text_in_its_time(turn: Turn) -> None:
    feed = Feed(turn)
    reader = feed.follow("tab")

    def next_after(change: Callable[[], None]) -> float:
        threading.Timer(0.02, change).start()
        began_at = time.monotonic()
        next(reader)
        return time.monotonic() - began_at

    def write() -> None:
        turn.reasoning += "."
        feed.publish(turn)

    def answer() -> None:
        turn.state = "answering"
        feed.publish(turn)

    next(reader)
    assert next_after(write) > 0.9 / RENDERS_PER_S
    assert next_after(answer) < 0.5 / RENDERS_PER_S
    assert next_after(lambda: feed.publish(turn, is_queued=True)) < 0.5 / RENDERS_PER_S


def test_a_snapshot_stays_as_it_is(turn: Turn) -> None:
    feed = Feed(turn)
    turn.token_ids.append(1)
    turn.reasoning, turn.state = "So", "stopped"
    snapshot = feed.newest.turn
    assert (snapshot.token_ids, snapshot.reasoning, snapshot.state) == ([], "", "thinking")


def test_all_who_follow_are_told_why_it_broke_off(turn: Turn) -> None:
    feed = Feed(turn)
    readers = [feed.follow(tab) for tab in ("one", "two")]
    assert [next(reader).turn.reasoning for reader in readers] == ["", ""]
    writing(turn, feed, 2, InputError("the disk is full"))
    assert [[*reader][-1].turn.reasoning for reader in readers] == ["..", ".."]
    assert feed.trouble == "the disk is full"


def test_what_is_not_the_user_s_fault_is_raised_after_the_last_snapshot(turn: Turn) -> None:
    feed = Feed(turn)
    feed.end(turn, ValueError("a bug"))
    reader = feed.follow("tab")
    assert next(reader).is_over
    with pytest.raises(ValueError, match="a bug"):
        next(reader)


def test_a_turn_is_abandoned_once_nobody_has_followed_it_for_a_while(
    turn: Turn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "PATIENCE_S", 0.2)
    feed = Feed(turn)
    reader = feed.follow("tab")
    next(reader)
    time.sleep(0.3)
    assert not feed.is_abandoned, "somebody follows"
    reader.close()
    assert not feed.is_abandoned, "the tab may be loaded again"
    time.sleep(0.3)
    assert feed.is_abandoned
