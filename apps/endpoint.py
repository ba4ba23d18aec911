"""A model behind an endpoint, as the page needs one: its answer comes as text, and is kept as numbered pieces.

A server sends text and not the ids of its tokens, so each piece that it sends is a token here: the pieces get numbers,
and the numbers are read back by the same parser as any model's ids. Thoughts that come in a field of their own are
written as R1 writes them, between tags. How many tokens they were is told by the server at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models

from apps.model import Model
from toolkit.chat_format import CLOSE, OPEN, ChatFormat, Message
from toolkit.endpoint import Chunk, Place, locate, stream_chat
from toolkit.errors import InputError
from toolkit.generate import WAITING, Sampling, Token
from toolkit.records import FinishReason

POLL_S = 0.1
USUAL_CONTEXT = 131_072
"""Tokens that a conversation may have where the server does not tell; the server refuses what is too long for it."""
NO_PIECE = 2**32 - 1
"""Number of a token that brought no text."""
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


class PieceFormat(ChatFormat):
    """A chat format whose vocabulary are the pieces of one answer; the server has the template."""

    def __init__(self) -> None:
        super().__init__(_empty_tokenizer(), TEMPLATE, frozenset(), {})

    def begin(self) -> None:
        """Forget the pieces of the answer before: a vocabulary grows slowly to add to."""
        self.tokenizer = _empty_tokenizer()

    def number(self, piece: str) -> int:
        """The id of a piece of text."""
        if (known := self.tokenizer.token_to_id(piece)) is not None:
            return known
        self.tokenizer.add_tokens([AddedToken(piece, normalized=False)])
        return self.tokenizer.get_vocab_size() - 1

    def encode(self, text: str) -> list[int]:
        return [self.number(piece) for piece in _pieces(text)]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """As many ids as the messages have words and signs: an estimate of their length, and nothing to read."""
        return [NO_PIECE] * len(_pieces(self.render(messages)))


class EndpointModel:
    """Asks one model of one server. A `Speaker`: see `toolkit.generate`."""

    def __init__(self, place: Place, chat_format: PieceFormat) -> None:
        self.max_length: int = place.max_length or USUAL_CONTEXT
        self._place, self._format = place, chat_format

    def speak(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Token]:
        """The pieces of an answer; raises `InputError` where the server fails, and cancels it where it is closed."""
        self._format.begin()
        writer = TagWriter()
        drawn, total = 0, 0
        finish_reason: str | None = None
        for chunk in stream_chat(self._place.url, _body(self._place.model, messages, sampling), POLL_S):
            if chunk is None:
                yield WAITING
                continue
            if piece := writer.write(chunk):
                drawn += 1
                yield Token(0, self._format.number(piece), None)
            finish_reason = chunk.finish_reason or finish_reason
            total = chunk.completion_tokens or total
        if finish_reason is None:
            raise InputError(f"{self._place.url} must say why its answer ends; it broke off: ask again")
        reason: FinishReason = "length" if finish_reason == "length" else "stop"
        for _ in range(total - drawn - 1):  # several tokens came as one piece, or brought none
            yield Token(0, NO_PIECE, None)
        yield Token(0, NO_PIECE, reason)


class TagWriter:
    """Thoughts in a field of their own → one text with tags."""

    def __init__(self) -> None:
        self._thinks: bool | None = None
        """None before the first text."""

    def write(self, chunk: Chunk) -> str:
        before = f"{OPEN}\n" if chunk.reasoning and self._thinks is None else ""
        if chunk.reasoning and self._thinks is not False:  # a thought behind the answer's beginning is lost with R1 too
            self._thinks = True
            before += chunk.reasoning
        if chunk.content and self._thinks:
            before += f"\n{CLOSE}\n\n"
        if chunk.content:
            self._thinks = False
        return before + chunk.content


def load_endpoint(argument: str) -> Model:
    """The model of an `http(s)://…/v1` argument; raises `InputError` where it leads nowhere."""
    place = locate(argument)
    chat_format = PieceFormat()
    return Model(
        name=place.model,
        size_bytes=0,
        decoder=EndpointModel(place, chat_format),
        chat_format=chat_format,
        endpoint=place.address,
    )


def _body(model: str, messages: Sequence[Message], sampling: Sampling) -> dict[str, object]:
    """A request in OpenAI's names; settings that its API does not know are sent only where they do something."""
    body: dict[str, object] = {
        "model": model,
        "messages": list(messages),
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed % 2**31,
        "stream_options": {"include_usage": True},
    }
    extensions = {"top_k": sampling.top_k, "min_p": sampling.min_p}
    return body | {name: value for name, value in extensions.items() if value}


def _empty_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _pieces(text: str) -> list[str]:
    return re.findall(r" ?\w+|\s+|[^\w\s]", text)
