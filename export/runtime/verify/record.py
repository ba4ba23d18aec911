"""The record in an exported folder by which `toolkit verify` checks it on another machine.

    verify.json   texts with the digests of their ids, chats as rendered, end-of-text ids, greedy tokens with margins

Invariant: everything in it comes from the source or the export machine; nothing is computed where it is read. Imports
neither torch nor transformers nor onnx, because the chat imports it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self, get_type_hints

from toolkit.errors import InputError
from toolkit.field_types import check_type
from toolkit.formats.chat_format import ChatFormat
from toolkit.formats.tokenizer_bounds import tokenizer_errors
from toolkit.records import Message, Record, read_object

RECORD_FILE = "verify.json"
VERSION = 1
RECORD_DAY = datetime(2024, 7, 26)
"""The date in the record's chats: the one that Llama 3's templates write without a clock."""
VOCABULARY_RUN = 512
"""How many ids of the vocabulary share one digest."""


class Typed(Record):
    """A record that checks its values against the types of its fields."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Check the types, with errors that name the file, and build the record."""
        for name, kind in get_type_hints(cls).items():
            if name in values:
                check_type(values[name], kind, f"{name} of {RECORD_FILE}")
        return super().from_dict(values)


@dataclass(frozen=True, kw_only=True)
class RenderedChat(Typed):
    """A message list and the prompt that its template makes of it."""

    messages: list[Message]
    text: str | None
    """None if the template refuses the list."""


@dataclass(frozen=True, kw_only=True)
class GreedyText(Typed):
    """A prompt and the exported folder's greedy answer on the machine that exported it."""

    prompt: list[int]
    tokens: list[int]
    margins: list[float]
    """The difference between each token's logit and the second largest."""

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.margins) or not self.prompt:
            raise InputError(
                f"a greedy text of {RECORD_FILE} must have a prompt ({len(self.prompt)} ids) and a margin "
                f"({len(self.margins)}) for each token ({len(self.tokens)}); export again"
            )


@dataclass(frozen=True, kw_only=True)
class GoldenRecord(Typed):
    """The contents of `verify.json`."""

    version: int
    texts: list[str]
    text_digests: list[str]
    vocabulary_digests: list[str]
    """Digests of the ids of the tokens' own texts, each over `VOCABULARY_RUN` tokens."""
    chats: list[RenderedChat]
    end_of_text: dict[str, list[int]]
    """The end-of-text ids that each file names, by file name."""
    greedy: list[GreedyText]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        if values.get("version") != VERSION:
            raise InputError(
                f"the version of {RECORD_FILE} ({values.get('version')}) must be {VERSION}; "
                "verify with the toolkit that exported it, or export again"
            )
        chats = [RenderedChat.from_dict(chat) for chat in values.get("chats", [])]
        greedy = [GreedyText.from_dict(text) for text in values.get("greedy", [])]
        record = super().from_dict({**values, "chats": chats, "greedy": greedy})
        if len(record.texts) != len(record.text_digests):
            raise InputError(
                f"{RECORD_FILE} must have a digest ({len(record.text_digests)}) for each text ({len(record.texts)}); "
                "export again"
            )
        return record


def read_record(folder: Path) -> GoldenRecord:
    """Read `verify.json`; raises `InputError` if it is missing or damaged."""
    path = folder / RECORD_FILE
    try:
        return GoldenRecord.from_dict(read_object(path))
    except (TypeError, AttributeError) as error:
        raise InputError(f"{path} is no record of toolkit export: {error}; export again") from error


def write_record(folder: Path, record: GoldenRecord) -> None:
    (folder / RECORD_FILE).write_text(json.dumps(record.to_dict(), ensure_ascii=True) + "\n", encoding="utf-8")


def ids_digest(ids: Sequence[int]) -> str:
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:16]


def text_digests(chat_format: ChatFormat, texts: Sequence[str]) -> list[str]:
    """Digest the ids of each text."""
    return [ids_digest(chat_format.encode(text)) for text in texts]


def vocabulary_digests(chat_format: ChatFormat) -> list[str]:
    """Digest the ids of every token's own text: if any merge is changed, some token's text shows it."""
    tokenizer = chat_format.tokenizer
    ids = range(tokenizer.get_vocab_size())
    with tokenizer_errors("the texts of its own tokens"):
        texts = [tokenizer.decode([token], skip_special_tokens=False) for token in ids]
        encoded = [found.ids for found in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    return [
        ids_digest([token for found in encoded[begin : begin + VOCABULARY_RUN] for token in (*found, -1)])
        for begin in range(0, len(encoded), VOCABULARY_RUN)
    ]


def end_of_text_ids(folder: Path, chat_format: ChatFormat) -> dict[str, list[int]]:
    """Return the end-of-text ids by the file that names them; `chat` has those at which the chat stops."""
    found = {
        name: _as_list(read_object(folder / name).get("eos_token_id"), folder / name)
        for name in ("config.json", "generation_config.json")
    }
    genai = read_object(folder / "genai_config.json").get("model")
    genai_ids = genai.get("eos_token_id") if isinstance(genai, dict) else None
    found["genai_config.json"] = _as_list(genai_ids, folder / "genai_config.json")
    path = folder / "tokenizer_config.json"
    named = read_object(path).get("eos_token") if path.exists() else None
    text = named.get("content") if isinstance(named, dict) else named
    check_type(text, str | None, f"eos_token in {path}")
    found[path.name] = _as_list(chat_format.tokenizer.token_to_id(text) if text else None, path)
    found["chat"] = sorted(chat_format.stop_ids)
    return found


def _as_list(value: Any, path: Path) -> list[int]:
    check_type(value, int | list[int] | None, f"eos_token_id in {path}")
    return sorted(value) if isinstance(value, list) else [] if value is None else [value]
