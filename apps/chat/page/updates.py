"""What the page's handlers return: new values of the components that a turn changes, in one order."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from typing import Any

import gradio as gr

from apps.chat.conversation.context import ledger_html, listing, names, oldest
from apps.chat.conversation.repetition import is_repeating, words
from apps.chat.conversation.store import Store
from apps.chat.conversation.tab import Tab
from apps.chat.conversation.turns import Conversation, Turn
from apps.chat.view.events import spaced
from apps.chat.view.live import marked
from apps.chat.view.markup import harmless, plain
from apps.chat.view.page_messages import page_messages, status_line
from apps.chat.view.turn_links import Action, link

Update = tuple[Any, ...]
"""New values of the chatbot, question box, status line, notice, *Answer now*, context ledger and list of chats."""

SKIP = gr.skip()
NOTHING: Update = (SKIP,) * 7

CIRCLES = "The model has begun to repeat itself. *Answer now* ends the thought; *Stop* keeps what is there."

NO_CHAT = "No chat has these words."

EDITING = "Edit the question below. *Send* asks it as another version of this turn; what stands here is kept."


def only_news(updates: Generator[Update, None, None]) -> Generator[Update, None, None]:
    """The same, spaced, without what was said before: a component that is told anything is drawn again."""
    shown = NOTHING
    with closing(spaced(updates)) as told:
        for update in told:
            yield tuple(SKIP if now == before else now for before, now in zip(shown, update, strict=True))
            shown = tuple(before if now == SKIP else now for before, now in zip(shown, update, strict=True))


def refused(text: str) -> Update:
    """Nothing changes but the notice."""
    return SKIP, SKIP, SKIP, notice(text), SKIP, SKIP, SKIP


def waiting(text: str) -> Update:
    """Nothing changes but the status line."""
    return SKIP, SKIP, text, SKIP, SKIP, SKIP, SKIP


def editing(tab: Tab, place: int) -> Update:
    """The question of a turn in the box; one beyond the path clears the box and leaves all as it was."""
    turns = tab.conversation.turns
    tab.edited = turns[place] if place < len(turns) else None
    if tab.edited is None:
        return SKIP, "", SKIP, notice(""), SKIP, SKIP, SKIP
    told = f"{EDITING} {link('Leave it as it was', 'edit', len(turns))}"
    return SKIP, tab.edited.question, SKIP, gr.update(value=told, visible=True), SKIP, SKIP, SKIP


def without(conversation: Conversation, turn: Turn, leaving: int, action: Action) -> Update:
    """Nothing changes but the notice: a turn that fills the context can go on once the oldest turns have left."""
    asked = [earlier.question for earlier in conversation.turns[conversation.left_out :][:leaving]]
    told = f"The context is full. To go on, {oldest(leaving)} must leave it: {names(asked)}. They stay in the chat."
    text = f"{plain(told)} {link('Leave them out and go on', action, turn.id)}\n\n{listing(asked)}"
    return SKIP, SKIP, SKIP, gr.update(value=text, visible=True), SKIP, SKIP, SKIP


def begun(conversation: Conversation, turn: Turn, chats: dict[str, Any]) -> Update:
    """A turn that starts: the box is empty and has Stop."""
    messages, box, *rest = joined(conversation, turn, chats)
    return messages, box | {"value": ""}, *rest


def joined(conversation: Conversation, turn: Turn, chats: dict[str, Any]) -> Update:
    """A turn that runs already: the box has Stop, and keeps what stands there."""
    messages, _, *rest = running(conversation, turn)
    return messages, gr.update(submit_btn=False, stop_btn="Stop"), *rest[:-1], chats


def running(conversation: Conversation, turn: Turn) -> Update:
    """A turn as far as it is written; a thought that goes round in circles is told."""
    messages = page_messages(conversation, time.monotonic())
    tokens = turn.token_ids or words(turn.reasoning)[:-1]  # the last one may be half a word
    told = notice(CIRCLES if turn.can_be_closed and is_repeating(tokens) else "")
    ledger = ledger_html(conversation.ledger, turn.tokens) if conversation.ledger else SKIP
    return messages, SKIP, marked(status_line(turn), turn), told, _answer_now(turn), ledger, SKIP


def at_rest(conversation: Conversation, chats: dict[str, Any], trouble: str = "") -> Update:
    """A conversation to which nothing is being written."""
    messages = page_messages(conversation, time.monotonic())
    status = status_line(conversation.turns[-1]) if conversation.turns else "Ready"
    return (
        messages,
        gr.update(submit_btn="Send", stop_btn=False),
        status,
        notice(trouble),
        gr.update(visible=False),
        SKIP,
        chats,
    )


def notice(text: str) -> dict[str, Any]:
    return gr.update(value=harmless(text[:1].upper() + text[1:]), visible=bool(text))


def listed(store: Store, words: str, conversation: Conversation) -> dict[str, Any]:
    """The list: the conversations that hold the words, the open one marked."""
    choices = [(entry.title, entry.id) for entry in store.entries(words)]
    is_there = any(number == conversation.id for _, number in choices)
    told = NO_CHAT if words.strip() and not choices else ""
    value = conversation.id if is_there else None
    return gr.update(choices=choices, value=value, info=told, visible=bool(choices or told))


def _answer_now(turn: Turn) -> dict[str, Any]:
    return gr.update(visible=turn.can_be_closed and not turn.answer_requested)
