"""The bytes that each token of a vocabulary writes, by which tokens of two vocabularies are compared.

    byte-level BPE   Ġword  → 20 77 6f 72 64     each character of a piece stands for one byte (GPT-2's table)
    SentencePiece    ▁word  → 20 77 6f 72 64     ▁ is a space, <0x0A> the byte 0a, all else UTF-8

Control tokens write none, except for the tags of a thought, which are text of a turn whatever their kind. A vocabulary
of another kind, or one that does not give back the bytes of a text (because it normalizes it, say), cannot be compared
and is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer

from toolkit.errors import InputError
from toolkit.formats.literal_text import THOUGHT_TAGS
from toolkit.formats.tokenizer_bounds import encoding_of

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
PROBE = " We add 12 and 345:\n12 + 345 = 357.\n</think>\n\n\tGrüße, 你好, naïve – 🙂"
"""A text whose bytes must come back."""


def token_bytes(tokenizer: Tokenizer, name: str) -> list[bytes | None]:
    """Return the bytes of each id; None for control tokens and for ids without a token.

    `name` is the model's in errors. Raises `InputError` if the vocabulary cannot be read as bytes.
    """
    kinds = set(_kinds(json.loads(tokenizer.to_str()).get("decoder")))
    if "ByteLevel" in kinds:
        table = _bytes_of_characters()
    elif kinds & {"ByteFallback", "Metaspace", "Replace"}:
        table = None
    else:
        raise InputError(
            f"the vocabulary of {name} cannot be bridged: its decoder "
            f"({', '.join(sorted(kinds)) or 'none'}) is neither "
            "a byte-level BPE's nor SentencePiece's; choose another teacher, or learn from its texts alone"
        )
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    found: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
    added = tokenizer.get_added_tokens_decoder()
    for piece, id in vocabulary.items():
        if id in added:
            content = added[id].content
            found[id] = None if added[id].special and content not in THOUGHT_TAGS else content.encode()
        else:
            found[id] = _of_byte_level(piece, table) if table else _of_sentencepiece(piece)
    written = written_bytes(tokenizer, found, PROBE)
    if written is None or written.removeprefix(b" ") != PROBE.encode().removeprefix(b" "):
        raise InputError(
            f"the vocabulary of {name} cannot be bridged: it does not give back the bytes of a text that it encodes; "
            "choose another teacher, or learn from its texts alone"
        )
    return found


def written_bytes(tokenizer: Tokenizer, bytes_of: list[bytes | None], text: str) -> bytes | None:
    """Return the bytes that the tokens of a text write; None if one of them is a control token."""
    parts = [bytes_of[id] for id in encoding_of(tokenizer, text).ids]
    return None if any(part is None for part in parts) else b"".join(part for part in parts if part is not None)


def _kinds(decoder: Any) -> Iterator[str]:
    if isinstance(decoder, Mapping):
        yield str(decoder.get("type"))
        for inner in decoder.get("decoders", ()):
            yield from _kinds(inner)


def _of_byte_level(piece: str, table: Mapping[str, int]) -> bytes | None:
    return bytes(table[char] for char in piece) if all(char in table for char in piece) else None


def _of_sentencepiece(piece: str) -> bytes:
    if byte := _BYTE.fullmatch(piece):
        return bytes.fromhex(byte[1])
    return piece.replace("\u2581", " ").encode()


def _bytes_of_characters() -> dict[str, int]:
    """Return the byte of each character of GPT-2's table: printable ones stand for themselves, the rest for 256 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
