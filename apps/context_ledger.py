"""What of the model's context a question would take, in exact tokens, and what would have to leave to make room.

    |< system >|< history >|< question >|< reserve: thinking and answer >|  free  |
    |<------------------------ the model's context ------------------------------>|

The prompt is counted whole, as the model reads it; a part is what the prompt grows by with it, and the question has
what remains, so the parts always sum up to the prompt. Nothing here decides: it names the messages that would leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape

from apps.conversation import LEAST_ROOM
from toolkit.chat_format import ChatFormat
from toolkit.records import Message

RESERVE_SHARE = 4
"""A model's turn is promised a quarter of the context, or the maximum of tokens where that is less."""
TITLE_LENGTH = 48


@dataclass(frozen=True, kw_only=True)
class ContextLedger:
    """Tokens of each part; `turns` are those that are sent, oldest first, with their questions."""

    context: int
    system: int
    turns: tuple[int, ...]
    questions: tuple[str, ...]
    question: int
    reserve: int
    left_out: int
    """How many older turns are not sent already."""

    @property
    def history(self) -> int:
        return sum(self.turns)

    @property
    def prompt(self) -> int:
        return self.system + self.history + self.question

    @property
    def room(self) -> int:
        """Tokens that the context holds after the prompt; negative where the prompt alone is too long."""
        return self.context - self.prompt

    @property
    def fits(self) -> bool:
        return self.room >= self.reserve

    @property
    def must_leave(self) -> int:
        """How many of the oldest turns that are sent must leave so that the reserve fits; all where none is enough."""
        room, count = self.room, 0
        for tokens in self.turns:
            if room >= self.reserve:
                break
            room, count = room + tokens, count + 1
        return count

    @property
    def leaving_helps(self) -> bool:
        """Whether the model has at least some room once they have left."""
        return self.must_leave > 0 and self.room + sum(self.turns[: self.must_leave]) >= LEAST_ROOM


def context_ledger(
    chat_format: ChatFormat, messages: Sequence[Message], *, max_new_tokens: int, context: int, left_out: int
) -> ContextLedger:
    """Count what would be sent: `messages` with the question as the last; `left_out` older turns are not among them."""
    before = tuple((message["role"], message["content"]) for message in messages[:-1])
    system_tokens, turns = _before_question(chat_format, before)
    prompt = len(chat_format.prompt_ids(messages))
    return ContextLedger(
        context=context,
        system=system_tokens,
        turns=turns,
        questions=tuple(content for role, content in before if role == "user"),
        question=prompt - system_tokens - sum(turns),
        reserve=min(max_new_tokens, context // RESERVE_SHARE),
        left_out=left_out,
    )


@lru_cache(maxsize=64)  # the same with each letter that is typed
def _before_question(chat_format: ChatFormat, before: tuple[tuple[str, str], ...]) -> tuple[int, tuple[int, ...]]:
    """Tokens of the system prompt and of each turn: what a short prompt grows by with them."""
    system = tuple(message for message in before if message[0] == "system")
    starts = [i for i, (role, _) in enumerate(before) if role == "user"] + [len(before)]
    sizes = [_prompt_size(chat_format, (*system, *before[start:])) for start in starts]
    return sizes[-1] - _prompt_size(chat_format, ()), tuple(sizes[i] - sizes[i + 1] for i in range(len(sizes) - 1))


def _prompt_size(chat_format: ChatFormat, before: Sequence[tuple[str, str]]) -> int:
    return len(
        chat_format.prompt_ids([{"role": role, "content": content} for role, content in (*before, ("user", "?"))])
    )


def ledger_html(ledger: ContextLedger) -> str:
    """The bar and its legend; a warning where the reserve does not fit."""
    parts = [
        ("system", ledger.system),
        ("history", ledger.history),
        ("question", ledger.question),
        ("reserve", ledger.reserve),
    ]
    whole = max(ledger.context, ledger.prompt + ledger.reserve)
    bar = "".join(f'<i class="{name}" style="width:{100 * tokens / whole:.2f}%"></i>' for name, tokens in parts)
    legend = " ".join(
        f'<span class="{name}"><b>{tokens:,}</b> {"for the answer" if name == "reserve" else name}</span>'
        for name, tokens in parts
        if tokens
    )
    total = f"{ledger.prompt + ledger.reserve:,} of {ledger.context:,} tokens"
    state = "" if ledger.fits else " overflow"
    return (
        f'<div class="ledger{state}" role="group" aria-label="Context: {total}"><div class="bar" aria-hidden="true">{bar}'
        f'</div><div class="legend"><span class="total">{total}</span> {legend}</div>{_warning(ledger)}</div>'
    )


def _warning(ledger: ContextLedger) -> str:
    """What does not fit and which messages would leave; what has left by the user's choice stays named."""
    text = f"Left out, as you chose: {oldest(ledger.left_out)}. " if ledger.left_out else ""
    if not ledger.fits:
        room = f"room for {ledger.room:,} of them" if ledger.room >= LEAST_ROOM else "no room for an answer"
        text += f"{ledger.reserve:,} tokens are kept for thinking and answer, but there is {room}. "
    if ledger.leaving_helps:
        room = f"{min(ledger.reserve, ledger.room + sum(ledger.turns[: ledger.must_leave])):,}"
        leaving = names(ledger.questions[: ledger.must_leave])
        text += f"Without {oldest(ledger.must_leave)} there would be room for {room}: {leaving}."
    elif not ledger.fits:
        text += "Leaving messages out is not enough: shorten the question."
    return f'<p role="status">{escape(text)}</p>' if text else ""


def oldest(number: int) -> str:
    """So many turns in words."""
    if number == 1:
        return "the oldest question and its answer"
    return f"the {number} oldest questions and their answers"


def names(questions: Sequence[str]) -> str:
    """The beginnings of these questions."""
    return ", ".join(f"“{_title(question)}”" for question in questions)


def _title(question: str) -> str:
    line = " ".join(question.split())
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1] + "…"
