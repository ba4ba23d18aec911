"""A scripted model writes turns into a real store, on a thread of its own; no page."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence

import pytest

from apps.chat.conversation import feed as feeds
from apps.chat.conversation.author import Author
from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.feed import Feed
from apps.chat.conversation.store import FILE, Store
from apps.chat.conversation.turn import Turn
from apps.model import Model
from tests.apps.test_dialogue import model, slow, store  # noqa: F401 – fixtures
from toolkit.generation.chat_model import LocalChatModel
from toolkit.generation.generate import GREEDY, Floats

WAIT_S = 60.0


def begun(author: Author, question: str) -> tuple[Conversation, Turn, Feed]:
    conversation = Conversation()
    turn = conversation.ask(question, author.model.chat_model)
    return conversation, turn, author.begin(conversation, turn, GREEDY)


def ended(feed: Feed) -> Turn:
    """Wait until the turn has ended, without following it."""
    deadline = time.monotonic() + WAIT_S
    while not feed.newest.is_over:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return feed.newest.turn


def test_what_is_published_is_stored_before(slow: Model, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    published: list[str] = []
    publish = Feed.publish

    def look(feed: Feed, turn: Turn, *, is_queued: bool = False) -> None:
        publish(feed, turn, is_queued=is_queued)
        ((reasoning, answer),) = sqlite3.connect(store.folder / FILE).execute("SELECT reasoning, answer FROM turn")
        assert (feed.newest.turn.reasoning, feed.newest.turn.answer) == (reasoning, answer)
        published.append(reasoning + answer)

    monkeypatch.setattr(Feed, "publish", look)
    author = Author(slow, store)
    conversation, turn, feed = begun(author, "twenty steps")
    assert author.feeds == {turn.id: feed} and conversation.busy
    assert ended(feed).state == "done" and not feed.trouble
    assert len(published) > 3 and author.feeds == {} and not conversation.busy


def test_what_nobody_follows_is_closed(slow: Model, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(feeds, "PATIENCE_S", 0.2)
    conversation, turn, feed = begun(Author(slow, store), "A long thought, please")
    reader = feed.follow("a tab")
    next(reader)
    time.sleep(0.5)
    assert conversation.busy, "somebody follows"
    reader.close()
    assert ended(feed).state == turn.state == "stopped"
    assert not slow.lock.locked()


def test_a_turn_waits_for_another_tab_s_and_can_be_stopped_meanwhile(model: Model, store: Store) -> None:  # noqa: F811
    with model.lock:
        _, turn, feed = begun(Author(model, store), "84 and 36?")
        reader = feed.follow("a tab")
        while not next(reader).is_queued:
            pass
        turn.stop_requested = True
        assert ended(feed).state == "stopped" and not turn.tokens
    with model.lock:
        _, _, feed = begun(Author(model, store), "84 and 36?")
        reader = feed.follow("a tab")
        while not next(reader).is_queued:
            pass
    assert ended(feed).state == "done"


def test_a_turn_whose_pieces_the_disk_does_not_take_ends_and_says_so(slow: Model, store: Store) -> None:  # noqa: F811
    conversation, turn, feed = begun(Author(slow, store), "A long thought, please")
    store._database.execute("PRAGMA query_only = ON")
    snapshots = [*feed.follow("a tab")]
    assert snapshots[-1].turn.state == turn.state == "stopped" and turn.reasoning
    assert "cannot store the conversation" in feed.trouble and not conversation.busy and not slow.lock.locked()


def test_a_disk_that_fills_up_at_the_last_write_ends_the_turn_and_says_so(
    model: Model,  # noqa: F811
    store: Store,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL

    def refuse(query: str, values: object = ()) -> list[sqlite3.Row]:
        raise full

    monkeypatch.setattr(store, "_all", refuse)
    author = Author(model, store)
    conversation, turn, feed = begun(author, "84 and 36?")
    assert [*feed.follow("a tab")][-1].turn.state == turn.state == "done"
    assert "free some space" in feed.trouble
    assert not conversation.busy and not author.feeds and not model.writing and not model.lock.locked()


def test_an_error_of_the_model_reaches_who_follows_and_frees_the_model(model: Model, store: Store) -> None:  # noqa: F811
    class Broken:
        max_length = 600

        def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
            raise ZeroDivisionError("a bug")

    assert isinstance(model.chat_model, LocalChatModel)
    model.chat_model.decoder = Broken()  # type: ignore[assignment]
    conversation, turn, feed = begun(Author(model, store), "84 and 36?")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        [*feed.follow("a tab")]
    assert turn.state == "stopped" and not conversation.busy and not model.lock.locked()


def test_a_turn_without_a_store_is_written_too(model: Model) -> None:  # noqa: F811
    _, turn, feed = begun(Author(model), "84 and 36?")
    assert ended(feed).answer == "The answer is **12**." and turn.id is None
