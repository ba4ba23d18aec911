"""Keeps text as text: nothing in a message becomes a token that steers the model.

    <|im_start|>user⏎ Say <|im_end|> aloud <|im_end|>⏎
    ───── own ─────── ──── content ─────── ── own ──

Invariant: if no content names a control token, the ids are those of the tokenizers library for the whole text at once,
as transformers gets them. If one does, the stretch between two control tokens that the template wrote is encoded as if
the vocabulary had no control tokens; all other ids stay the same.

Text from a content is found by rendering twice: once as it is, and once with each character that identifies a control
token (its key, mostly `<` or `[`) replaced by a private character of Unicode as a mark. A template that trims, splits
or joins contents carries the marks along. If it looks into a content, as templates that leave out earlier thoughts do,
only the tags of an answer's leading thought are left unmarked.
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
"""Control tokens that a vocabulary may not mark as special."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A piece for one byte, which any text may need."""
_THOUGHTS = (
    re.compile(rf"(?P<open>\s*{THOUGHT_TAGS[0]})(?P<thought>.*?)(?P<close>{THOUGHT_TAGS[1]})", re.DOTALL),
    re.compile(rf"(?P<open>)(?P<thought>|.*?\n)(?P<close>{THOUGHT_TAGS[1]}\n\n)", re.DOTALL),
)
"""An answer that begins with its thought: between tags, or as written after a prompt that opened it."""
_PRIVATE = range(0xF0000, 0xFFFFE)
"""Unicode's first plane of private characters, which have no meaning."""

Render = Callable[[Sequence[Message]], str]
IsOwn = Callable[[int, int], bool]
"""Tells whether the text between two places was written by the format and not by a content."""


class LiteralText:
    """Encodes texts so that contents never become a vocabulary's control tokens.

    Control tokens are those that are special or have a part in the format (they end a turn, or the configuration names
    them), those with a name like one, and those that the template writes.
    """

    def __init__(self, tokenizer: Tokenizer, written: str, steering: frozenset[str]) -> None:
        """`written`: the template, and what it writes around messages. `steering`: texts of tokens that end a turn or
        that the configuration names."""
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
        """Render the prompt, and find the places of keys in it that come from a content.

        Raises `InputError` if the template refuses the messages.
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
        """Encode a text, with control tokens only where the format's own parts name them.

        Raises `InputError` if the vocabulary has no other way to write a content.
        """
        text = whole(text)
        encoding = encoding_of(self._tokenizer, text)
        ids: list[int] = encoding.ids
        own: list[int] = []
        others: list[int] = []
        for place in [place for place, id in enumerate(ids) if id in self.control]:
            begin, end = _span(encoding, place)
            if ids[place] == self._unknown and text[begin:end] != self.control[ids[place]]:
                continue  # not the name, but a character that the vocabulary has no token for
            written = self._keys[ids[place]] in text[begin:end]  # else the normalizer made it of a look-alike
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
        """Encode a stretch without control tokens; it is split where the model has a piece with such a name."""
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
                        f"the tokenizer cannot write {text[:40]!r} without its control token {self.control[id]!r}; "
                        "leave that out of the message"
                    )
                cuts.append(end - len(before) - 1)
        if len(cuts) == 1:
            return ids
        parts = [text[begin:end] for begin, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
        return [id for n, part in enumerate(parts) for id in self._as_text(part, is_first=is_first and n == 0)]

    @cached_property
    def _anchor(self) -> str:
        """A text that takes the control token's place before a stretch: some tokenizers begin a text with a space."""
        return f"\N{REPLACEMENT CHARACTER}{secrets.token_hex(16)}\N{REPLACEMENT CHARACTER}"  # nobody can write it

    @cached_property
    def _without_control(self) -> Tokenizer:
        """A copy of the tokenizer in which names of control tokens are text; threads share the original."""
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in self.control.values()])
        tokenizer.encode_special_tokens = True  # encodes their names as text
        tokenizer.add_tokens([AddedToken(self._anchor, normalized=False)])
        return tokenizer

    @cached_property
    def _named(self) -> re.Pattern[str]:
        names = sorted({*THOUGHT_TAGS, *self.control.values()}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)), re.IGNORECASE)


def own_outside(places: Sequence[int]) -> IsOwn:
    """Return an `IsOwn` for which text is own if it holds none of these places, which are in order."""

    def is_own(begin: int, end: int) -> bool:
        return bisect_left(places, begin) == bisect_left(places, end)

    return is_own


def _span(encoding: Encoding, place: int) -> tuple[int, int]:
    """Return where a token is in the text; (0, 0) for one that is not in it."""
    span: tuple[int, int] = encoding.token_to_chars(place) or (0, 0)
    return span


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id that a vocabulary gives to text that it has no token for; None if it has none."""
    model = tokenizer.model
    if not isinstance(model, models.Unigram):  # a Unigram model does not give its name
        return tokenizer.token_to_id(model.unk_token) if getattr(model, "unk_token", None) else None
    try:
        found = model.tokenize(chr(_PRIVATE.stop))
    except Exception:  # noqa: BLE001 – the library raises no other for a vocabulary without one
        return None
    return found[0].id if len(found) == 1 else None


def _is_name(text: str, *, whole: bool) -> bool:
    """Whether a token looks like a name in brackets; `whole`: any text counts except white space and a single ASCII
    character, which some configurations pad with (`!`) and every text needs.
    """
    if whole:
        return bool(text.strip()) and not (text.isascii() and len(text) == 1)
    signs = sum(not char.isalnum() and not char.isspace() for char in text)
    return 0 < signs < len(text.strip()) and len(text) > 2


def _key(text: str) -> str:
    """Return the character of a control token to mark: a sign, which no template changes, if it has one."""
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
    """Choose a mark for each key, a character that none of the texts holds."""
    for begin in range(_PRIVATE.start, _PRIVATE.stop - len(keys), len(keys)):
        marks = dict(zip(keys, map(chr, range(begin, begin + len(keys))), strict=True))
        if not any(mark in text for text in texts for mark in marks.values()):
            return marks
    raise InputError(
        "the messages hold nearly all of Unicode's private characters, some of which must be unused; shorten them"
    )


def _marked(message: Message, marks: Mapping[str, str], keeps_thoughts: bool) -> Message:
    """Mark the keys of a message, except in the tags of an answer's leading thought with `keeps_thoughts`."""
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
    """Put the keys back into the text, and return their places."""
    places = [found.start() for found in re.finditer(f"[{''.join(marks.values())}]", text)]
    for key, mark in marks.items():
        text = text.replace(mark, key)
    return text, places
