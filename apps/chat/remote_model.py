"""A model behind an endpoint, as the chat needs one: a server's chunks in, the events of a turn out.

A server sends text and not the ids of its tokens, so a turn is kept and continued as text. Each chunk with text counts
as one token until the server reports their number at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from apps.chat.view.repetition import words
from apps.model import Model
from toolkit.errors import InputError
from toolkit.formats.chat_format import Delta, ReasoningParser
from toolkit.formats.message_fields import REASONING_FIELDS
from toolkit.generation.chat_model import NOTHING, WAITING, TurnEvent, Written
from toolkit.generation.endpoint import PREFIX, Chunk, Place, locate, stream_chat
from toolkit.generation.generate import Sampling
from toolkit.records import Message

POLL_S = 0.1
USUAL_CONTEXT = 131_072
"""Tokens that a conversation may have if the server does not say; it refuses what is too long for it."""


class EndpointChatModel:
    """Asks one model of one server. A `ChatModel`: see `toolkit.generation.chat_model`."""

    opens_reasoning = False

    def __init__(self, place: Place) -> None:
        self.max_length: int = place.max_length or USUAL_CONTEXT
        self._place = place

    def count(self, messages: Sequence[Message]) -> int:
        return len(words("".join(f"{message['role']}: {message['content']}\n" for message in messages)))

    def reads(self, written: Written) -> bool:
        return True

    def taken_up(self, written: Written) -> Written:
        """Keep the texts alone: the ids are another model's."""
        return replace(written, ids=())

    def with_closed_thought(self, written: Written) -> Written:
        return replace(written, ids=(), closed=True)

    def stream(
        self, messages: Sequence[Message], sampling: Sampling, written: Written = NOTHING
    ) -> Iterator[TurnEvent]:
        """Stream a turn; closing the iterator cancels the request.

        Raises `InputError` if the server fails or cannot continue a turn.
        """
        if _is_begun(written) and not self._place.goes_on:
            raise InputError(f"{self._place.url} cannot continue an answer, which needs `toolkit serve`; ask again")
        reader = ChunkReader(written)
        drawn, total = 0, 0
        finish_reason: str | None = None
        for chunk in stream_chat(self._place.url, _body(self._place.model, messages, written, sampling), POLL_S):
            if chunk and (chunk.reasoning or chunk.content):
                if drawn == sampling.max_new_tokens:  # each chunk is a token at least: it does not end by itself
                    finish_reason = "length"
                    break
                drawn += 1
                yield reader.read(chunk)
            else:
                yield WAITING
            if chunk:
                finish_reason = chunk.finish_reason or finish_reason
                total = chunk.completion_tokens or total
        if finish_reason is None:
            raise InputError(f"the answer of {self._place.url} broke off: the server sent no finish_reason; ask again")
        untold = min(total, sampling.max_new_tokens) - drawn  # tokens that shared a chunk or had no text
        yield replace(
            reader.finish(), tokens=max(0, untold), finish_reason="length" if finish_reason == "length" else "stop"
        )


class ChunkReader:
    """Splits a server's chunks into thought and answer.

    A thought comes in a field of its own, or between tags in the content. White space between it and the answer is
    dropped, and so is a thought after the answer has begun, as R1's template does.
    """

    def __init__(self, written: Written = NOTHING) -> None:
        """`written`: the beginning of the turn, which the server continues."""
        self._parser = ReasoningParser(opened=False)
        """Reads contents as long as no thought has come in a field."""
        self._has_thought_field = _is_begun(written)
        self._thinks: bool | None = not written.closed if _is_begun(written) else None
        """Whether the thought is being written; None before the first text."""
        self._answers = bool(written.answer)

    def read(self, chunk: Chunk) -> TurnEvent:
        """Read one more chunk."""
        deltas = []
        if chunk.reasoning and self._thinks is not False:
            self._thinks = self._has_thought_field = True
            deltas.append(Delta(kind="reasoning", text=chunk.reasoning))
        if chunk.content:
            self._thinks = False
            deltas += self._content(chunk.content)
        return self._event(deltas, tokens=1)

    def finish(self) -> TurnEvent:
        """Return what was held back."""
        return self._event(list(self._parser.finish()), tokens=0)

    def _content(self, content: str) -> list[Delta]:
        if not self._has_thought_field:
            return list(self._parser.feed(content))
        text = content if self._answers else content.lstrip()
        self._answers |= bool(text)
        return [Delta(kind="answer", text=text)] if text else []

    def _event(self, deltas: list[Delta], tokens: int) -> TurnEvent:
        held, closed = self._parser.if_ended()
        if self._has_thought_field:
            closed = not self._thinks
        return TurnEvent(deltas=tuple(deltas), held=held, closed=closed, tokens=tokens)


def load_endpoint(argument: str) -> Model:
    """Open the model of an `http(s)://…/v1` argument; raises `InputError` if no server answers there."""
    place = locate(argument)
    return Model(
        name=place.model,
        size_bytes=0,
        chat_model=EndpointChatModel(place),
        endpoint=place.address,
        goes_on=place.goes_on,
    )


def _is_begun(written: Written) -> bool:
    return bool(written.reasoning or written.answer or written.closed)


def _body(model: str, messages: Sequence[Message], written: Written, sampling: Sampling) -> dict[str, object]:
    """Write a request in OpenAI's names; settings that its API lacks are sent only if they have an effect.

    The beginning that the server is to continue is the last message; without content, it is still in its thought.
    """
    sent: list[Mapping[str, object]] = [*messages]
    if _is_begun(written):
        content = written.answer if written.closed else None
        sent.append({"role": "assistant", REASONING_FIELDS[0]: written.reasoning, "content": content, PREFIX: True})
    body: dict[str, object] = {
        "model": model,
        "messages": sent,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed % 2**31,
        "stream_options": {"include_usage": True},
    }
    extensions = {"top_k": sampling.top_k, "min_p": sampling.min_p}
    return body | {name: value for name, value in extensions.items() if value}
