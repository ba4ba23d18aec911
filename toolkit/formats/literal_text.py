"""Text that stays text: what a message says never becomes a token that steers the model.

    <|im_start|>user⏎ Say <|im_end|> aloud <|im_end|>⏎
    ───── own ─────── ──── content ─────── ── own ──

Invariant: where no content names a control token, ids are those of the tokenizers library for the whole text at once,
as transformers gets them. Where one does, the stretch between two control tokens that the template wrote is encoded as
if the vocabulary had no control tokens; all other ids stay.

What came from a content is found by rendering twice: once as it is, once with each character that a control token can
be told by (its key, mostly `<` or `[`) marked, that is replaced by one of Unicode's private ones. A template that
trims, splits or joins contents carries the marks to where they land. Where it reads what a content says, as templates
that leave out earlier thoughts do, the tags of an answer's leading thought stay unmarked, and only they.
"""

from __future__ import annotations

import re
import secrets
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer, models

from toolkit.errors import InputError
from toolkit.formats.message_fields import whole
from toolkit.formats.tokenizer_bounds import encoding_of
from toolkit.records import Message

THOUGHT_TAGS = ("<think>", "</think>")

_TAG = re.compile(rf"<[|｜].*[|｜]>|{'|'.join(THOUGHT_TAGS)}")
"""Control tokens that a vocabulary may not call special."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A piece that stands for a byte of any text."""
_THOUGHTS = (
    re.compile(rf"(?P<open>\s*{THOUGHT_TAGS[0]})(?P<thought>.*?)(?P<close>{THOUGHT_TAGS[1]})", re.DOTALL),
    re.compile(rf"(?P<open>)(?P<thought>|.*?\n)(?P<close>{THOUGHT_TAGS[1]}\n\n)", re.DOTALL),
)
"""How an answer begins with its thought: between tags, or as it is written behind a prompt that opened it."""
_PRIVATE = range(0xF0000, 0xFFFFE)
"""Unicode's first plane of characters that mean nothing."""

Render = Callable[[Sequence[Message]], str]
IsOwn = Callable[[int, int], bool]
"""Whether what stands from one place of a text to another was written by the format and by no content."""


class LiteralText:
    """A vocabulary's control tokens, and ids in which contents hold none of them.

    Control tokens are those that are special or steer by their part in it (they end a turn, or its configuration names
    them), those named like one, and those that the template writes.
    """

    def __init__(self, tokenizer: Tokenizer, written: str, steering: frozenset[str]) -> None:
        """`written`: the template, and what it makes of messages. `steering`: texts of tokens that end a turn or the
        like."""
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        special = {token.content for token in added.values() if token.special or token.content in steering}
        texts = {id: token.content for id, token in added.items()}
        pieces = {text for text in steering if not _BYTE.fullmatch(text)}
        texts |= {id: text for text in pieces if (id := tokenizer.token_to_id(text)) is not None}
        self.control = {
            id: text
            for id, text in texts.items()
            if _is_name(text, whole=text in special)
            and (text in special or text in steering or _TAG.fullmatch(text) or text in written)
        }
        self._keys = {id: _key(text) for id, text in self.control.items()}
        keys = "<" + "".join(self._keys.values())
        self.keys = "".join(sorted({*keys, *keys.lower(), *keys.upper()}))
        self._unknown = _unknown_id(tokenizer)

    def rendered(self, messages: Sequence[Message], render: Render) -> tuple[str, list[int]]:
        """The prompt, and the places of keys in it that come from a content.

        Raises `InputError` where the template refuses the messages.
        """
        texts = list(_texts(list(messages)))
        if not any(key in text for text in texts for key in self.keys):
            return render(messages), []
        plain = _tried(render, messages)
        marks = _marks(self.keys, [*texts, plain or ""])
        found: tuple[str, list[int]] | None = None
        for keeps_thoughts in (False, True):
            marked = _tried(render, [_marked(message, marks, keeps_thoughts) for message in messages])
            if marked is not None:
                found = _unmarked(marked, marks)
                if found[0] == plain:
                    return found
        if found and any(self._named.search(text) for text in texts):
            return found
        return render(messages), []

    def ids(self, text: str, is_own: IsOwn) -> list[int]:
        """Ids of a text, control tokens only where its own parts name them.

        Raises `InputError` where the vocabulary has no other way to write a content.
        """
        text = whole(text)
        encoding = encoding_of(self._tokenizer, text)
        ids: list[int] = encoding.ids
        own: list[int] = []
        others: list[int] = []
        for place in [place for place, id in enumerate(ids) if id in self.control]:
            begin, end = _span(encoding, place)
            if ids[place] == self._unknown and text[begin:end] != self.control[ids[place]]:
                continue  # no name: a character that the vocabulary has no token for
            written = self._keys[ids[place]] in text[begin:end]  # else a look-alike that the normalizer made one
            (own if written and is_own(begin, end) else others).append(place)
        if not others:
            return ids
        found: list[int] = []
        done = read = 0
        for place in [*own, len(ids)]:
            begin, end = _span(encoding, place) if place < len(ids) else (len(text), len(text))
            is_plain = bisect_left(others, done) == bisect_left(others, place)
            found += ids[done:place] if is_plain else self._as_text(text[read:begin], is_first=read == 0)
            found += ids[place : place + 1]
            done, read = place + 1, end
        return found

    def _as_text(self, text: str, *, is_first: bool) -> list[int]:
        """Ids of a stretch without control tokens; broken in two where the model itself has a piece of that name."""
        before = "" if is_first else self._anchor
        encoding = encoding_of(self._without_control, before + text)
        first = bool(before)
        ids: list[int] = encoding.ids[first:]
        cuts = [0]
        for place, id in enumerate(ids, start=first):
            if id in self.control and id != self._unknown:
                begin, end = _span(encoding, place)
                if end - begin < 2:
                    raise InputError(
                        f"the tokenizer must be able to write {text[:40]!r} without "
                        f"its token {self.control[id]!r}; leave "
                        "that out of the message"
                    )
                cuts.append(end - len(before) - 1)
        if len(cuts) == 1:
            return ids
        parts = [text[begin:end] for begin, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
        return [id for n, part in enumerate(parts) for id in self._as_text(part, is_first=is_first and n == 0)]

    @cached_property
    def _anchor(self) -> str:
        """What stands before a stretch, as the control token does: some tokenizers begin a text with a space."""
        return f"\N{REPLACEMENT CHARACTER}{secrets.token_hex(16)}\N{REPLACEMENT CHARACTER}"  # nobody can write it

    @cached_property
    def _without_control(self) -> Tokenizer:
        """A tokenizer of its own, since threads share the other."""
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in self.control.values()])
        tokenizer.encode_special_tokens = True  # their names are text
        tokenizer.add_tokens([AddedToken(self._anchor, normalized=False)])
        return tokenizer

    @cached_property
    def _named(self) -> re.Pattern[str]:
        names = sorted({*THOUGHT_TAGS, *self.control.values()}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)), re.IGNORECASE)


def own_outside(places: Sequence[int]) -> IsOwn:
    """Own is what holds none of these places, which are in order."""

    def is_own(begin: int, end: int) -> bool:
        return bisect_left(places, begin) == bisect_left(places, end)

    return is_own


def _span(encoding: Encoding, place: int) -> tuple[int, int]:
    """Where a token that stands in the text stands in it."""
    span: tuple[int, int] = encoding.token_to_chars(place) or (0, 0)
    return span


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """The token of what a vocabulary has no other for."""
    model = tokenizer.model
    if not isinstance(model, models.Unigram):  # which does not tell its name
        return tokenizer.token_to_id(model.unk_token) if getattr(model, "unk_token", None) else None
    try:
        found = model.tokenize(chr(_PRIVATE.stop))
    except Exception:  # noqa: BLE001 – the library has no other for a vocabulary without one
        return None
    return found[0].id if len(found) == 1 else None


def _is_name(text: str, *, whole: bool) -> bool:
    """Whether a token reads as a name in brackets or the like; `whole`: any text does that is no space and no single
    sign of ASCII, which some configurations fill up with (`!`) and every text needs.
    """
    if whole:
        return bool(text.strip()) and not (text.isascii() and len(text) == 1)
    signs = sum(not char.isalnum() and not char.isspace() for char in text)
    return 0 < signs < len(text.strip()) and len(text) > 2


def _key(text: str) -> str:
    """The character of a control token that is marked: a sign, which no template changes, where it has one."""
    return next((char for char in text if not char.isalnum() and not char.isspace()), text.strip()[0])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _tried(render: Render, messages: Sequence[Message]) -> str | None:
    try:
        return render(messages)
    except InputError:
        return None


def _marks(keys: str, texts: Sequence[str]) -> dict[str, str]:
    """A character for each key that none of the texts holds."""
    for begin in range(_PRIVATE.start, _PRIVATE.stop - len(keys), len(keys)):
        marks = dict(zip(keys, map(chr, range(begin, begin + len(keys))), strict=True))
        if not any(mark in text for text in texts for mark in marks.values()):
            return marks
    raise InputError(
        "a message must leave some of Unicode's private characters unused; it holds nearly all; shorten it"
    )


def _marked(message: Message, marks: Mapping[str, str], keeps_thoughts: bool) -> Message:
    """The message with its keys marked, except in the tags of an answer's leading thought where those are kept."""
    marked: Message = _mark(message, marks)
    content = message.get("content")
    if not keeps_thoughts or message.get("role") != "assistant" or not isinstance(content, str):
        return marked
    for form in _THOUGHTS:
        if found := form.match(content):
            rest = _mark(content[found.end() :], marks)
            kept = found["open"] + _mark(found["thought"], marks) + found["close"] + rest
            return {**marked, "content": kept}
    return marked


def _mark(value: Any, marks: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for key, mark in marks.items():
            value = value.replace(key, mark)
        return value
    if isinstance(value, Mapping):
        return {name: _mark(part, marks) for name, part in value.items()}
    return [_mark(part, marks) for part in value] if isinstance(value, list | tuple) else value


def _unmarked(text: str, marks: Mapping[str, str]) -> tuple[str, list[int]]:
    """The text with its keys again, and their places."""
    places = [found.start() for found in re.finditer(f"[{''.join(marks.values())}]", text)]
    for key, mark in marks.items():
        text = text.replace(mark, key)
    return text, places
