"""The chat page's handlers of a conversation: they ask the model, let it go on, and show what it writes.

What a tab shows is its `Tab`, kept by the server and changed in place; `conversation.writing` is what tabs follow while
a turn is written. The model answers one turn at a time: whoever holds `model.lock`.

    answer, ask_again, act ── a turn ── _run ── _written (a thread of its own) ── store, then `Writing`
                                          └──── _shown   (each tab that follows)  ◄─────────────┘
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from typing import Any

import gradio as gr

from apps.chat.conversation.context import RESERVE_SHARE, context_ledger
from apps.chat.conversation.latest import RenderPace
from apps.chat.conversation.store import Store
from apps.chat.conversation.tab import POLL_S, Tab
from apps.chat.conversation.turns import Conversation, Turn, run_turn
from apps.chat.conversation.writing import Writing
from apps.chat.page.updates import (
    NOTHING,
    SKIP,
    Update,
    at_rest,
    begun,
    editing,
    joined,
    listed,
    only_news,
    refused,
    running,
    waiting,
    without,
)
from apps.chat.panels.settings_panel import Settings
from apps.chat.view.live import RENDERS_PER_S
from apps.chat.view.turn_links import action_of
from apps.model import Model
from toolkit.errors import InputError
from toolkit.generation.generate import Sampling


def answer(
    model: Model, store: Store, question: str, words: str, tab: Tab, *panel_values: Any
) -> Generator[Update, None, None]:
    """Ask the model and show its turn as it is written. A question that does not fit stays in the box."""
    yield from _ask(model, store, question, words, tab, tab.edited, panel_values)


def ask_again(model: Model, store: Store, words: str, tab: Tab, *panel_values: Any) -> Iterator[Update]:
    """Ask the last question once more; the answer is another version."""
    last = tab.conversation.turns[-1]
    yield from _ask(model, store, last.question, words, tab, last, panel_values)


def act(model: Model, store: Store, chosen: str, words: str, tab: Tab, *panel_values: Any) -> Iterator[Update]:
    """Do what a link in the conversation says: edit a question, show another version of a turn, or go on with it."""
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
        with suppress(InputError):  # the path alone: the next piece of text tells of a full disk
            store.write(conversation)
        yield at_rest(conversation, listed(store, words, conversation))
    elif turn in conversation.turns and turn.can_go_on:
        try:
            settings = Settings.of_panel(panel_values)
        except InputError as error:
            yield refused(str(error))
            return
        yield from _go_on(model, store, words, tab, turn, action, settings)


def _go_on(
    model: Model, store: Store, words: str, tab: Tab, turn: Turn, action: str, settings: Settings
) -> Iterator[Update]:
    """Let a turn go on, or its answer begin; where the context is full, say first what must leave it."""
    conversation, wanted = tab.conversation, model.chat_model.max_length // RESERVE_SHARE
    leaving = conversation.must_leave(turn, model.chat_model, wanted=wanted)
    answers = action.startswith("answer")
    if leaving and not action.endswith("-without"):
        yield without(conversation, turn, leaving, "answer-without" if answers else "go-on-without")
        return
    conversation.left_out += leaving
    try:
        turn = conversation.resume(turn, model.chat_model)
    except InputError as error:
        conversation.left_out -= leaving
        yield refused(str(error))
        return
    turn.answer_requested = answers
    yield from only_news(_run(model, store, words, tab, turn, settings))


def _ask(
    model: Model,
    store: Store,
    question: str,
    words: str,
    tab: Tab,
    instead_of: Turn | None,
    panel_values: Sequence[Any],
) -> Iterator[Update]:
    conversation = tab.conversation
    if writing := conversation.writing:
        yield NOTHING
        if tab not in writing.followers:
            yield from follow(store, words, tab)
        return
    if not question.strip():
        yield NOTHING
        return
    try:
        settings = Settings.of_panel(panel_values)
        conversation.system = settings.system
        turn = conversation.ask(question, model.chat_model, instead_of=instead_of)
    except InputError as error:
        yield refused(str(error))
        return
    yield from only_news(_run(model, store, words, tab, turn, settings))


def _run(
    model: Model, store: Store, words: str, tab: Tab, turn: Turn, settings: Settings
) -> Generator[Update, None, None]:
    """Let the model write a turn, which is in the store before anything of it is shown, and follow it."""
    conversation = tab.conversation
    sampling = settings.sampling(seed_of(turn))
    turn.is_in_one_piece = not model.goes_on
    turn.model = model.name
    turn.settings = asdict(sampling) | {"thinking_budget": settings.thinking_budget, "system": conversation.system}
    tab.edited = None
    is_listed = conversation.id is not None
    if model.chat_model.opens_reasoning and not turn.tokens and not model.lock.locked():
        turn.start(model.chat_model, time.monotonic())  # its thought is on the page from the beginning
    try:
        store.write(conversation, turn)
    except InputError as error:
        if turn.running:
            turn.end(time.monotonic())
        yield at_rest(conversation, listed(store, words, conversation), str(error))
        return
    conversation.ledger = context_ledger(
        model.chat_model,
        conversation.messages(turn.question, turn),
        max_new_tokens=settings.max_new_tokens,
        left_out=conversation.left_out,
    )
    conversation.writing = writing = Writing(_written(model, store, conversation, turn, sampling, settings))
    writing.start()
    start = begun(conversation, turn, SKIP if is_listed else listed(store, words, conversation))
    yield from _shown(store, words, tab, writing, start)


def follow(store: Store, words: str, tab: Tab) -> Generator[Update, None, None]:
    """Show the tab's conversation, and a turn that is being written already: since before the tab was loaded again, or
    by another one's wish.
    """
    writing, now = tab.conversation.writing, _now(store, words, tab)
    if writing:
        yield from only_news(_shown(store, words, tab, writing, now))
    else:
        yield now


def _shown(
    store: Store, words: str, tab: Tab, writing: Writing[Update], start: Update
) -> Generator[Update, None, None]:
    """What the tab shows of a turn until it ends, or the tab shows another conversation.

    What was on its way while the tab opened that one may reach the page after it, so the page is told once more.
    """
    conversation, opened = tab.conversation, tab.opened
    with closing(writing.follow(tab, start)) as updates:
        for update in updates:
            if tab.opened != opened:
                break
            yield update
    if tab.opened == opened:
        yield at_rest(conversation, listed(store, words, conversation), writing.trouble)
    if tab.opened != opened:
        yield _now(store, words, tab)


def _now(store: Store, words: str, tab: Tab) -> Update:
    """What the tab shows now, all of it."""
    conversation = tab.conversation
    listing = listed(store, words, conversation)
    if conversation.writing:
        return joined(conversation, conversation.turns[-1], listing)
    return at_rest(conversation, listing)


def _written(
    model: Model, store: Store, conversation: Conversation, turn: Turn, sampling: Sampling, settings: Settings
) -> Generator[Update, None, None]:
    """What pages render of a turn until it ends; each piece is stored before, and the turn's end too, however it
    ends."""
    try:
        yield from _rendered(model, store, conversation, turn, sampling, settings)
    finally:
        if turn.running:
            turn.end(time.monotonic())
        with suppress(InputError):  # told before, or by the next question
            store.write(conversation, turn)
        conversation.writing = None


def _rendered(
    model: Model, store: Store, conversation: Conversation, turn: Turn, sampling: Sampling, settings: Settings
) -> Generator[Update, None, None]:
    """The turn as it is written, for which the model is waited first.

    A new state is rendered at once, more text in its time: `apps.chat.view.live` shows it until then.
    """
    while not model.lock.acquire(timeout=POLL_S):
        if turn.stop_requested:
            return
        yield waiting("The model is answering another tab; this question is next")
    if model.ahead:
        model.ahead.forget()
    pieces = run_turn(
        model.chat_model,
        conversation.messages(turn.question, turn),
        turn,
        sampling,
        time.monotonic,
        thinking_budget=settings.thinking_budget,
    )
    pace, state = RenderPace(RENDERS_PER_S), turn.state
    pace.is_due(time.monotonic())  # it has just been rendered
    try:
        with closing(pieces):
            for _ in pieces:
                store.write(conversation, turn)
                if pace.is_due(time.monotonic()) or turn.state != state:
                    state = turn.state
                    yield running(conversation, turn)
    finally:
        model.lock.release()


def seed_of(turn: Turn) -> int:
    """The turn's own, where it goes on; a new one otherwise, and where an imported file says something else."""
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
