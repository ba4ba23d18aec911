"""Bounds what a tokenizer may make of a text, and turns its failures into our errors.

A tokenizer is a program that comes with a folder. Its steps (normalizer, pre-tokenizer, decoder) rewrite a text one
after the other, so their growth multiplies. Its regular expressions can need more steps than the library allows, which
then panics: that raises no Exception, and prints a traceback if nobody catches it.
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
"""The most characters that one may become. SentencePiece makes up to 18 of one (a ligature), twice that with its rule
for spaces, and twice that again with the sign for a word's beginning; ByteLevel makes a character of each byte.
"""
BYTES = 4
"""The most bytes of a character in UTF-8."""
SPACED = 3
"""The length of a character between two spaces."""
_CHILDREN = ("normalizers", "pretokenizers", "decoders")


def check_growth(path: Path, steps: Mapping[str, Any]) -> None:
    """Raise `InputError` if the steps of a tokenizer's file, given by their names there, make a text grow too much."""
    for names in (("normalizer", "pre_tokenizer"), ("decoder",)):
        growth = 1.0
        for name in names:
            growth *= _growth(steps.get(name) or {})
        if growth > MOST_GROWTH:
            raise InputError(
                f"{' and '.join(names)} of {path} must make at most {MOST_GROWTH} characters of one; they can make "
                f"{growth:,.0f} or more; get it again from a source that you trust"
            )


def encoding_of(tokenizer: Tokenizer, text: str) -> Encoding:
    """Return a text's tokens; raises `InputError` if the tokenizer fails on it."""
    with tokenizer_errors(f"a text of {len(text):,} characters"):
        return tokenizer.encode(text, add_special_tokens=False)


def decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Return the text of tokens; raises `InputError` if the tokenizer fails on them."""
    with tokenizer_errors(f"{len(ids):,} tokens"):
        text: str = tokenizer.decode(ids, skip_special_tokens=False)
        return text


@contextmanager
def tokenizer_errors(of: str) -> Iterator[None]:
    """Turn whatever a tokenizer raises on something, called `of`, into an `InputError` of one line."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 – a panic is no Exception
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"the model's tokenizer fails on {of}: {said}; leave it out") from None


def _growth(step: Mapping[str, Any]) -> float:
    """Return the most characters that a step makes of one.

    Unicode's normal forms do not count, since applying them again changes nothing. Text that a step inserts counts in
    its longest form.
    """
    children = next((step[name] for name in _CHILDREN if name in step), ())
    growth = 1.0
    for child in children:
        growth *= _growth(child)
        if growth > MOST_GROWTH**2:
            break  # before it overflows
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
    """Return the length of the longest text that SentencePiece's map inserts; they follow its trie, each ended by a
    zero byte."""
    try:
        blob = base64.b64decode(charsmap)
    except binascii.Error:
        return 0
    texts = blob[4 + int.from_bytes(blob[:4], "little") :].split(b"\0")
    return max(_length(text.decode(errors="replace")) for text in texts)
