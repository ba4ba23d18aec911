"""What a tokenizer may make of a text: bounds that its file shows, and its errors as ours.

A tokenizer is a program that comes with a folder. Its steps (normalizer, pre-tokenizer, decoder) rewrite a text one
after the other, so what each can make of one character multiplies. Its regular expressions can need more steps than the
library grants, which then panics: no Exception, and a traceback where nobody catches it.
"""

from __future__ import annotations

import base64
import binascii
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from toolkit.errors import InputError

MOST_GROWTH = 200
"""Characters that one may become. SentencePiece makes up to 18 of one (a ligature), twice that with its rule for
spaces, and twice that again with the sign for a word's beginning; ByteLevel makes a character of each byte.
"""
BYTES = 4
"""A character's in UTF-8, at most."""
SPACED = 3
"""A character between two spaces."""
_CHILDREN = ("normalizers", "pretokenizers", "decoders")


def check_growth(path: Path, steps: Mapping[str, Any]) -> None:
    """Raises `InputError` where steps of a tokenizer's file, by their names there, make too much of a text."""
    for names in (("normalizer", "pre_tokenizer"), ("decoder",)):
        growth = 1.0
        for name in names:
            growth *= _growth(steps.get(name) or {})
        if growth > MOST_GROWTH:
            raise InputError(
                f"{' and '.join(names)} of {path} must make at most {MOST_GROWTH} characters of one, and can make "
                f"{growth:,.0f} or more; get it again from where you trust"
            )


def encoding_of(tokenizer: Tokenizer, text: str) -> Encoding:
    """A text's tokens; raises `InputError` where the tokenizer fails on it."""
    with told_failures(f"a text of {len(text):,} characters"):
        return tokenizer.encode(text, add_special_tokens=False)


def decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of tokens; raises `InputError` where the tokenizer fails on them."""
    with told_failures(f"{len(ids):,} tokens"):
        text: str = tokenizer.decode(ids, skip_special_tokens=False)
        return text


@contextmanager
def told_failures(of: str) -> Iterator[None]:
    """Whatever a tokenizer raises on something, an `InputError` of one line."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 – a panic is no Exception
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"the model's tokenizer must be able to read {of}, and fails: {said}; leave it out") from None


def _growth(step: Mapping[str, Any]) -> float:
    """The most characters that a step makes of one.

    Unicode's own forms do not count: they leave what they have made as it is. What a step writes counts in its longest
    form.
    """
    children = next((step[name] for name in _CHILDREN if name in step), ())
    growth = 1.0
    for child in children:
        growth *= _growth(child)
        if growth > MOST_GROWTH**2:
            break  # before it is no number any more
    match step.get("type"):
        case "Replace":
            written, pattern = _length(step["content"]), step["pattern"].get("String")
            return max(1.0, written / len(pattern)) if pattern else 1.0 + written  # others match between characters too
        case "Prepend":
            return 1.0 + _length(step["prepend"])
        case "Precompiled":
            return max(1.0, _longest(step["precompiled_charsmap"]))
        case "ByteLevel":
            return BYTES
        case "Metaspace":
            return 2.0  # the sign for a word's beginning
        case "BertNormalizer" if step.get("handle_chinese_chars"):
            return SPACED
    return growth


def _length(text: str) -> int:
    return max(len(text), len(unicodedata.normalize("NFKD", text)))


def _longest(charsmap: str) -> int:
    """The longest of the texts that SentencePiece's map writes: they stand behind its trie, each with a zero after
    it."""
    try:
        blob = base64.b64decode(charsmap)
    except binascii.Error:
        return 0
    texts = blob[4 + int.from_bytes(blob[:4], "little") :].split(b"\0")
    return max(_length(text.decode(errors="replace")) for text in texts)
