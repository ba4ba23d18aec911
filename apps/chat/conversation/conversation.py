"""One chat: its turns, and what the model is sent of them.

Earlier reasoning is not sent back (DeepSeek-R1's rule), and a conversation that no longer fits the context is refused
as a whole: nothing is truncated.

Turns form a tree, of which a conversation shows one path. Turns with the same parent are versions of one another:

    question 1 ─┬─ question 2 ─── question 3
                └─ question 2, asked again or in other words
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from apps.chat.conversation.feed import Feed
from apps.chat.conversation.turn import LEAST_ROOM, Turn
from toolkit.errors import InputError
from toolkit.formats.message_fields import whole
from toolkit.generation.chat_model import ChatModel
from toolkit.records import Message

if TYPE_CHECKING:
    from apps.chat.conversation.context import ContextLedger


@dataclass(kw_only=True)
class Conversation:
    """A chat: every version of every turn, and the path of turns that is shown."""

    turns: list[Turn] = field(default_factory=list)
    """The path that is shown, oldest first; each turn is the parent of the next."""
    all_turns: list[Turn] = field(default_factory=list)
    """All turns in the order in which they were asked, including those of the path."""
    id: int | None = None
    """Its number in the store; None until it is stored."""
    title: str = ""
    system: str = ""
    """The system prompt, sent before the turns unless it is empty."""
    left_out: int = 0
    """How many of the path's oldest turns are not sent, by the user's choice."""
    feed: Feed | None = None
    """The feed of the last turn while it is being written."""
    ledger: ContextLedger | None = None
    """How the prompt of the most recent turn fills the context."""

    @property
    def busy(self) -> bool:
        return self.feed is not None

    def as_of(self, last: Turn) -> Conversation:
        """Return the conversation with an earlier state of its last turn."""
        now = self.turns[-1]
        return replace(
            self,
            turns=[*self.turns[:-1], last],
            all_turns=[last if turn is now else turn for turn in self.all_turns],
        )

    def messages(self, question: str, before: Turn | None = None) -> list[Message]:
        """Return the messages to send: questions and answers without reasoning; a missing answer is empty.

        `before`: a turn of the path; neither it nor anything after it is sent.
        """
        earlier = self.turns if before is None else self.turns[: self.turns.index(before)]
        return self._sent(question, earlier[self.left_out :])

    def history(self, turn: Turn) -> list[Message]:
        """Return the messages that were sent before a turn's question, whether or not the turn is on the path."""
        system = turn.settings.get("system")  # an imported file may say something else
        return _said(system if isinstance(system, str) else self.system, _path_to(turn)[self.left_out : -1])

    def _sent(self, question: str, turns: Sequence[Turn]) -> list[Message]:
        return [*_said(self.system, turns), {"role": "user", "content": question}]

    def ask(self, question: str, model: ChatModel, *, instead_of: Turn | None = None) -> Turn:
        """Append a turn for a question, or add it as a new version of a turn of the path.

        Raises `InputError`, and changes nothing, if the model's context cannot hold the conversation with this
        question and leave room for an answer.
        """
        question = whole(question)
        prompt_tokens = model.count(self.messages(question, instead_of))
        room = model.max_length - prompt_tokens
        if room < LEAST_ROOM:
            remedy = "start a new chat, or ask a shorter question" if self.turns else "ask a shorter question"
            raise InputError(
                f"the conversation with this question ({prompt_tokens:,} tokens) leaves fewer than {LEAST_ROOM} of the "
                f"{model.max_length:,} tokens of the model's context free; {remedy}"
            )
        return self._add(Turn(question=question, context_room=room), instead_of)

    def must_leave(self, turn: Turn, model: ChatModel, *, wanted: int) -> int:
        """Count how many more of the oldest turns must be left out so that a turn of the path can be continued.

        0 if the turn can be continued with all of them, or not even without them; otherwise as many as make room for
        `wanted` tokens, or all.
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
        """Return the turn to continue: the given one if it is the path's last, otherwise a new version of it.

        Raises `InputError`, and changes nothing, if the turn's ids mean another text to this model, or the context has
        no room left.
        """
        if not model.reads(turn.written):
            raise InputError(
                f"this model cannot continue what {turn.model or 'another model'} wrote: it reads other words in the "
                "same tokens; open that model, or ask the question again"
            )
        room = model.max_length - model.count(self.messages(turn.question, turn))
        if room - turn.tokens < LEAST_ROOM:
            raise InputError(
                f"the conversation up to this answer's end ({model.max_length - room + turn.tokens:,} tokens) leaves "
                f"fewer than {LEAST_ROOM} of the {model.max_length:,} tokens of the model's context free; "
                "ask in a new chat"
            )
        turn.stop_requested = False
        if turn is self.turns[-1]:
            turn.context_room = room
            return turn
        copy = turn.copy()
        copy.id, copy.context_room = None, room
        return self._add(copy, instead_of=turn)

    def versions(self, turn: Turn) -> list[Turn]:
        """Return all versions of a turn, oldest first."""
        return self.places()[turn.parent]

    def places(self) -> dict[Turn | None, list[Turn]]:
        """Map each turn to the turns after it, versions of one another, oldest first; None to the first ones."""
        places: dict[Turn | None, list[Turn]] = defaultdict(list)
        for turn in self.all_turns:
            places[turn.parent].append(turn)
        return places

    def show(self, turn: Turn) -> None:
        """Make the path lead through a turn, and from there through the newest ones."""
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
    """Return a turn preceded by all its ancestors, oldest first."""
    path = [turn]
    while path[-1].parent is not None:
        path.append(path[-1].parent)
    return path[::-1]
