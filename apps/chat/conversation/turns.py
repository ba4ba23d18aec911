"""One chat: its turns, what the model is sent of them, and the run of one turn.

Events of a `toolkit.generation.chat_model.ChatModel` come in; a state, texts, token counts and durations stand ready
for any page to show. Nothing here knows a page, and the time is told by the caller.

    waiting ──► thinking ──► answering ──► done          (a model that does not think skips thinking)
       └───────────┴─────────────┴───────► stopped       (Stop, closed tabs, an error, a killed process)

Every piece of text that the model wrote stays in its turn, however the turn ends; a turn that the model did not end
itself goes on from its ids where the model runs here, and from its texts elsewhere. Earlier reasoning is not sent back
(DeepSeek-R1's rule), and a conversation that no longer fits is refused as a whole: nothing is cut.

Turns are a tree, of which a conversation shows one path. Turns after the same turn are versions of one another:

    question 1 ─┬─ question 2 ─── question 3
                └─ question 2, asked again or in other words
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from apps.chat.conversation.latest import RenderPace
from apps.chat.conversation.writing import Writing
from toolkit.errors import InputError
from toolkit.formats.chat_format import Delta
from toolkit.formats.message_fields import whole
from toolkit.generation.chat_model import WAITING, ChatModel, TurnEvent, Written
from toolkit.generation.generate import Sampling
from toolkit.records import Message

if TYPE_CHECKING:
    from apps.chat.conversation.context import ContextLedger

State = Literal["waiting", "thinking", "answering", "done", "stopped"]
Cut = Literal["limit", "context"]

UPDATES_PER_S = 12.0
LEAST_ROOM = 32
"""Tokens that the context must still hold for the model's turn, or the question is refused."""


@dataclass(kw_only=True, eq=False)
class Turn:
    """A question and what the model has written to it so far. Times are readings of the caller's clock, in seconds."""

    question: str
    context_room: int
    """Tokens that the model's context holds after the prompt."""
    parent: Turn | None = None
    """The turn before; None of a first one."""
    id: int | None = None
    """Its number in the store; None before it is stored."""
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """What the model wrote it with: the fields of `Sampling`, and others that a page has."""
    state: State = "waiting"
    reasoning: str = ""
    answer: str = ""
    token_ids: list[int] = field(default_factory=list)
    """Of all tokens, where the model that wrote them ran here."""
    remote_tokens: int = 0
    """How many tokens a server wrote, whose ids nobody here knows."""
    tokens_before_answer: int | None = None
    cut: Cut | None = None
    """What ended a turn that the model itself had not finished."""
    stop_requested: bool = False
    answer_requested: bool = False
    """Whether the thought is to be closed now."""
    is_in_one_piece: bool = False
    """Whether its model can only begin a turn: a server that does not go on with one."""
    started_at: float = 0.0
    first_token_at: float | None = None
    answering_at: float | None = None
    last_token_at: float = 0.0
    ended_at: float | None = None
    _event: TurnEvent = WAITING
    """The last one of the stream that writes it."""

    @property
    def running(self) -> bool:
        return self.state in ("waiting", "thinking", "answering")

    @property
    def tokens(self) -> int:
        return len(self.token_ids) + self.remote_tokens

    @property
    def written(self) -> Written:
        """What a model goes on from."""
        return Written(
            reasoning=self.reasoning,
            answer=self.answer,
            closed=self.tokens_before_answer is not None or bool(self.answer),
            tokens=self.tokens,
            ids=tuple(self.token_ids),
        )

    @property
    def can_go_on(self) -> bool:
        """Whether the model did not end this turn itself, and can be made to go on from there."""
        return not self.is_in_one_piece and (self.state == "stopped" or self.cut is not None)

    @property
    def is_thinking(self) -> bool:
        """Whether the thought stands open: in a running turn, or where the turn was interrupted."""
        return self.state == "thinking" or (
            self.can_go_on and bool(self.reasoning) and self.tokens_before_answer is None
        )

    @property
    def can_be_closed(self) -> bool:
        """Whether its thought is being written and can be ended from here."""
        return self.state == "thinking" and not self.is_in_one_piece

    @property
    def reasoning_tokens(self) -> int:
        """Tokens up to the answer, the closing tag included."""
        if not self.reasoning:
            return 0
        return self.tokens if self.tokens_before_answer is None else self.tokens_before_answer

    @property
    def answer_tokens(self) -> int:
        return self.tokens - self.reasoning_tokens

    @property
    def tokens_per_s(self) -> float | None:
        """Decoding speed, the reading of the prompt left out; None until two tokens are there."""
        if self.first_token_at is None or self.last_token_at <= self.first_token_at:
            return None
        return (self.tokens - 1) / (self.last_token_at - self.first_token_at)

    @property
    def first_token_s(self) -> float | None:
        """From the start of the turn to its first token: the reading of the prompt; None until it is there."""
        return None if self.first_token_at is None else self.first_token_at - self.started_at

    def thinking_s(self, now: float) -> float:
        """From the start of the turn, the reading of the prompt included, to the answer, the end or `now`."""
        ends = (at for at in (self.answering_at, self.ended_at) if at is not None)
        return min(ends, default=now) - self.started_at

    def start(self, model: ChatModel, now: float) -> None:
        """Begin, or go on: the time since the turn ended does not count, and what may begin a tag is held back again.

        A model whose prompt opens the reasoning is thinking from here on.
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
        """Whether an open thought is to be closed, by the reader's wish or after so many tokens (0: never).

        A context with no room left for an answer lets the thought fill it.
        """
        is_due = self.answer_requested or 0 < thinking_budget <= self.tokens
        return is_due and self.can_be_closed and self.context_room - self.tokens >= LEAST_ROOM

    def close_thought(self, model: ChatModel, now: float) -> None:
        """End the thought as if the model had written its closing tag (which it may just have done)."""
        self._set(model.with_closed_thought(self.written))
        self.tokens_before_answer, self.answering_at = self.tokens, now
        self.state, self.answer_requested = "answering", False

    def end(self, now: float) -> None:
        """Close the turn: done where the model or a limit ended it, otherwise stopped.

        Of a stopped turn, what the parser still held back is kept too; only the bytes of an unfinished character go. A
        thought that was closed is over, whether an answer followed it or not.
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


@dataclass(kw_only=True)
class Conversation:
    """A chat: every version of every turn, and the path of turns that is shown."""

    turns: list[Turn] = field(default_factory=list)
    """The path, oldest first; each turn is the next one's parent."""
    all_turns: list[Turn] = field(default_factory=list)
    """In the order in which they were asked; the path's turns are among them."""
    id: int | None = None
    """Its number in the store; None before it is stored."""
    title: str = ""
    system: str = ""
    """Sent before the turns, unless it is empty."""
    left_out: int = 0
    """How many of the path's oldest turns are not sent, because the user said so."""
    writing: Writing[Any] | None = None
    """The last turn, while it is being written."""
    ledger: ContextLedger | None = None
    """What the prompt of the turn that was written last takes of the context."""

    @property
    def busy(self) -> bool:
        return self.writing is not None

    def messages(self, question: str, before: Turn | None = None) -> list[Message]:
        """What the model is sent: questions and answers; no reasoning, and an empty answer where none was written.

        `before`: a turn of the path, from which on nothing is sent.
        """
        earlier = self.turns if before is None else self.turns[: self.turns.index(before)]
        return self._sent(question, earlier[self.left_out :])

    def history(self, turn: Turn) -> list[Message]:
        """What was said before a turn's question, on the path or off it, as far as its model was sent it."""
        system = turn.settings.get("system")  # an imported file may say something else
        return _said(system if isinstance(system, str) else self.system, _path_to(turn)[self.left_out : -1])

    def _sent(self, question: str, turns: Sequence[Turn]) -> list[Message]:
        return [*_said(self.system, turns), {"role": "user", "content": question}]

    def ask(self, question: str, model: ChatModel, *, instead_of: Turn | None = None) -> Turn:
        """Append a turn for a question, or put it as a new version in the place of a turn of the path.

        Raises `InputError`, and changes nothing, where the model's context cannot hold the conversation with
        this question and leave room for an answer.
        """
        question = whole(question)
        prompt_tokens = model.count(self.messages(question, instead_of))
        room = model.max_length - prompt_tokens
        if room < LEAST_ROOM:
            remedy = "start a new chat, or ask a shorter question" if self.turns else "ask a shorter question"
            raise InputError(
                f"the conversation with this question ({prompt_tokens:,} tokens) must leave {LEAST_ROOM} tokens free "
                f"in the model's context ({model.max_length:,} tokens); {remedy}"
            )
        return self._add(Turn(question=question, context_room=room), instead_of)

    def must_leave(self, turn: Turn, model: ChatModel, *, wanted: int) -> int:
        """How many more of the oldest turns must not be sent so that a turn of the path can go on.

        0 where it can go on with all of them, or without them neither; else as many as make room for `wanted` tokens,
        or all.
        """
        earlier = self.turns[: self.turns.index(turn)][self.left_out :]
        rooms = []
        for leaving in range(len(earlier) + 1):
            prompt_tokens = model.count(self._sent(turn.question, earlier[leaving:]))
            rooms.append(model.max_length - prompt_tokens - turn.tokens)
            if rooms[-1] >= (wanted if leaving else LEAST_ROOM):
                return leaving
        return len(earlier) if rooms[-1] >= LEAST_ROOM else 0

    def resume(self, turn: Turn, model: ChatModel) -> Turn:
        """The turn to go on with: a turn of the path itself, or a new version of it where others follow it.

        Raises `InputError`, and changes nothing, where this model does not read the turn's texts in its ids, or the
        context has no room left.
        """
        if not model.reads(turn.written):
            raise InputError(
                f"the model that goes on must read the tokens that {turn.model or 'another model'} wrote; "
                "this one reads other words: open that model, or ask the question again"
            )
        room = model.max_length - model.count(self.messages(turn.question, turn))
        if room - turn.tokens < LEAST_ROOM:
            raise InputError(
                f"the conversation up to this answer's end ({model.max_length - room + turn.tokens:,} "
                "tokens) must leave "
                f"{LEAST_ROOM} tokens free in the model's context ({model.max_length:,} tokens); ask in a new chat"
            )
        turn.stop_requested = False
        if turn is self.turns[-1]:
            turn.context_room = room
            return turn
        copy = replace(turn, id=None, context_room=room, token_ids=turn.token_ids.copy(), settings=turn.settings.copy())
        return self._add(copy, instead_of=turn)

    def versions(self, turn: Turn) -> list[Turn]:
        """The turns that stand in one place, oldest first."""
        return self.places()[turn.parent]

    def places(self) -> dict[Turn | None, list[Turn]]:
        """Turn → the turns after it, oldest first, which are versions of one another; None → the first ones."""
        places: dict[Turn | None, list[Turn]] = defaultdict(list)
        for turn in self.all_turns:
            places[turn.parent].append(turn)
        return places

    def show(self, turn: Turn) -> None:
        """Lay the path through a turn, and on from it through the newest ones."""
        path, places = _path_to(turn), self.places()
        while following := places[path[-1]]:
            path.append(following[-1])
        self.turns = path

    def _add(self, turn: Turn, instead_of: Turn | None) -> Turn:
        if instead_of is not None:
            self.turns = self.turns[: self.turns.index(instead_of)]
        turn.parent = self.turns[-1] if self.turns else None
        self.turns.append(turn)
        self.all_turns.append(turn)
        return turn


def _said(system: str, turns: Sequence[Turn]) -> list[Message]:
    said: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    for turn in turns:
        said += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
    return said


def _path_to(turn: Turn) -> list[Turn]:
    """The turn below those that it follows, oldest first."""
    path = [turn]
    while path[-1].parent is not None:
        path.append(path[-1].parent)
    return path[::-1]


def run_turn(
    model: ChatModel,
    messages: Sequence[Message],
    turn: Turn,
    sampling: Sampling,
    clock: Callable[[], float],
    *,
    thinking_budget: int = 0,
) -> Generator[None, None, None]:
    """Let the model write into `turn`, after what stands there; yields where there is something new to show.

    Closing it early stops the turn. A thought that is to be closed is closed, and the model goes on from there.
    """
    pace = RenderPace(UPDATES_PER_S)
    before = turn.tokens
    try:
        turn.start(model, clock())
        while not turn.stop_requested:
            if turn.must_answer(thinking_budget):
                turn.close_thought(model, clock())
            left = replace(sampling, max_new_tokens=max(1, sampling.max_new_tokens - turn.tokens + before))
            for event in model.stream(messages, left, turn.written):
                now = clock()
                turn.take(event, now)
                if event.finish_reason:
                    continue
                if turn.stop_requested or turn.must_answer(thinking_budget):
                    break
                if pace.is_due(now):
                    yield
            else:
                return
    finally:
        turn.end(clock())
