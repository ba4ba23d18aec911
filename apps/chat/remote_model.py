"""A model behind an endpoint, as the page needs one: its answer comes as text, and is kept as numbered pieces.

A server sends text and not the ids of its tokens, so each piece that it sends is a token here: the pieces get numbers,
and the numbers are read back by the same parser as any model's ids. Thoughts that come in a field of their own are
written as R1 writes them, between tags. How many tokens they were is told by the server at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models

from apps.model import Model
from toolkit.errors import InputError
from toolkit.formats.chat_format import CLOSE, OPEN, ChatFormat, Completion, split_completion
from toolkit.formats.message_fields import REASONING_FIELDS
from toolkit.generation.endpoint import PREFIX, Chunk, Place, locate, stream_chat
from toolkit.generation.generate import WAITING, Sampling, Token
from toolkit.records import FinishReason, Message

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

    def number(self, piece: str) -> int:
        """The id of a piece of text."""
        if (known := self.tokenizer.token_to_id(piece)) is not None:
            return known
        self.tokenizer.add_tokens([AddedToken(piece, normalized=False)])
        return self.tokenizer.get_vocab_size() - 1

    def encode(self, text: str) -> list[int]:
        return [self.number(piece) for piece in _pieces(text)]

    def means(self, ids: Sequence[int], reasoning: str, answer: str) -> bool:
        """The server reads texts: the numbers may be another answer's."""
        return True

    def taken_up(self, ids: Sequence[int], before_answer: int | None, reasoning: str, answer: str) -> list[int]:
        """As many numbers of this vocabulary, begun anew: one for the thought's text, one for the answer's."""
        self.tokenizer = _empty_tokenizer()  # a vocabulary grows slowly to add to
        is_open = before_answer is None and not answer
        thought = self.begun_text(reasoning, None if is_open else "") if reasoning else ""
        of_thought = len(ids) if before_answer is None else before_answer
        written: list[int] = []
        for text, count in ((thought, of_thought), (answer, len(ids) - of_thought)):
            named = [self.number(text)] if text else []
            written += named + [NO_PIECE] * (count - len(named))
        return written

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """As many ids as the messages have words and signs: an estimate of their length, and nothing to read."""
        return [NO_PIECE] * len(_pieces(self.render(messages)))


class EndpointModel:
    """Asks one model of one server. A `Speaker`: see `toolkit.generation.generate`."""

    def __init__(self, place: Place, chat_format: PieceFormat) -> None:
        self.max_length: int = place.max_length or USUAL_CONTEXT
        self._place, self._format = place, chat_format

    def speak(self, messages: Sequence[Message], sampling: Sampling, written: Sequence[int]) -> Iterator[Token]:
        """The pieces of an answer, after those that are written.

        Raises `InputError` where the server fails or does not go on; cancels it where the iterator is closed.
        """
        if written and not self._place.goes_on:
            raise InputError(f"{self._place.url} must be a `toolkit serve` to go on with an answer; ask again")
        begun = split_completion(self._format.decode(written), opened=False) if written else None
        body = _body(self._place.model, messages, begun, sampling)
        writer = TagWriter(begun)
        drawn, total = 0, 0
        finish_reason: str | None = None
        for chunk in stream_chat(self._place.url, body, POLL_S):
            piece = writer.write(chunk) if chunk else ""
            if piece and drawn == sampling.max_new_tokens:  # each piece is a token at least: it does not end by itself
                finish_reason = "length"
                break
            if piece:
                drawn += 1
                yield Token(0, self._format.number(piece), None)
            else:
                yield WAITING
            if chunk:
                finish_reason = chunk.finish_reason or finish_reason
                total = chunk.completion_tokens or total
        if finish_reason is None:
            raise InputError(f"{self._place.url} must say why its answer ends; it broke off: ask again")
        reason: FinishReason = "length" if finish_reason == "length" else "stop"
        count = min(total, sampling.max_new_tokens)  # several tokens came as one piece, or brought none
        for _ in range(count - drawn - 1):
            yield Token(0, NO_PIECE, None)
        yield Token(0, NO_PIECE, reason)


class TagWriter:
    """Thoughts in a field of their own → one text with tags."""

    def __init__(self, begun: Completion | None = None) -> None:
        """`begun`: what stands there already."""
        self._thinks = None if begun is None else not begun.closed
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
        goes_on=place.goes_on,
    )


def _body(model: str, messages: Sequence[Message], begun: Completion | None, sampling: Sampling) -> dict[str, object]:
    """A request in OpenAI's names; settings that its API does not know are sent only where they do something.

    `begun`: what the server is to go on with, a last message; one without content is in its thought.
    """
    sent: list[Mapping[str, object]] = [*messages]
    if begun:
        content = begun.answer if begun.closed else None
        sent.append({"role": "assistant", REASONING_FIELDS[0]: begun.reasoning, "content": content, PREFIX: True})
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


def _empty_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _pieces(text: str) -> list[str]:
    return re.findall(r" ?\w+|\s+|[^\w\s]", text)
