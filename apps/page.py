"""The Gradio page: its layout, and the handlers between it and the model.

A tab has a `Conversation` of its own, kept by the server and changed in place; `conversation.busy` says that a handler
is still writing it to the tab. The model answers one turn at a time: whoever holds `model.lock`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr

from apps.conversation import Conversation, run_turn
from apps.feedback import feedback_folder
from apps.feedback_panel import FeedbackPanel
from apps.ledger_panel import LedgerPanel
from apps.markup import harmless
from apps.model import Model
from apps.settings import Settings, browser_store, remember, settings_panel
from apps.view import page_messages, status_line
from toolkit.errors import InputError

POLL_S = 0.1

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

Update = tuple[Any, ...]
"""New values of the chatbot, the question box, the status line and the notice."""

NOTHING: Update = (gr.skip(), gr.skip(), gr.skip(), gr.skip())


def answer(model: Model, question: str, conversation: Conversation, *panel_values: Any) -> Iterator[Update]:
    """Ask the model and show its turn as it is written. A question that does not fit stays in the box."""
    if not question.strip() or conversation.busy:
        yield NOTHING
        return
    settings = Settings.of_panel(panel_values)
    conversation.system = settings.system
    messages = conversation.messages(question)
    try:
        turn = conversation.ask(question, model.chat_format, model.decoder.max_length)
    except InputError as error:
        yield gr.skip(), gr.skip(), gr.skip(), _notice(str(error))
        return
    sampling = settings.sampling()
    conversation.busy = True
    try:
        yield page_messages(conversation, time.monotonic()), _box(running=True), status_line(turn), _notice("")
        while not model.lock.acquire(timeout=POLL_S):
            if turn.stop_requested:
                break
            yield gr.skip(), gr.skip(), "The model is answering another tab; this question is next", gr.skip()
        else:
            try:
                for _ in run_turn(model.decoder, model.chat_format, messages, turn, sampling, time.monotonic):
                    yield page_messages(conversation, time.monotonic()), gr.skip(), status_line(turn), gr.skip()
            finally:
                model.lock.release()
        if turn.running:
            turn.end(model.chat_format, time.monotonic())
        yield page_messages(conversation, time.monotonic()), _box(running=False), status_line(turn), gr.skip()
    finally:
        conversation.busy = False


def stop(conversation: Conversation) -> None:
    """Ask the running turn to end after its current token."""
    if conversation.turns:
        conversation.turns[-1].stop_requested = True


def start_over(conversation: Conversation) -> tuple[Any, ...]:
    """End the running turn, let its handler write its last, and only then show an empty conversation."""
    stop(conversation)
    while conversation.busy:
        time.sleep(POLL_S)
    return Conversation(), [], _box(running=False), "Ready", _notice("")


def build_page(model: Model) -> gr.Blocks:
    """Lay the page out and connect it to the model."""
    page = gr.Blocks(title=f"{model.name} · chat", analytics_enabled=False, fill_height=True)
    with page:
        conversation, stored = gr.State(Conversation()), browser_store()
        with gr.Row(elem_id="top"):
            gr.Markdown(_title(model), elem_id="title")
            new_chat = gr.Button("New chat", elem_id="new-chat", size="sm", scale=0, min_width=96)
        chatbot = _chatbot()
        notice = gr.Markdown(elem_id="notice", visible=False)
        question = _question()
        status = gr.Markdown("Ready", elem_id="status")
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            settings = settings_panel(model.decoder.max_length, str(feedback_folder()))
            remember(page, stored, settings, model.decoder.max_length)
        ledger = LedgerPanel(model, conversation, question, settings)
        FeedbackPanel(model.name, chatbot, conversation, settings)

        shown = [chatbot, question, status, notice]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        ask: dict[str, Any] = quiet | {
            "fn": partial(answer, model),
            "inputs": [question, conversation, *settings],
            "outputs": shown,
            "concurrency_limit": None,
        }
        page.load(**ledger.recount)
        question.submit(**ask).then(**ledger.recount)
        chatbot.example_select(_picked, None, question, queue=False, **quiet).then(**ask).then(**ledger.recount)
        question.stop(stop, conversation, None, queue=False, **quiet)
        new_chat.click(start_over, conversation, [conversation, *shown], concurrency_limit=None, **quiet).then(
            **ledger.recount
        )
    return page


def _chatbot() -> gr.Chatbot:
    return gr.Chatbot(
        elem_id="chat",
        show_label=False,
        container=False,
        scale=1,
        height="100%",
        layout="panel",
        buttons=["copy"],
        group_consecutive_messages=False,
        latex_delimiters=LATEX_DELIMITERS,
        allow_tags=False,
        sanitize_html=True,
        placeholder="## Ask something\nThe model thinks first, then answers. Both stay on this machine.",
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


def _box(*, running: bool) -> dict[str, Any]:
    """The question box: emptied and with Stop while the model answers, with Send otherwise."""
    if running:
        return gr.update(value="", submit_btn=False, stop_btn="Stop")
    return gr.update(submit_btn="Send", stop_btn=False)


def _notice(text: str) -> dict[str, Any]:
    return gr.update(value=harmless(text[:1].upper() + text[1:]), visible=bool(text))


def _title(model: Model) -> str:
    facts = (
        f"{model.size_bytes / 1e6:,.0f} MB · context {model.decoder.max_length:,} tokens · runs on this machine only"
    )
    return f"# {harmless(model.name)}\n{facts}"


def _picked(event: gr.SelectData) -> str:
    return str(event.value["text"])
