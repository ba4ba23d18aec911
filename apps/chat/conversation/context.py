"""Counts how a question would fill the model's context, in exact tokens, and which messages would have to leave.

    |< system >|< history >|< question >|< reserve: thinking and answer >|  free  |
    |<------------------------ the model's context ------------------------------>|

The prompt is counted whole, as the model reads it. A part counts as many tokens as it adds to a short prompt, and the
question gets the rest, so the parts always sum to the prompt; an empty question counts nothing. While a turn is being
written, its tokens take the place of the reserve. Nothing here decides: it only names the messages that would leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from itertools import pairwise

from apps.chat.conversation.turn import LEAST_ROOM
from toolkit.generation.chat_model import ChatModel
from toolkit.records import Message

RESERVE_SHARE = 4
"""A model's turn is promised a quarter of the context, or the maximum number of tokens if that is less."""
TITLE_LENGTH = 48
MOST_NAMED, MOST_LISTED = 3, 100
"""Most titles in a sentence, and in the list that scrolls."""


@dataclass(frozen=True, kw_only=True)
class ContextLedger:
    """Number of tokens of each part; `turns` and `questions` are those that are sent, oldest first."""

    context: int
    system: int
    turns: tuple[int, ...]
    questions: tuple[str, ...]
    question: int
    reserve: int
    left_out: int
    """Number of older turns that are already left out."""

    @property
    def history(self) -> int:
        return sum(self.turns)

    @property
    def prompt(self) -> int:
        return self.system + self.history + self.question

    @property
    def room(self) -> int:
        """Number of tokens that fit after the prompt; negative if the prompt alone is too long."""
        return self.context - self.prompt

    @property
    def fits(self) -> bool:
        return self.room >= self.reserve

    @property
    def must_leave(self) -> int:
        """How many of the oldest turns sent must leave so that the reserve fits; all of them if that is not enough."""
        room, count = self.room, 0
        for tokens in self.turns:
            if room >= self.reserve:
                break
            room, count = room + tokens, count + 1
        return count

    @property
    def leaving_helps(self) -> bool:
        """Whether an answer has room, however little, once they have left."""
        return self.must_leave > 0 and self.room + sum(self.turns[: self.must_leave]) >= LEAST_ROOM


def context_ledger(
    model: ChatModel, messages: Sequence[Message], *, max_new_tokens: int, left_out: int
) -> ContextLedger:
    """Count what would be sent: `messages`, of which the last is the question, without the `left_out` oldest turns."""
    before = tuple((message["role"], message["content"]) for message in messages[:-1])
    system_tokens, turns = _before_question(model, before)
    prompt = model.count(messages)
    return ContextLedger(
        context=model.max_length,
        system=system_tokens,
        turns=turns,
        questions=tuple(content for role, content in before if role == "user"),
        question=prompt - system_tokens - sum(turns) if messages[-1]["content"].strip() else 0,
        reserve=min(max_new_tokens, model.max_length // RESERVE_SHARE),
        left_out=left_out,
    )


@lru_cache(maxsize=64)  # the same with each letter that is typed
def _before_question(model: ChatModel, before: tuple[tuple[str, str], ...]) -> tuple[int, tuple[int, ...]]:
    """Count the tokens that the system prompt, and each turn, adds to a short prompt."""
    system = tuple(message for message in before if message[0] == "system")
    starts = [i for i, (role, _) in enumerate(before) if role == "user"] + [len(before)]
    empty = _prompt_size(model, system)
    sizes = [_prompt_size(model, (*system, *before[start:end])) for start, end in pairwise(starts)]
    return empty - _prompt_size(model, ()), tuple(size - empty for size in sizes)


def _prompt_size(model: ChatModel, before: Sequence[tuple[str, str]]) -> int:
    return model.count([{"role": role, "content": content} for role, content in (*before, ("user", "?"))])


def ledger_html(ledger: ContextLedger, written: int | None = None) -> str:
    """Draw the bar and its legend, with a warning if the reserve does not fit.

    `written`: number of tokens of a turn that is being written.
    """
    last = ("reserve", ledger.reserve, "kept for the answer") if written is None else ("written", written, "written")
    parts = [
        ("system", ledger.system, "system"),
        ("history", ledger.history, "history"),
        ("question", ledger.question, "question"),
        last,
    ]
    whole = max(ledger.context, sum(tokens for _, tokens, _ in parts))
    bar = "".join(f'<i class="{name}" style="width:{100 * tokens / whole:.2f}%"></i>' for name, tokens, _ in parts)
    legend = " ".join(
        f'<span class="{name}"><b>{tokens:,}</b> {words}</span>' for name, tokens, words in parts if tokens
    )
    total = f"{ledger.prompt + (written or 0):,} of {ledger.context:,} tokens"
    state = " writing" if written is not None else "" if ledger.fits else " overflow"
    warning = _warning(ledger) if written is None else ""
    return (
        f'<div class="ledger{state}" role="group" aria-label="Context: '
        f'{total}"><div class="bar" aria-hidden="true">{bar}'
        f'</div><div class="legend"><span class="total">{total}</span> {legend}</div>{warning}</div>'
    )


def _warning(ledger: ContextLedger) -> str:
    """Say what does not fit, which messages would leave, and which have left by the user's choice."""
    leaving = ledger.questions[: ledger.must_leave]
    text = f"Left out, as you chose: {oldest(ledger.left_out)}. " if ledger.left_out else ""
    if not ledger.fits:
        room = f"room for {ledger.room:,} of them" if ledger.room >= LEAST_ROOM else "no room for an answer"
        text += f"{ledger.reserve:,} tokens are kept for thinking and answer, but there is {room}. "
    if ledger.leaving_helps:
        room = f"{min(ledger.reserve, ledger.room + sum(ledger.turns[: ledger.must_leave])):,}"
        text += f"Without {oldest(ledger.must_leave)} there would be room for {room}: {names(leaving)}."
    elif not ledger.fits:
        text += "Leaving messages out is not enough: shorten the question."
    return f'<p role="status">{_text(text)}</p>{listing(leaving) if ledger.leaving_helps else ""}' if text else ""


def oldest(number: int) -> str:
    """Name a number of turns in words."""
    if number == 1:
        return "the oldest question and its answer"
    return f"the {number} oldest questions and their answers"


def names(questions: Sequence[str]) -> str:
    """Quote the beginnings of these questions: only the first and last of many, which `listing` shows in full."""
    titles = [f"“{_title(question)}”" for question in questions]
    return ", ".join(titles) if len(titles) <= MOST_NAMED else f"from {titles[0]} to {titles[-1]}"


def listing(questions: Sequence[str]) -> str:
    """List the beginnings of many questions as HTML that scrolls on the page; empty for a few."""
    if len(questions) <= MOST_NAMED:
        return ""
    titles = [_title(question) for question in questions]
    if hidden := max(0, len(titles) - MOST_LISTED):
        titles[MOST_LISTED // 2 : -MOST_LISTED // 2] = [f"… {hidden:,} more …"]
    return f'<ul class="leaving" tabindex="0">{"".join(f"<li>{_text(title)}</li>" for title in titles)}</ul>'


def _text(text: str) -> str:
    return escape(text).replace("$", "&#36;")  # the renderer looks for mathematics everywhere


def _title(question: str) -> str:
    line = " ".join(question.split())
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1] + "…"
