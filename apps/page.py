"""The Gradio page: its layout, and the handlers between it and the model.

What a tab shows is its `Tab`, kept by the server and changed in place; `conversation.writer` is the tab whose handler
is writing a turn of it. The model answers one turn at a time: whoever holds `model.lock`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import gradio as gr

from apps import badge
from apps.context_ledger import RESERVE_SHARE
from apps.conversation import Conversation, Pace, Turn, run_turn
from apps.events import quiet
from apps.feedback import FEEDBACK
from apps.feedback_panel import FeedbackPanel
from apps.latest import Latest
from apps.ledger_panel import LedgerPanel
from apps.live import RENDERS_PER_S
from apps.markup import harmless
from apps.model import Model
from apps.settings import Kept, Settings, remember, restored, settings_panel
from apps.sidebar import connect, lay_out
from apps.store import Store
from apps.tab import POLL_S, Tab
from apps.turn_links import BOX, action_of
from apps.updates import (
    NOTHING,
    SKIP,
    Update,
    at_rest,
    begun,
    editing,
    listed,
    only_news,
    refused,
    running,
    waiting,
    without,
)
from toolkit.errors import InputError
from toolkit.generate import Sampling

EXAMPLES = (
    "Find the Greatest Common Divisor (GCD) of these numbers: 84, 36. Give only the GCD as your final answer.",
    "State the final answer to the following arithmetic problem: 57 + 87 + 70 =",
    'How many times does the letter "e" appear in the text: "free the witness"?',
    "Spell this word backward (example: sun -> nus): reason",
)

LATEX_DELIMITERS: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": r"\[", "right": r"\]", "display": True},
    {"left": r"\(", "right": r"\)", "display": False},
]

MESSAGES: dict[str, Any] = {
    "show_label": False,
    "container": False,
    "scale": 1,
    "height": "100%",
    "layout": "panel",
    "buttons": ["copy"],
    "group_consecutive_messages": False,
    "latex_delimiters": LATEX_DELIMITERS,
    "allow_tags": False,
    "sanitize_html": True,
}
"""How a chatbot component shows what a model writes, on this page and in a comparison: copied, and never as HTML."""


def answer(model: Model, store: Store, question: str, words: str, tab: Tab, *panel_values: Any) -> Iterator[Update]:
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
        yield from _go_on(model, store, words, tab, turn, action, Settings.of_panel(panel_values))


def _go_on(
    model: Model, store: Store, words: str, tab: Tab, turn: Turn, action: str, settings: Settings
) -> Iterator[Update]:
    """Let a turn go on, or its answer begin; where the context is full, say first what must leave it."""
    conversation, context = tab.conversation, model.decoder.max_length
    leaving = conversation.must_leave(turn, model.chat_format, context, wanted=context // RESERVE_SHARE)
    answers = action.startswith("answer")
    if leaving and not action.endswith("-without"):
        yield without(conversation, turn, leaving, "answer-without" if answers else "go-on-without")
        return
    conversation.left_out += leaving
    try:
        turn = conversation.resume(turn, model.chat_format, context)
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
    if not question.strip() or conversation.busy:
        yield NOTHING
        return
    settings = Settings.of_panel(panel_values)
    conversation.system = settings.system
    try:
        turn = conversation.ask(question, model.chat_format, model.decoder.max_length, instead_of=instead_of)
    except InputError as error:
        yield refused(str(error))
        return
    yield from only_news(_run(model, store, words, tab, turn, settings))


def _run(
    model: Model, store: Store, words: str, tab: Tab, turn: Turn, settings: Settings
) -> Generator[Update, None, None]:
    """Let the model write; each piece is stored before it is shown, and the turn's end too, however it ends."""
    conversation = tab.conversation
    sampling = settings.sampling(seed_of(turn))
    turn.is_in_one_piece = not model.goes_on
    turn.model = model.name
    turn.settings = asdict(sampling) | {"thinking_budget": settings.thinking_budget, "system": conversation.system}
    conversation.writer = tab
    tab.edited, trouble = None, ""
    is_listed = conversation.id is not None
    if model.chat_format.opens_reasoning and not turn.token_ids and not model.lock.locked():
        turn.start(model.chat_format, time.monotonic())  # its thought is on the page from the beginning
    try:
        store.write(conversation, turn)
        start = begun(conversation, turn, SKIP if is_listed else listed(store, words, conversation))
        with closing(Latest(_written(model, store, conversation, turn, sampling, settings))) as updates:
            yield start
            yield from updates
    except InputError as error:
        trouble = str(error)
    finally:
        if turn.running:
            turn.end(model.chat_format, time.monotonic())
        with suppress(InputError):  # told before, or by the next question
            store.write(conversation, turn)
        conversation.writer = None
    yield at_rest(conversation, listed(store, words, conversation), trouble)


def _written(
    model: Model, store: Store, conversation: Conversation, turn: Turn, sampling: Sampling, settings: Settings
) -> Generator[Update, None, None]:
    """What the page renders of a turn until it ends, each time after it is stored; first it waits for the model.

    A new state is rendered at once, more text in its time: `apps.live` shows it until then.
    """
    while not model.lock.acquire(timeout=POLL_S):
        if turn.stop_requested:
            return
        yield waiting("The model is answering another tab; this question is next")
    if model.ahead:
        model.ahead.forget()
    pieces = run_turn(
        model.decoder,
        model.chat_format,
        conversation.messages(turn.question, turn),
        turn,
        sampling,
        time.monotonic,
        thinking_budget=settings.thinking_budget,
    )
    pace, state = Pace(RENDERS_PER_S), turn.state
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


def build_page(model: Model, store: Store, compare_path: str = "") -> gr.Blocks:
    """Lay the page out and connect it to the model; `compare_path` leads to a comparison with another one."""
    page = gr.Blocks(title=f"{model.name} · chat", analytics_enabled=False, fill_height=True)
    with page:
        tab = gr.State(Tab())
        sidebar = lay_out()
        with gr.Row(elem_id="top"):
            gr.Markdown(_title(model, compare_path), elem_id="title")
            gr.Markdown(badge.TEXT, elem_id="badge")
            new_chat = gr.Button("New chat", elem_id="new-chat", size="sm", scale=0, min_width=96)
        chatbot = _chatbot(model)
        notice = gr.Markdown(elem_id="notice", visible=False)
        question = _question()
        chosen = gr.Textbox(elem_id=BOX, container=False)
        with gr.Row(elem_id="below"):
            status = gr.Markdown("Ready", elem_id="status")
            answers = gr.Button("Answer now", elem_id="answer-now", size="sm", scale=0, min_width=96, visible=False)
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            kept, context = Kept(store.folder), model.decoder.max_length
            settings = settings_panel(restored(kept.read(), context), context, str(store.folder / FEEDBACK))
            remember(page, kept, settings, context)
        ledger = LedgerPanel(model, tab, question, settings)
        FeedbackPanel(store.folder / FEEDBACK, model.name, chatbot, tab, settings)

        shown = [chatbot, question, status, notice, answers, sidebar.listing]
        private = quiet(status)
        asked: dict[str, Any] = private | {"outputs": shown, "concurrency_limit": None}
        here = [sidebar.search, tab, *settings]
        ask: dict[str, Any] = asked | {"fn": partial(answer, model, store), "inputs": [question, *here]}
        question.submit(**ask).then(**ledger.recount)
        chatbot.example_select(_picked, None, question, queue=False, **private).then(**ask).then(**ledger.recount)
        chatbot.retry(partial(ask_again, model, store), here, **asked).then(**ledger.recount)
        chosen.change(partial(act, model, store), [chosen, *here], **asked).then(**ledger.recount)
        answers.click(answer_now, tab, answers, queue=False, **private)
        question.stop(stop, tab, None, queue=False, **private)
        new_chat.click(partial(start_over, store), here[:2], **asked).then(**ledger.recount)
        connect(sidebar, store, tab, shown)
        page.load(partial(_listing, store), here[:2], sidebar.listing, queue=False, **private)
        page.load(**ledger.recount)
    return page


def _chatbot(model: Model) -> gr.Chatbot:
    return gr.Chatbot(
        elem_id="chat",
        editable="user",
        **MESSAGES,
        placeholder="## Ask something\nThe model thinks first, then answers."
        + ("" if model.endpoint else " Both stay on this machine."),
        examples=[{"text": example} for example in EXAMPLES],
    )


def _question() -> gr.Textbox:
    return gr.Textbox(
        elem_id="question",
        label="Your question",
        show_label=False,
        placeholder="Ask a question",
        lines=1,
        max_lines=8,
        submit_btn="Send",
        stop_btn=False,
        autofocus=True,
    )


def _title(model: Model, compare_path: str) -> str:
    compare = f" · [compare]({compare_path})" if compare_path else ""
    return f"# {harmless(model.name)}\n{harmless(model.facts)}{compare}"


def _listing(store: Store, words: str, tab: Tab) -> dict[str, Any]:
    return listed(store, words, tab.conversation)


def _picked(event: gr.SelectData) -> str:
    return str(event.value["text"])
