"""Lets a model write turns: on a thread of its own, into the store, and then onto the feed that pages follow.

    begin ── question ─► store ─► feed                                   (the caller's thread)
      └─ thread: waits for the model's lock ─► run_turn ─ piece ─► store ─► feed, until the turn ends

Nothing is published that is not stored. The model waits for no page, and a page that has gone ends the turn only
after `feed.PATIENCE_S`. The model writes one turn at a time: whoever holds `model.lock`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial

from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.feed import Feed
from apps.chat.conversation.store import Store
from apps.chat.conversation.turn import Turn
from apps.model import Model
from toolkit.errors import InputError
from toolkit.generation.chat_model import ChatModel
from toolkit.generation.generate import Sampling
from toolkit.records import Message

POLL_S = 0.1
UPDATES_PER_S = 12.0


class Author:
    """Writes turns with one model, and keeps the feeds of those that are being written."""

    def __init__(self, model: Model, store: Store | None = None) -> None:
        """`store`: keeps the turns; None if nothing is to be kept."""
        self.model = model
        self.feeds: dict[int, Feed] = {}
        """Number of each stored turn that is being written → its feed."""
        self._store = store

    def begin(self, conversation: Conversation, turn: Turn, sampling: Sampling, thinking_budget: int = 0) -> Feed:
        """Store the question and let the model write its turn; if the disk refuses, the feed is already over."""
        model = self.model
        turn.is_in_one_piece = not model.goes_on
        turn.model = model.name
        turn.settings = asdict(sampling) | {"thinking_budget": thinking_budget, "system": conversation.system}
        if model.chat_model.opens_reasoning and not turn.tokens and not model.lock.locked():
            turn.start(model.chat_model, time.monotonic())  # its thought is on the page from the beginning
        try:
            self._write(conversation, turn)
        except InputError as error:
            if turn.running:
                turn.end(time.monotonic())
            feed = Feed(turn)
            feed.end(turn, error)
            return feed
        conversation.feed = feed = Feed(turn)
        if turn.id is not None:
            self.feeds[turn.id] = feed
        messages = conversation.messages(turn.question, turn)
        pieces = run_turn(model.chat_model, messages, turn, sampling, time.monotonic, thinking_budget=thinking_budget)
        run = partial(self._run, conversation, turn, feed, pieces)
        model.writing.append(turn)
        threading.Thread(target=run, name="author", daemon=True).start()
        return feed

    def _run(self, conversation: Conversation, turn: Turn, feed: Feed, pieces: Generator[None, None, None]) -> None:
        """Write the turn to its end, and store that, however it comes about."""
        number, broke_off = turn.id, None
        try:
            self._write_when_free(conversation, turn, feed, pieces)
        except BaseException as error:  # noqa: BLE001 – a panic of tokenizers is no Exception; the readers raise it
            broke_off = error
        try:
            if turn.running:
                turn.end(time.monotonic())
            self._write(conversation, turn)
        except BaseException as error:  # noqa: BLE001 – whatever it is, nobody may wait for a turn that is over
            broke_off = broke_off or error
        if number is not None and self.feeds.get(number) is feed:  # a deleted turn's number is given again
            del self.feeds[number]
        conversation.feed = None
        self.model.writing.remove(turn)
        feed.end(turn, broke_off)

    def _write_when_free(
        self, conversation: Conversation, turn: Turn, feed: Feed, pieces: Generator[None, None, None]
    ) -> None:
        """Wait for the model, then store and publish each piece of the turn until it ends or nobody follows it."""
        model = self.model
        while not model.lock.acquire(timeout=POLL_S):
            if turn.stop_requested or feed.is_abandoned:
                return
            if not feed.newest.is_queued:
                feed.publish(turn, is_queued=True)
        try:
            if feed.newest.is_queued:
                feed.publish(turn)
            if model.ahead:
                model.ahead.forget()
            with closing(pieces):
                for _ in pieces:
                    self._write(conversation, turn)
                    feed.publish(turn)
                    if feed.is_abandoned:
                        return
        finally:
            model.lock.release()

    def _write(self, conversation: Conversation, turn: Turn) -> None:
        if self._store:
            self._store.write(conversation, turn)


def run_turn(
    model: ChatModel,
    messages: Sequence[Message],
    turn: Turn,
    sampling: Sampling,
    clock: Callable[[], float],
    *,
    thinking_budget: int = 0,
) -> Generator[None, None, None]:
    """Let the model write into `turn`, after what it already holds; yields when there is something new to show.

    Closing the generator early stops the turn. A thought that must end is closed, and the model continues from there.
    """
    shown_at = float("-inf")
    before = turn.tokens
    try:
        turn.start(model, clock())
        while not turn.stop_requested:
            if turn.must_answer(thinking_budget):
                turn.close_thought(model, clock())
            left = replace(sampling, max_new_tokens=max(1, sampling.max_new_tokens - turn.tokens + before))
            for event in model.stream(messages, left, turn.written):
                now = clock()
                turn.take(event, now)
                if event.finish_reason:
                    continue
                if turn.stop_requested or turn.must_answer(thinking_budget):
                    break
                if now - shown_at >= 1 / UPDATES_PER_S:
                    shown_at = now
                    yield
            else:
                return
    finally:
        turn.end(clock())
