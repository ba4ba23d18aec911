"""Defines a model as a chat needs it, wherever it runs: messages in, events out.

    messages, the turn written so far ─► ChatModel.stream ─► TurnEvent … TurnEvent (the last says why it ended)

A `LocalChatModel` is a decoder of this process with its chat format; it continues a turn from the ids that it wrote,
bit by bit the same. A server (`apps.chat.remote_model`) continues from texts, and its tokens have no ids here.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from toolkit.formats.chat_format import ChatFormat, Delta, ReasoningParser, split_completion
from toolkit.formats.text_reader import TextReader
from toolkit.generation.generate import Decoder, Sampling, decode
from toolkit.records import FinishReason, Message


@dataclass(frozen=True, kw_only=True)
class TurnEvent:
    """What a model has just written of its turn: pieces of thought and answer, and the number of their tokens."""

    deltas: tuple[Delta, ...] = ()
    held: tuple[Delta, ...] = ()
    """Text that is written but may begin a tag; it belongs to the turn if the turn ends here."""
    closed: bool = False
    """Whether the thought is closed if the turn ends here, or there was none."""
    tokens: int = 0
    ids: tuple[int, ...] = ()
    """The ids of the tokens, if the model runs here."""
    finish_reason: FinishReason | None = None
    """Why the turn ended, in its last event."""


WAITING = TurnEvent()
"""Sent now and then while a server has nothing new to say, so that the reader can stop."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A turn as far as it is written; its texts leave out what is held back (see `TurnEvent`)."""

    reasoning: str = ""
    answer: str = ""
    held: tuple[Delta, ...] = ()
    closed: bool = False
    """Whether the thought is closed, or there was none."""
    tokens: int = 0
    ids: tuple[int, ...] = ()
    """The ids of the tokens without a stop token, if the model that wrote them ran here."""


NOTHING = Written()


class ChatModel(Hashable, Protocol):
    """A model that takes messages and writes one turn at a time."""

    @property
    def max_length(self) -> int:
        """The most tokens of a conversation."""

    @property
    def opens_reasoning(self) -> bool:
        """Whether every turn of this model starts inside its reasoning."""

    def count(self, messages: Sequence[Message]) -> int:
        """Return the tokens of the prompt; for a server they are estimated."""

    def reads(self, written: Written) -> bool:
        """Whether this model reads the same text in a turn, or more of it."""

    def taken_up(self, written: Written) -> Written:
        """Return the turn as this model continues it."""

    def with_closed_thought(self, written: Written) -> Written:
        """Return the turn with its thought closed as if the model had closed it."""

    def stream(
        self, messages: Sequence[Message], sampling: Sampling, written: Written = NOTHING
    ) -> Iterator[TurnEvent]:
        """Write one turn, after what is `written` of it; the last event says why it ended.

        Closing the iterator ends the turn. Raises `InputError` if the model cannot continue.
        """


class TurnReader:
    """Reads the ids of one turn as text, split into reasoning and answer.

    Text comes in whole characters: bytes of an unfinished UTF-8 sequence wait for the rest.
    """

    def __init__(self, chat_format: ChatFormat, ids: Sequence[int] = ()) -> None:
        """`ids`: tokens that were written before; `certain` holds the text that they make certain."""
        self._text = TextReader(chat_format.tokenizer)
        self._parser = ReasoningParser(opened=chat_format.opens_reasoning)
        self.certain = [delta for token_id in ids for delta in self._read(token_id)]

    def read(self, token_id: int, finish_reason: FinishReason | None = None) -> TurnEvent:
        """Return what one more token brings; a stop token has no text."""
        deltas = () if finish_reason == "stop" else tuple(self._read(token_id))
        held, closed = self.if_ended()
        if finish_reason:
            deltas, held = deltas + held, ()
        return TurnEvent(
            deltas=deltas, held=held, closed=closed, tokens=1, ids=(token_id,), finish_reason=finish_reason
        )

    def if_ended(self) -> tuple[tuple[Delta, ...], bool]:
        """Return what would follow if the turn ended here, and whether its thought would be closed."""
        return self._parser.if_ended(self._text.rest())

    def _read(self, token_id: int) -> list[Delta]:
        return list(self._parser.feed(self._text.read(token_id)))


class LocalChatModel:
    """A `ChatModel` that runs in this process: a decoder, and the chat format of its folder."""

    def __init__(self, decoder: Decoder, chat_format: ChatFormat) -> None:
        self.decoder, self.chat_format = decoder, chat_format

    @property
    def max_length(self) -> int:
        return self.decoder.max_length

    @property
    def opens_reasoning(self) -> bool:
        return self.chat_format.opens_reasoning

    def count(self, messages: Sequence[Message]) -> int:
        return len(self.chat_format.prompt_ids(messages))

    def reads(self, written: Written) -> bool:
        if any(self.chat_format.tokenizer.id_to_token(token) is None for token in written.ids):
            return False  # an id of another vocabulary, which decoding would skip
        here = self.taken_up(written)
        reasoning, answer = (
            certain + "".join(delta.text for delta in here.held if delta.kind == kind)
            for kind, certain in (("reasoning", here.reasoning), ("answer", here.answer))
        )
        return reasoning.startswith(written.reasoning) and answer.startswith(written.answer)

    def taken_up(self, written: Written) -> Written:
        """Return what the ids make certain; what may begin a tag is held back again."""
        reader = TurnReader(self.chat_format, written.ids)
        held, closed = reader.if_ended()
        return Written(
            reasoning="".join(delta.text for delta in reader.certain if delta.kind == "reasoning"),
            answer="".join(delta.text for delta in reader.certain if delta.kind == "answer"),
            held=held,
            closed=closed,
            tokens=len(written.ids),
            ids=written.ids,
        )

    def with_closed_thought(self, written: Written) -> Written:
        """Append the ids of the closing tag, unless the model has just written it."""
        ids = written.ids
        if not split_completion(self.chat_format.decode(ids), opened=self.opens_reasoning).closed:
            ids = (*ids, *self.chat_format.closing_ids(ids))
        return self.taken_up(replace(written, ids=ids))

    def stream(
        self, messages: Sequence[Message], sampling: Sampling, written: Written = NOTHING
    ) -> Iterator[TurnEvent]:
        reader = TurnReader(self.chat_format, written.ids)
        prompt = [*self.chat_format.prompt_ids(messages), *written.ids]
        stop_ids, drawn = self.chat_format.stop_ids, len(written.ids)
        for token in decode(self.decoder, [prompt], sampling, stop_ids, drawn=drawn):
            yield reader.read(token.id, token.finish_reason)
