"""One chat: its turns, what the model is sent of them, and the run of one turn.

Deltas of `toolkit.generate.stream` come in; a state, texts, token counts and durations stand ready for any page to
show. Nothing here knows a page, and the time is told by the caller.

    waiting ──► thinking ──► answering ──► done          (a model that does not think skips thinking)
       └───────────┴─────────────┴───────► stopped       (Stop, a closed tab, an error)

Every piece of text that the model wrote stays in its turn, however the turn ends. Earlier reasoning is not sent back
(DeepSeek-R1's rule), and a conversation that no longer fits is refused as a whole: nothing is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from toolkit.chat_format import ChatFormat, Delta, Message, split_completion
from toolkit.errors import InputError
from toolkit.generate import Decoder, Sampling, Token, stream

State = Literal["waiting", "thinking", "answering", "done", "stopped"]

UPDATES_PER_S = 15.0
LEAST_ROOM = 32
"""Tokens that the context must still hold for the model's turn, or the question is refused."""


@dataclass(kw_only=True)
class Turn:
    """A question and what the model has written to it so far. Times are readings of the caller's clock, in seconds."""

    question: str
    context_room: int
    """Tokens that the model's context holds after the prompt."""
    state: State = "waiting"
    reasoning: str = ""
    answer: str = ""
    token_ids: list[int] = field(default_factory=list)
    tokens_before_answer: int | None = None
    cut: Literal["limit", "context"] | None = None
    """What ended a turn that the model itself had not finished."""
    stop_requested: bool = False
    started_at: float = 0.0
    first_token_at: float | None = None
    answering_at: float | None = None
    last_token_at: float = 0.0
    ended_at: float | None = None
    _last: Token | None = None

    @property
    def running(self) -> bool:
        return self.state in ("waiting", "thinking", "answering")

    @property
    def reasoning_tokens(self) -> int:
        """Tokens up to the answer, the closing tag included."""
        if not self.reasoning:
            return 0
        return len(self.token_ids) if self.tokens_before_answer is None else self.tokens_before_answer

    @property
    def answer_tokens(self) -> int:
        return len(self.token_ids) - self.reasoning_tokens

    @property
    def tokens_per_s(self) -> float | None:
        """Decoding speed, the reading of the prompt left out; None until two tokens are there."""
        if self.first_token_at is None or self.last_token_at <= self.first_token_at:
            return None
        return (len(self.token_ids) - 1) / (self.last_token_at - self.first_token_at)

    @property
    def first_token_s(self) -> float | None:
        """From the start of the turn to its first token: the reading of the prompt; None until it is there."""
        return None if self.first_token_at is None else self.first_token_at - self.started_at

    def thinking_s(self, now: float) -> float:
        """From the start of the turn, the reading of the prompt included, to the answer, the end or `now`."""
        ends = (at for at in (self.answering_at, self.ended_at) if at is not None)
        return min(ends, default=now) - self.started_at

    def start(self, now: float, *, thinks: bool) -> None:
        """Begin; a model whose prompt opens the reasoning is thinking from here on."""
        self.started_at = now
        if thinks:
            self.state = "thinking"

    def take(self, delta: Delta | None, token: Token, limit: int, now: float) -> None:
        """Add one piece of `toolkit.generate.stream` (one token may come with several); `limit` as sampled."""
        if token is not self._last:
            self._last = token
            self.token_ids.append(token.id)
            self.last_token_at = now
            if self.first_token_at is None:
                self.first_token_at = now
        if delta and delta.kind == "reasoning":
            self.state = "thinking"
            self.reasoning += delta.text
        elif delta:
            if self.answering_at is None:
                self.answering_at = now
                self.tokens_before_answer = len(self.token_ids) - 1
            self.state = "answering"
            self.answer += delta.text
        if token.finish_reason == "length":
            self.cut = "limit" if len(self.token_ids) >= limit else "context"

    def end(self, chat_format: ChatFormat, now: float) -> None:
        """Close the turn: done where the model or a limit ended it, otherwise stopped.

        A stopped turn is split anew from its ids, so that what the parser still held back is kept too; only the bytes
        of an unfinished character go.
        """
        self.ended_at = now
        if self._last and self._last.finish_reason:
            self.state = "done"
            return
        self.state = "stopped"
        text = chat_format.decode(self.token_ids).rstrip("\N{REPLACEMENT CHARACTER}")
        whole = split_completion(text, opened=chat_format.opens_reasoning)
        self.reasoning, self.answer = whole.reasoning, whole.answer


@dataclass(kw_only=True)
class Conversation:
    """The turns of one chat, oldest first."""

    turns: list[Turn] = field(default_factory=list)
    system: str = ""
    """Sent before the turns, unless it is empty."""
    left_out: int = 0
    """How many of the oldest turns are not sent, because the user said so."""
    busy: bool = False
    """Whether a page's handler is still showing a turn."""

    def messages(self, question: str) -> list[Message]:
        """What the model is sent: questions and answers; no reasoning, and an empty answer where none was written."""
        sent: list[Message] = [{"role": "system", "content": self.system}] if self.system.strip() else []
        for turn in self.turns[self.left_out :]:
            sent += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
        return [*sent, {"role": "user", "content": question}]

    def ask(self, question: str, chat_format: ChatFormat, max_length: int) -> Turn:
        """Append a turn for a question.

        Raises `InputError`, and changes nothing, where the context (`max_length` tokens) cannot hold the conversation
        with this question and leave room for an answer.
        """
        prompt_tokens = len(chat_format.prompt_ids(self.messages(question)))
        room = max_length - prompt_tokens
        if room < LEAST_ROOM:
            remedy = "start a new chat, or ask a shorter question" if self.turns else "ask a shorter question"
            raise InputError(
                f"the conversation with this question ({prompt_tokens:,} tokens) must leave {LEAST_ROOM} tokens free "
                f"in the model's context ({max_length:,} tokens); {remedy}"
            )
        turn = Turn(question=question, context_room=room)
        self.turns.append(turn)
        return turn


class Pace:
    """Lets a stream of tokens through to the page at most `UPDATES_PER_S` times a second."""

    def __init__(self) -> None:
        self._shown_at = float("-inf")

    def is_due(self, now: float) -> bool:
        if now - self._shown_at < 1.0 / UPDATES_PER_S:
            return False
        self._shown_at = now
        return True


def run_turn(
    decoder: Decoder,
    chat_format: ChatFormat,
    messages: Sequence[Message],
    turn: Turn,
    sampling: Sampling,
    clock: Callable[[], float],
) -> Iterator[None]:
    """Let the model write into `turn`; yields where there is something new to show. Closing it early stops the turn."""
    pace = Pace()
    try:
        turn.start(clock(), thinks=chat_format.opens_reasoning)
        for delta, token in stream(decoder, chat_format, messages, sampling):
            now = clock()
            turn.take(delta, token, sampling.max_new_tokens, now)
            if turn.stop_requested:
                break
            if pace.is_due(now):
                yield
    finally:
        turn.end(chat_format, clock())
