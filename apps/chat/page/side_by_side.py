"""Compares two models on one question, side by side: their answers, speeds and sizes, and whether they are right.

They answer one after the other, so that each has the machine to itself and shows its own speed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gradio as gr

from apps.chat.conversation.author import Author
from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.feed import Feed
from apps.chat.conversation.turn import Turn
from apps.chat.look import badge
from apps.chat.page.known_answers import is_right, right_answer
from apps.chat.page.page import MESSAGES
from apps.chat.page.updates import QUEUED, asked
from apps.chat.view.events import News, quiet
from apps.chat.view.markup import as_typed, harmless
from apps.chat.view.page_messages import page_messages, status_line
from apps.model import Model
from toolkit.errors import InputError
from toolkit.generation.generate import Sampling

PATH = "/compare"


@dataclass(kw_only=True)
class Side:
    """One model's answer to the question."""

    model: Model
    conversation: Conversation = field(default_factory=Conversation)
    feed: Feed | None = None
    """The feed of the answer, once the model has been asked."""
    trouble: str = ""
    """Why the model could not be asked; empty if it could."""

    def ask(self, question: str, sampling: Sampling) -> Feed:
        """Let the model answer; raises `InputError` if the question does not fit its context."""
        turn = self.conversation.ask(question, self.model.chat_model)
        self.feed = Author(self.model).begin(self.conversation, turn, sampling)
        return self.feed

    def shown(self, *, is_stopped: bool) -> list[Any]:
        """Return the messages, without the question, which is shown above both sides, and the verdict."""
        trouble = self.trouble or (self.feed.trouble if self.feed else "")
        snapshot = self.feed.newest if self.feed else None
        if snapshot is None:
            return [[], harmless(trouble) or ("Not asked" if is_stopped else "Waiting for the other model")]
        if snapshot.is_queued:
            return [[], QUEUED]
        messages = page_messages(self.conversation.as_of(snapshot.turn), time.monotonic())
        answered = [message for message in messages if message["role"] != "user"]
        return [answered, harmless(trouble) or _verdict(snapshot.turn)]


@dataclass(kw_only=True)
class SideBySide:
    """What a tab compares: the question, and both sides once it has been asked."""

    question: str = ""
    sides: list[Side] = field(default_factory=list)
    stop_requested: bool = False
    busy: bool = False

    def shown(self) -> list[Any]:
        """Return the question, and the messages and verdict of each side."""
        sides = (side.shown(is_stopped=self.stop_requested) for side in self.sides)
        return [as_typed(self.question), *(value for side in sides for value in side)]


def ask(models: Sequence[Model], question: str, comparison: SideBySide) -> Generator[tuple[Any, ...], None, None]:
    """Let both models answer, one after the other, and show them as they write."""
    if not question.strip() or comparison.busy:
        yield (gr.skip(),) * 6
        return
    comparison.question, comparison.sides = question, [Side(model=model) for model in models]
    comparison.stop_requested, comparison.busy = False, True
    sampling, news = Sampling(seed=secrets.randbelow(2**31)), News()
    try:
        yield news.of([asked(), *comparison.shown()])
        for side in comparison.sides:
            if comparison.stop_requested:
                break
            try:
                feed = side.ask(question, sampling)
            except InputError as error:
                side.trouble = str(error)
                continue
            with closing(feed.follow(comparison)) as snapshots:
                for _ in snapshots:
                    yield news.of([gr.skip(), *comparison.shown()])
    finally:
        stop(comparison)  # the page may be gone
        comparison.busy = False
    yield news.of([gr.update(submit_btn="Send", stop_btn=False), *comparison.shown()])


def stop(comparison: SideBySide) -> None:
    """Ask the running turn to end, and keep the next one from beginning."""
    comparison.stop_requested = True
    for side in comparison.sides:
        for turn in side.conversation.turns:
            turn.stop_requested = True


def build_compare(models: Sequence[Model]) -> gr.Blocks:
    """Lay out the page and connect it to both models."""
    page = gr.Blocks(title=f"{models[0].name} and {models[1].name}", analytics_enabled=False, fill_height=True)
    with page:
        comparison = gr.State(SideBySide())
        with gr.Row(elem_id="top"):
            gr.Markdown("# Compare\nTwo models, one question · [back to the chat](/)", elem_id="title")
            gr.Markdown(badge.TEXT, elem_id="badge")
        shown: list[gr.components.Component] = []
        above = gr.Markdown(elem_id="asked")
        with gr.Row(elem_id="sides", equal_height=True):
            for model in models:
                with gr.Column(min_width=300):
                    gr.Markdown(f"## {harmless(model.name)}\n{harmless(model.facts)}", elem_classes="name")
                    verdict = gr.Markdown(elem_classes="verdict")
                    shown += [gr.Chatbot(elem_classes="answers", **MESSAGES), verdict]
        learned = next((model.questions for model in models if model.questions), ())
        with gr.Row(elem_id="examples", visible=bool(learned)):
            examples = [gr.Button(text, size="sm", min_width=120) for text in learned]
        question = gr.Textbox(
            elem_id="question",
            label="Your question to both",
            show_label=False,
            placeholder="Ask both a question",
            submit_btn="Send",
            stop_btn=False,
            autofocus=True,
        )
        private = quiet(above)
        run: dict[str, Any] = private | {
            "fn": partial(ask, models),
            "inputs": [question, comparison],
            "outputs": [question, above, *shown],
            "concurrency_limit": None,
        }
        question.submit(**run)
        question.stop(stop, comparison, None, queue=False, **private)
        for button, text in zip(examples, learned, strict=True):
            button.click(partial(_same, text), None, question, queue=False, **private).then(**run)
    return page


def _verdict(turn: Turn) -> str:
    """Say how fast the answer came, and whether it is right if that is known."""
    facts = [status_line(turn)]
    mark = None if turn.running else is_right(turn.question, turn.answer)
    if mark is not None:
        facts.append("**✓ right**" if mark else f"**✗ wrong**, it is {right_answer(turn.question)}")
    return " · ".join(filter(None, facts))


def _same(text: str) -> str:
    return text
