"""Makes what the page's handlers return: new values of the components that a turn changes, in one order.

They are rendered from a conversation at rest, or from the snapshots of a running turn's feed, on the thread of the tab
that follows it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gradio as gr

from apps.chat.conversation.context import ledger_html, listing, names, oldest
from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.feed import Feed, Snapshot
from apps.chat.conversation.store import Store
from apps.chat.conversation.tab import Tab
from apps.chat.conversation.turn import Turn
from apps.chat.view.events import News
from apps.chat.view.live import marked
from apps.chat.view.markup import harmless, plain
from apps.chat.view.page_messages import page_messages, status_line
from apps.chat.view.repetition import is_repeating, words
from apps.chat.view.turn_links import Action, link

Update = tuple[Any, ...]
"""New values of the chatbot, question box, status line, notice, *Answer now*, context ledger and list of chats."""

SKIP = gr.skip()
NOTHING: Update = (SKIP,) * 7
QUEUED = "The model is answering another tab; this question is next"

CIRCLES = "The model has begun to repeat itself. *Answer now* ends the thought; *Stop* keeps what is written."

NO_CHAT = "No chat contains these words."

EDITING = "Edit the question below. *Send* asks it as another version of this turn; this one is kept."


def busy() -> dict[str, Any]:
    """Give the question box its Stop button and keep its text. Gradio takes an update apart, so none is told twice."""
    return gr.update(submit_btn=False, stop_btn="Stop")


def asked() -> dict[str, Any]:
    """Empty the question box, and give it its Stop button."""
    return busy() | {"value": ""}


def refused(text: str) -> Update:
    """Change only the notice."""
    return SKIP, SKIP, SKIP, notice(text), SKIP, SKIP, SKIP


def editing(tab: Tab, place: int) -> Update:
    """Put the question of a turn into the box; a number beyond the path clears the box and cancels editing."""
    turns = tab.conversation.turns
    tab.edited = turns[place] if place < len(turns) else None
    if tab.edited is None:
        return SKIP, "", SKIP, notice(""), SKIP, SKIP, SKIP
    told = f"{EDITING} {link('Leave it unchanged', 'edit', len(turns))}"
    return SKIP, tab.edited.question, SKIP, gr.update(value=told, visible=True), SKIP, SKIP, SKIP


def without(conversation: Conversation, turn: Turn, leaving: int, action: Action) -> Update:
    """Change only the notice: a turn that fills the context can be continued once the oldest turns have left."""
    asked = [earlier.question for earlier in conversation.turns[conversation.left_out :][:leaving]]
    told = f"The context is full. To continue, {oldest(leaving)} must leave it: {names(asked)}. They stay in the chat."
    text = f"{plain(told)} {link('Leave them out and continue', action, turn.id)}\n\n{listing(asked)}"
    return SKIP, SKIP, SKIP, gr.update(value=text, visible=True), SKIP, SKIP, SKIP


def running(conversation: Conversation, snapshot: Snapshot, *, box: Any = SKIP, chats: Any = SKIP) -> Update:
    """Show a turn as far as it is written, all from one snapshot, and warn of a thought that repeats itself."""
    turn = snapshot.turn
    tokens = turn.token_ids or words(turn.reasoning)[:-1]  # the last one may be half a word
    ledger = ledger_html(conversation.ledger, turn.tokens) if conversation.ledger else SKIP
    return (
        page_messages(conversation.as_of(turn), time.monotonic()),
        box,
        QUEUED if snapshot.is_queued else marked(status_line(turn), turn),
        notice(CIRCLES if turn.can_be_closed and is_repeating(tokens) else ""),
        gr.update(visible=turn.can_be_closed and not turn.answer_requested),
        ledger,
        chats,
    )


def at_rest(conversation: Conversation, chats: dict[str, Any], trouble: str = "") -> Update:
    """Show a conversation of which no turn is being written."""
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
    """List the conversations that contain the words, with the open one marked."""
    choices = [(entry.title, entry.id) for entry in store.entries(words)]
    is_there = any(number == conversation.id for _, number in choices)
    told = NO_CHAT if words.strip() and not choices else ""
    value = conversation.id if is_there else None
    return gr.update(choices=choices, value=value, info=told, visible=bool(choices or told))


def follow(store: Store, words: str, tab: Tab) -> Iterator[Update]:
    """Show the tab's conversation, and follow a turn that another tab asked for, or this one before a reload."""
    if feed := tab.conversation.feed:
        yield from shown(store, words, tab, feed, box=busy(), chats=listed(store, words, tab.conversation))
    else:
        yield _now(store, words, tab)


def shown(store: Store, words: str, tab: Tab, feed: Feed, *, box: Any, chats: Any) -> Iterator[Update]:
    """Show a turn in a tab until the turn ends or the tab opens another conversation.

    `box`, `chats`: the question box and the list of chats at the beginning. An update that is on its way while the tab
    opens another conversation may reach the page after it, so the last update shows once more what the tab shows.
    """
    conversation, opened, news = tab.conversation, tab.opened, News()
    with closing(feed.follow(tab)) as snapshots:
        for snapshot in snapshots:
            if tab.opened != opened:
                break
            if not snapshot.is_over or (box is not SKIP and not feed.trouble):  # a turn may be over before it is shown
                yield news.of(running(conversation, snapshot, box=box, chats=chats))
                box = chats = SKIP
    if tab.opened == opened:
        yield news.of(at_rest(conversation, listed(store, words, conversation), feed.trouble))
    if tab.opened != opened:
        yield news.of(_now(store, words, tab))


def _now(store: Store, words: str, tab: Tab) -> Update:
    """Show everything that the tab shows now."""
    conversation = tab.conversation
    chats = listed(store, words, conversation)
    feed = conversation.feed
    return running(conversation, feed.newest, box=busy(), chats=chats) if feed else at_rest(conversation, chats)
