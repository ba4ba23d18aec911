"""One turn: a question, and what a model has written to it so far.

Events of a `toolkit.generation.chat_model.ChatModel` come in; a state, texts, token counts and durations are ready for
any page to show. Nothing here knows a page, and the caller supplies the time.

    waiting ──► thinking ──► answering ──► done          (a model that does not think skips thinking)
       └───────────┴─────────────┴───────► stopped       (Stop, closed tabs, an error, a killed process)

All text that the model wrote stays in its turn, however the turn ends. A turn that the model did not end itself can be
continued: from its token ids if the model runs here, otherwise from its texts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from toolkit.formats.chat_format import Delta
from toolkit.generation.chat_model import WAITING, ChatModel, TurnEvent, Written

State = Literal["waiting", "thinking", "answering", "done", "stopped"]
Cut = Literal["limit", "context"]

LEAST_ROOM = 32
"""Tokens that must be left in the context for the model's turn, or the question is refused."""


@dataclass(kw_only=True, eq=False)
class Turn:
    """A question and what the model has replied so far. Times are readings of the caller's clock, in seconds."""

    question: str
    context_room: int
    """Number of tokens that fit into the model's context after the prompt."""
    parent: Turn | None = None
    """The turn before this one; None for a first question."""
    id: int | None = None
    """Its number in the store; None until it is stored."""
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """The settings that it was written with: the fields of `Sampling`, and others that a page has."""
    state: State = "waiting"
    reasoning: str = ""
    answer: str = ""
    token_ids: list[int] = field(default_factory=list)
    """The ids of all tokens, if the model that wrote them ran here."""
    remote_tokens: int = 0
    """Number of tokens that a server wrote, whose ids are not known here."""
    tokens_before_answer: int | None = None
    cut: Cut | None = None
    """The limit that ended a turn before the model had finished."""
    stop_requested: bool = False
    answer_requested: bool = False
    """Whether the user wants the thought closed now."""
    is_in_one_piece: bool = False
    """Whether its model can only begin a turn: a server that cannot continue one."""
    started_at: float = 0.0
    first_token_at: float | None = None
    answering_at: float | None = None
    last_token_at: float = 0.0
    ended_at: float | None = None
    _event: TurnEvent = WAITING
    """The last event of the stream that writes it."""

    @property
    def running(self) -> bool:
        return self.state in ("waiting", "thinking", "answering")

    @property
    def tokens(self) -> int:
        return len(self.token_ids) + self.remote_tokens

    @property
    def written(self) -> Written:
        """The state from which a model continues."""
        return Written(
            reasoning=self.reasoning,
            answer=self.answer,
            closed=self.tokens_before_answer is not None or bool(self.answer),
            tokens=self.tokens,
            ids=tuple(self.token_ids),
        )

    def copy(self) -> Turn:
        """Return the turn as it is now, without what is written later."""
        return replace(self, token_ids=self.token_ids.copy(), settings=self.settings.copy())

    @property
    def can_go_on(self) -> bool:
        """Whether the model did not end this turn itself, and can continue it."""
        return not self.is_in_one_piece and (self.state == "stopped" or self.cut is not None)

    @property
    def is_thinking(self) -> bool:
        """Whether the thought is unfinished: in a running turn, or because the turn was interrupted."""
        return self.state == "thinking" or (
            self.can_go_on and bool(self.reasoning) and self.tokens_before_answer is None
        )

    @property
    def can_be_closed(self) -> bool:
        """Whether its thought is being written and can be closed from here."""
        return self.state == "thinking" and not self.is_in_one_piece

    @property
    def reasoning_tokens(self) -> int:
        """Number of tokens up to the answer, including the closing tag."""
        if not self.reasoning:
            return 0
        return self.tokens if self.tokens_before_answer is None else self.tokens_before_answer

    @property
    def answer_tokens(self) -> int:
        return self.tokens - self.reasoning_tokens

    @property
    def tokens_per_s(self) -> float | None:
        """Decoding speed, without the time to read the prompt; None until there are two tokens."""
        if self.first_token_at is None or self.last_token_at <= self.first_token_at:
            return None
        return (self.tokens - 1) / (self.last_token_at - self.first_token_at)

    @property
    def first_token_s(self) -> float | None:
        """Seconds from the start of the turn to its first token, in which the prompt is read; None before that."""
        return None if self.first_token_at is None else self.first_token_at - self.started_at

    def thinking_s(self, now: float) -> float:
        """Seconds from the start of the turn, before the prompt is read, to the answer, the end or `now`."""
        ends = (at for at in (self.answering_at, self.ended_at) if at is not None)
        return min(ends, default=now) - self.started_at

    def start(self, model: ChatModel, now: float) -> None:
        """Begin or continue: the time since the turn ended does not count, and text that may begin a tag is held back
        again.

        A model whose prompt opens the reasoning is thinking from now on.
        """
        pause_s = now - (self.started_at if self.ended_at is None else self.ended_at)
        self.started_at += pause_s
        self.last_token_at += pause_s
        if self.first_token_at is not None:
            self.first_token_at += pause_s
        if self.answering_at is not None:
            self.answering_at += pause_s
        self.ended_at = self.cut = None
        self.stop_requested = False
        self._set(model.taken_up(self.written))
        is_answering = self.tokens_before_answer is not None
        thinks = model.opens_reasoning or self.reasoning
        self.state = "answering" if is_answering else "thinking" if thinks else "waiting"

    def take(self, event: TurnEvent, now: float) -> None:
        """Add what the model has just written."""
        if event is WAITING:
            return
        self._event = event
        if event.tokens:
            self.last_token_at = now
            if self.first_token_at is None:
                self.first_token_at = now
        for delta in event.deltas:
            if delta.kind == "answer" and self.answering_at is None:
                self.answering_at, self.tokens_before_answer = now, self.tokens
            self.state = "thinking" if delta.kind == "reasoning" else "answering"
            self._add(delta)
        self.token_ids += event.ids
        self.remote_tokens += event.tokens - len(event.ids)
        if event.finish_reason == "length":
            self.cut = "context" if self.tokens >= self.context_room else "limit"

    def must_answer(self, thinking_budget: int) -> bool:
        """Whether to close an open thought, because the reader asked or the budget in tokens is spent (0: no budget).

        If the context has no room left for an answer, the thought may fill it.
        """
        is_due = self.answer_requested or 0 < thinking_budget <= self.tokens
        return is_due and self.can_be_closed and self.context_room - self.tokens >= LEAST_ROOM

    def close_thought(self, model: ChatModel, now: float) -> None:
        """Close the thought as if the model had written the closing tag, which it may just have done."""
        self._set(model.with_closed_thought(self.written))
        self.tokens_before_answer, self.answering_at = self.tokens, now
        self.state, self.answer_requested = "answering", False

    def end(self, now: float) -> None:
        """Close the turn: done if the model or a limit ended it, otherwise stopped.

        A stopped turn also keeps what the parser held back; only the bytes of an unfinished character are dropped. A
        thought that was closed is over, whether or not an answer followed.
        """
        self.ended_at = now
        self.state = "done" if self._event.finish_reason else "stopped"
        if not self._event.finish_reason:
            for delta in self._event.held:
                self._add(delta)
        if self._event.closed and self.reasoning and self.tokens_before_answer is None:
            self.tokens_before_answer = self.tokens
        self._event = WAITING

    def _add(self, delta: Delta) -> None:
        if delta.kind == "reasoning":
            self.reasoning += delta.text
        else:
            self.answer += delta.text

    def _set(self, written: Written) -> None:
        self.reasoning, self.answer, self.token_ids = written.reasoning, written.answer, list(written.ids)
        self.remote_tokens = written.tokens - len(written.ids)
        self._event = TurnEvent(held=written.held, closed=written.closed)
