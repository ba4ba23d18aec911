"""Thumbs and corrections on the page; nothing is written unless the checkbox in the settings is ticked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from apps.chat.conversation.feedback import TRACES, keep
from apps.chat.conversation.tab import Tab
from apps.chat.conversation.turn import Turn
from apps.chat.panels.settings_panel import Panel, Settings
from apps.chat.view.events import quiet
from apps.chat.view.markup import harmless
from apps.chat.view.page_messages import turn_of_message
from toolkit.errors import InputError

NO_CONSENT = "Feedback is not kept. To keep it, open the settings and tick “Keep my feedback as training data”."
FeedbackUpdate = tuple[Any, ...]
"""New values of the note, the form, and the thought and the answer in it."""


class FeedbackPanel:
    """A note below the question, and the form for a corrected thought and answer, which a thumb down opens."""

    def __init__(self, folder: Path, teacher: str, chatbot: gr.Chatbot, tab: gr.State, settings: Panel) -> None:
        """`folder`: where feedback is kept. `teacher`: the name of the model that gives the answers."""
        self._folder, self._teacher = folder, teacher
        with gr.Column(elem_id="feedback"):
            note = gr.Markdown(elem_id="feedback-note", visible=False)
            with gr.Column(visible=False, elem_id="correction") as form:
                thought = gr.Textbox(label="The thought as it should be (may be empty)", max_lines=6)
                answer = gr.Textbox(label="The answer as it should be", max_lines=6, elem_id="corrected-answer")
                with gr.Row():
                    save = gr.Button("Keep the correction", size="sm", variant="primary", elem_id="keep-correction")
                    dismiss = gr.Button("Discard it", size="sm")
        private = quiet(note, queue=False)
        shown = [note, form, thought, answer]
        chatbot.like(self._rate, [tab, *settings], shown, **private)
        save.click(self._save, [tab, thought, answer, *settings], shown, **private)
        dismiss.click(lambda: _noted(""), None, shown, **private)

    def _rate(self, event: gr.LikeData, tab: Tab, *panel_values: Any) -> FeedbackUpdate:
        index = event.index if isinstance(event.index, int) else event.index[0]
        try:
            if not Settings.of_panel(panel_values).keeps_feedback:
                return _noted(NO_CONSENT)
            turn = turn_of_message(tab.conversation, index)
            if turn.running:
                return _noted("The answer is not finished; rate it when it is.")
            if event.liked is False:
                tab.corrected = turn
                return gr.skip(), gr.update(visible=True), turn.reasoning, turn.answer
            return self._keep(tab, turn, turn.answer, turn.reasoning)
        except InputError as error:
            return _noted(str(error))

    def _save(self, tab: Tab, thought: str, answer: str, *panel_values: Any) -> FeedbackUpdate:
        try:
            if not Settings.of_panel(panel_values).keeps_feedback:
                return _noted(NO_CONSENT)
            return self._keep(tab, tab.corrected, answer, thought) if tab.corrected else _noted("")
        except InputError as error:
            return gr.update(value=harmless(str(error)), visible=True), *(gr.skip(),) * 3

    def _keep(self, tab: Tab, turn: Turn, answer: str, thought: str) -> FeedbackUpdate:
        keep(self._folder, tab.conversation, turn, teacher=self._teacher, answer=answer, reasoning=thought)
        return _noted(f"Kept in {self._folder / TRACES}, for `toolkit distill --traces`.")


def _noted(text: str) -> FeedbackUpdate:
    return gr.update(value=harmless(text), visible=bool(text)), gr.update(visible=False), "", ""
