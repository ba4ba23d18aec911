"""Lays out the Gradio page and connects each event to its handler."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from apps.chat.conversation.author import Author
from apps.chat.conversation.feedback import FEEDBACK
from apps.chat.conversation.store import Store
from apps.chat.conversation.tab import Tab
from apps.chat.look import badge
from apps.chat.page.dialogue import act, answer, answer_now, ask_again, start_over, stop
from apps.chat.page.sidebar import connect, lay_out
from apps.chat.page.updates import listed
from apps.chat.panels.context_panel import LedgerPanel
from apps.chat.panels.feedback_panel import FeedbackPanel
from apps.chat.panels.settings_panel import SavedSettings, remember, restored, settings_panel
from apps.chat.view.events import quiet
from apps.chat.view.markup import DOLLAR, harmless
from apps.model import Model

LATEX_DELIMITERS: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": r"\[", "right": r"\]", "display": True},
    {"left": r"\(", "right": r"\)", "display": False},
    {"left": DOLLAR[0], "right": DOLLAR[1], "display": False},
]

MESSAGES: dict[str, Any] = {
    "show_label": False,
    "container": False,
    "scale": 1,
    "height": "100%",
    "layout": "panel",
    "buttons": ["copy"],
    "autoscroll": False,  # `reading.js` does it: Gradio's own takes readers back to an end that they have left
    "group_consecutive_messages": False,
    "latex_delimiters": LATEX_DELIMITERS,
    "allow_tags": False,
    "sanitize_html": True,
}
"""Options of a chatbot component, here and in a comparison: what a model writes can be copied and is never HTML."""


def build_page(author: Author, store: Store, compare_path: str = "") -> gr.Blocks:
    """Lay out the page and connect it to the author; `compare_path` is the address of a comparison, if there is one."""
    model = author.model
    page = gr.Blocks(title=f"{model.name} · chat", analytics_enabled=False, fill_height=True)
    with page:
        tab = gr.State(Tab())
        sidebar = lay_out()
        with gr.Row(elem_id="top"):
            gr.Markdown(_title(model, compare_path), elem_id="title")
            gr.Markdown(badge.TEXT, elem_id="badge")
            new_chat = gr.Button("New chat", elem_id="new-chat", size="sm", scale=0, min_width=96)
        chatbot = _chatbot(model)
        notice = gr.Markdown(harmless(store.damage), elem_id="notice", visible=bool(store.damage))
        question = _question()
        chosen = gr.Textbox(elem_id="chosen", container=False)
        with gr.Row(elem_id="below"):
            status = gr.Markdown("Ready", elem_id="status")
            answers = gr.Button("Answer now", elem_id="answer-now", size="sm", scale=0, min_width=96, visible=False)
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            kept, context = SavedSettings(store.folder), model.chat_model.max_length
            settings = settings_panel(restored(kept.read(), context), context, str(store.folder / FEEDBACK))
            remember(page, kept, settings, context)
        ledger = LedgerPanel(model, tab, question, settings)
        FeedbackPanel(store.folder / FEEDBACK, model.name, chatbot, tab, settings)

        shown = [chatbot, question, status, notice, answers, ledger.shown, sidebar.listing]
        private = quiet(status)
        asked: dict[str, Any] = private | {"outputs": shown, "concurrency_limit": None}
        here = [sidebar.search, tab, *settings]
        ask: dict[str, Any] = asked | {"fn": partial(answer, author, store), "inputs": [question, *here]}
        question.submit(**ask).then(**ledger.recount)
        chatbot.example_select(_picked, None, question, queue=False, **private).then(**ask).then(**ledger.recount)
        chatbot.retry(partial(ask_again, author, store), here, **asked).then(**ledger.recount)
        chosen.change(partial(act, author, store), [chosen, *here], **asked).then(**ledger.recount)
        answers.click(answer_now, tab, answers, queue=False, **private)
        question.stop(stop, tab, None, queue=False, **private)
        new_chat.click(partial(start_over, store), here[:2], **asked).then(**ledger.recount)
        connect(sidebar, store, tab, shown, ledger.recount)
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
        examples=[{"text": question} for question in model.questions],
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
