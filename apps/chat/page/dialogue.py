"""The chat page's handlers of a conversation: they ask the model, let it continue a turn, and show what it writes.

What a tab shows is its `Tab`, kept by the server and changed in place. The author writes on a thread of its own; a
handler follows the turn's feed on the thread of its event, and so does each other tab that shows the conversation.

    answer, ask_again, act ─ Author.begin ─► thread: store, feed
                           └ updates.shown ◄───────────────┘
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from typing import Any

import gradio as gr

from apps.chat.conversation.author import Author
from apps.chat.conversation.context import RESERVE_SHARE, context_ledger
from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.store import Store
from apps.chat.conversation.tab import Tab
from apps.chat.conversation.turn import Turn
from apps.chat.page.updates import (
    NOTHING,
    SKIP,
    Update,
    asked,
    at_rest,
    editing,
    follow,
    listed,
    refused,
    shown,
    without,
)
from apps.chat.panels.settings_panel import Settings
from apps.chat.view.turn_links import action_of
from toolkit.errors import InputError


def answer(
    author: Author, store: Store, question: str, words: str, tab: Tab, *panel_values: Any
) -> Generator[Update, None, None]:
    """Ask the model and show its turn as it is written. A question that does not fit stays in the box."""
    yield from _ask(author, store, question, words, tab, tab.edited, panel_values)


def ask_again(author: Author, store: Store, words: str, tab: Tab, *panel_values: Any) -> Iterator[Update]:
    """Ask the last question once more; the answer is another version."""
    last = tab.conversation.turns[-1]
    yield from _ask(author, store, last.question, words, tab, last, panel_values)


def act(author: Author, store: Store, chosen: str, words: str, tab: Tab, *panel_values: Any) -> Iterator[Update]:
    """Do what a link in the conversation says: edit a question, show another version of a turn, or continue it."""
    conversation = tab.conversation
    action, number = action_of(chosen) or ("", 0)
    turn = next((turn for turn in conversation.all_turns if turn.id == number), None)
    if action == "edit" and not conversation.busy:
        yield editing(tab, number)
    elif turn is None or conversation.busy:
        yield NOTHING
    elif action == "show":
        conversation.show(turn)
        tab.edited = None
        with suppress(InputError):  # only the path; the next piece of text reports a full disk
            store.write(conversation)
        yield at_rest(conversation, listed(store, words, conversation))
    elif turn in conversation.turns and turn.can_go_on:
        try:
            settings = Settings.of_panel(panel_values)
        except InputError as error:
            yield refused(str(error))
            return
        yield from _go_on(author, store, words, tab, turn, action, settings)


def _go_on(
    author: Author, store: Store, words: str, tab: Tab, turn: Turn, action: str, settings: Settings
) -> Iterator[Update]:
    """Continue a turn, or begin its answer; if the context is full, first say what must leave it."""
    conversation, wanted = tab.conversation, author.model.chat_model.max_length // RESERVE_SHARE
    leaving = conversation.must_leave(turn, author.model.chat_model, wanted=wanted)
    answers = action.startswith("answer")
    if leaving and not action.endswith("-without"):
        yield without(conversation, turn, leaving, "answer-without" if answers else "go-on-without")
        return
    conversation.left_out += leaving
    try:
        turn = conversation.resume(turn, author.model.chat_model)
    except InputError as error:
        conversation.left_out -= leaving
        yield refused(str(error))
        return
    turn.answer_requested = answers
    yield from _run(author, store, words, tab, turn, settings)


def _ask(
    author: Author,
    store: Store,
    question: str,
    words: str,
    tab: Tab,
    instead_of: Turn | None,
    panel_values: Sequence[Any],
) -> Iterator[Update]:
    conversation = tab.conversation
    if feed := conversation.feed:
        yield NOTHING
        if tab not in feed.followers:
            yield from follow(store, words, tab)
        return
    if not question.strip():
        yield NOTHING
        return
    try:
        settings = Settings.of_panel(panel_values)
        conversation.system = settings.system
        turn = conversation.ask(question, author.model.chat_model, instead_of=instead_of)
    except InputError as error:
        yield refused(str(error))
        return
    yield from _run(author, store, words, tab, turn, settings)


def _run(author: Author, store: Store, words: str, tab: Tab, turn: Turn, settings: Settings) -> Iterator[Update]:
    """Let the model write a turn, and show it."""
    conversation = tab.conversation
    is_listed = conversation.id is not None
    tab.edited = None
    conversation.ledger = context_ledger(
        author.model.chat_model,
        conversation.messages(turn.question, turn),
        max_new_tokens=settings.max_new_tokens,
        left_out=conversation.left_out,
    )
    feed = author.begin(conversation, turn, settings.sampling(seed_of(turn)), settings.thinking_budget)
    chats = SKIP if is_listed else listed(store, words, conversation)
    yield from shown(store, words, tab, feed, box=asked(), chats=chats)


def seed_of(turn: Turn) -> int:
    """Return the seed of a turn that is continued; a new one for a new turn, or if an imported file holds no seed."""
    seed = turn.settings.get("seed")
    return seed if isinstance(seed, int) and 0 <= seed < 2**63 else secrets.randbelow(2**31)


def stop(tab: Tab) -> None:
    """Ask the running turn to end after its current token."""
    if tab.conversation.turns:
        tab.conversation.turns[-1].stop_requested = True


def answer_now(tab: Tab) -> dict[str, Any]:
    """Ask the running turn to close its thought."""
    if tab.conversation.turns:
        tab.conversation.turns[-1].answer_requested = True
    return gr.update(visible=False)


def start_over(store: Store, words: str, tab: Tab) -> Update:
    """Show an empty conversation."""
    tab.open(Conversation())
    return at_rest(tab.conversation, listed(store, words, tab.conversation))
