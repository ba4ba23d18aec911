"""The context ledger on the page, recounted while the user types, with ways out for a question that does not fit."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import gradio as gr

from apps.chat.conversation.context import ContextLedger, context_ledger, ledger_html
from apps.chat.conversation.tab import Tab
from apps.chat.panels.settings_panel import Panel, Settings
from apps.chat.view.events import quiet
from apps.chat.view.markup import harmless
from apps.model import Model
from toolkit.errors import InputError

ContextUpdate = tuple[Any, ...]
"""New values of the ledger, and whether each button is shown: leave out, put back, new chat, shorten."""


class LedgerPanel:
    """The ledger's part of the page; an event that has changed the conversation runs `recount` afterwards.

    While a turn is written, the updates of the turn include `shown`.
    """

    def __init__(self, model: Model, tab: gr.State, question: gr.Textbox, settings: Panel) -> None:
        self._model = model
        with gr.Column(elem_id="ledger"):
            self.shown = gr.Markdown(elem_id="ledger-shown")  # gr.HTML evaluates strings, which the policy forbids
            with gr.Row(elem_id="ways-out"):
                leave_out = gr.Button("Leave them out", visible=False, **_SMALL)
                put_back = gr.Button("Send them again", visible=False, **_SMALL)
                new_chat = gr.Button("Start a new chat", visible=False, elem_id="ask-anew", **_SMALL)
                shorten = gr.Button("Shorten the question", visible=False, elem_id="shorten", **_SMALL)
        private = quiet(self.shown, queue=False)
        inputs = [question, tab, *settings]
        outputs = [self.shown, leave_out, put_back, new_chat, shorten]
        self.recount = private | {"fn": self._recount, "inputs": inputs, "outputs": outputs}
        changes = [question.change, question.focus, *(control.change for control in settings)]
        gr.on(changes, **self.recount, trigger_mode="always_last")
        leave_out.click(self._leave_out, inputs, outputs, **private)
        put_back.click(self._put_back, inputs, outputs, **private)

    def _recount(self, question: str, tab: Tab, *panel_values: Any) -> ContextUpdate:
        if tab.conversation.busy:
            return (gr.skip(),) * 5
        try:
            return _shown(self._count(question, tab, panel_values))
        except InputError as error:  # a template that takes no system prompt
            return harmless(str(error)), *(_there(False) for _ in range(4))

    def _leave_out(self, question: str, tab: Tab, *panel_values: Any) -> ContextUpdate:
        with suppress(InputError):  # which the recount reports
            tab.conversation.left_out += self._count(question, tab, panel_values).must_leave
        return self._recount(question, tab, *panel_values)

    def _put_back(self, question: str, tab: Tab, *panel_values: Any) -> ContextUpdate:
        tab.conversation.left_out = 0
        return self._recount(question, tab, *panel_values)

    def _count(self, question: str, tab: Tab, panel_values: tuple[Any, ...]) -> ContextLedger:
        settings, conversation = Settings.of_panel(panel_values), tab.conversation
        conversation.system = settings.system
        messages = conversation.messages(question, tab.edited)
        if self._model.ahead:
            self._model.ahead.offer(messages)
        return context_ledger(
            self._model.chat_model,
            messages,
            max_new_tokens=settings.max_new_tokens,
            left_out=conversation.left_out,
        )


_SMALL: dict[str, Any] = {"size": "sm", "scale": 0, "min_width": 170}


def _shown(ledger: ContextLedger) -> ContextUpdate:
    return (
        ledger_html(ledger),
        _there(ledger.leaving_helps),
        _there(ledger.left_out > 0),
        _there(not ledger.fits and bool(ledger.turns)),
        _there(not ledger.fits),
    )


def _there(visible: bool) -> dict[str, Any]:
    return gr.update(visible=visible)
