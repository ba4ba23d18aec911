"""Two models on one question, side by side: what each says, how fast, how large it is, and whether it is right.

They answer one after the other, so that each has the machine to itself and its speed is its own.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gradio as gr

from apps.chat.conversation.latest import Latest, RenderPace
from apps.chat.conversation.tab import POLL_S
from apps.chat.conversation.turns import Conversation, run_turn
from apps.chat.look import badge
from apps.chat.page.known_answers import is_right, right_answer
from apps.chat.page.page import EXAMPLES, MESSAGES
from apps.chat.view.events import quiet, spaced
from apps.chat.view.live import RENDERS_PER_S
from apps.chat.view.markup import as_typed, harmless
from apps.chat.view.page_messages import page_messages, status_line
from apps.model import Model
from toolkit.errors import InputError
from toolkit.generation.generate import Sampling

PATH = "/compare"
EXAMPLE_NAMES = ("Greatest common divisor", "A sum", "Count a letter", "Spell backward")


@dataclass(kw_only=True)
class Side:
    """One model's answer to the question."""

    model: Model
    conversation: Conversation = field(default_factory=Conversation)
    trouble: str = ""
    """Why the model could not be asked or broke off."""

    def messages(self, now: float) -> list[dict[str, Any]]:
        """What the chatbot component shows: the question stands above both, and not in each."""
        return [message for message in page_messages(self.conversation, now) if message["role"] != "user"]

    def verdict(self) -> str:
        """Speed, and whether the answer is right where that is known."""
        if self.trouble:
            return harmless(self.trouble)
        if not self.conversation.turns:
            return "Waits until the other has answered"
        (turn,) = self.conversation.turns
        facts = [status_line(turn)]
        mark = None if turn.running else is_right(turn.question, turn.answer)
        if mark is not None:
            facts.append("**✓ right**" if mark else f"**✗ wrong**, it is {right_answer(turn.question)}")
        return " · ".join(filter(None, facts))


@dataclass(kw_only=True)
class SideBySide:
    """What a tab shows: the question, and both sides once it is asked."""

    question: str = ""
    sides: list[Side] = field(default_factory=list)
    stop_requested: bool = False
    busy: bool = False

    def shown(self, now: float) -> list[Any]:
        """New values of the question above, and of each side's messages and verdict."""
        values = [value for side in self.sides for value in (side.messages(now), side.verdict())]
        return [as_typed(self.question), *values]


def ask(models: Sequence[Model], question: str, comparison: SideBySide) -> Iterator[list[Any]]:
    """Let both models answer, one after the other, and show them as they write."""
    yield from spaced(_asked(models, question, comparison))


def _asked(models: Sequence[Model], question: str, comparison: SideBySide) -> Generator[list[Any], None, None]:
    if not question.strip() or comparison.busy:
        yield [gr.skip()] * 6
        return
    comparison.question, comparison.sides = question, [Side(model=model) for model in models]
    comparison.stop_requested, comparison.busy = False, True
    sampling = Sampling(seed=secrets.randbelow(2**31))
    try:
        yield [gr.update(value="", submit_btn=False, stop_btn="Stop"), *comparison.shown(time.monotonic())]
        for side in comparison.sides:
            with closing(Latest(_answers(side, comparison, sampling)).start()) as views:
                for shown in views:
                    yield [gr.skip(), *shown]
    finally:
        comparison.busy = False
    yield [gr.update(submit_btn="Send", stop_btn=False), *comparison.shown(time.monotonic())]


def stop(comparison: SideBySide) -> None:
    """Ask the running turn to end, and the one after it not to begin."""
    comparison.stop_requested = True
    for side in comparison.sides:
        for turn in side.conversation.turns:
            turn.stop_requested = True


def build_compare(models: Sequence[Model]) -> gr.Blocks:
    """Lay the page out and connect it to both models."""
    page = gr.Blocks(title=f"{models[0].name} and {models[1].name}", analytics_enabled=False, fill_height=True)
    with page:
        comparison = gr.State(SideBySide())
        with gr.Row(elem_id="top"):
            gr.Markdown("# Compare\nTwo models, one question · [back to the chat](/)", elem_id="title")
            gr.Markdown(badge.TEXT, elem_id="badge")
        shown: list[gr.components.Component] = []
        asked = gr.Markdown(elem_id="asked")
        with gr.Row(elem_id="sides", equal_height=True):
            for model in models:
                with gr.Column(min_width=300):
                    gr.Markdown(f"## {harmless(model.name)}\n{harmless(model.facts)}", elem_classes="name")
                    verdict = gr.Markdown(elem_classes="verdict")
                    shown += [gr.Chatbot(elem_classes="answers", **MESSAGES), verdict]
        with gr.Row(elem_id="examples"):
            examples = [gr.Button(name, size="sm", min_width=120) for name in EXAMPLE_NAMES]
        question = gr.Textbox(
            elem_id="question",
            label="Your question to both",
            show_label=False,
            placeholder="Ask both a question",
            submit_btn="Send",
            stop_btn=False,
            autofocus=True,
        )
        private = quiet(asked)
        run: dict[str, Any] = private | {
            "fn": partial(ask, models),
            "inputs": [question, comparison],
            "outputs": [question, asked, *shown],
            "concurrency_limit": None,
        }
        question.submit(**run)
        question.stop(stop, comparison, None, queue=False, **private)
        for button, text in zip(examples, EXAMPLES, strict=True):
            button.click(partial(_same, text), None, question, queue=False, **private).then(**run)
    return page


def _answers(side: Side, comparison: SideBySide, sampling: Sampling) -> Generator[list[Any], None, None]:
    """One model's turn; what the tab shows, where that is something new."""
    model, conversation = side.model, side.conversation
    messages = conversation.messages(comparison.question)
    try:
        while not model.lock.acquire(timeout=POLL_S):
            yield comparison.shown(time.monotonic())
            if comparison.stop_requested:
                return
        try:
            if comparison.stop_requested:
                return
            pace = RenderPace(RENDERS_PER_S)
            turn = conversation.ask(comparison.question, model.chat_model)
            yield comparison.shown(time.monotonic())
            with closing(run_turn(model.chat_model, messages, turn, sampling, time.monotonic)) as pieces:
                for _ in pieces:
                    if pace.is_due(time.monotonic()):
                        yield comparison.shown(time.monotonic())
        finally:
            model.lock.release()
    except InputError as error:
        side.trouble = str(error)


def _same(text: str) -> str:
    return text
