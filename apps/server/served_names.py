"""The names under which a server answers: its model alone, and the model with each of its adapters.

All of them are rows of one pool, so requests for different names step together in one batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from apps.model import chat_format_of
from apps.server.grammar import Vocabulary
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.sources.model_names import ADAPTER_CONFIG


@dataclass(frozen=True, kw_only=True)
class Served:
    """What answers under one name."""

    name: str
    adapter: int
    """Its number in the model; 0 for the model alone."""
    created: int
    """When its folder was written, in seconds of the Unix epoch."""
    chat_format: ChatFormat
    vocabulary: Vocabulary


def served_names(folder: Path, name: str, adapters: Mapping[str, Path], vocab_size: int) -> dict[str, Served]:
    """Return by name what a server answers with, the model alone first; adapters are numbered in their order.

    Raises `InputError` if an adapter has the model's name or another tokenizer.
    """
    if name in adapters:
        raise InputError(f"an adapter is named {name!r}, as the model itself; give one of them another name")
    own = ChatFormat.from_folder(folder)
    vocabulary = Vocabulary(own.tokenizer, vocab_size, own.stop_ids)
    created = int((folder / "config.json").stat().st_mtime)
    served = {name: Served(name=name, adapter=0, created=created, chat_format=own, vocabulary=vocabulary)}
    for number, (label, adapter) in enumerate(adapters.items(), start=1):
        chat_format = chat_format_of(folder, adapter)
        same = chat_format.stop_ids == own.stop_ids and chat_format.tokenizer.to_str() == own.tokenizer.to_str()
        served[label] = Served(
            name=label,
            adapter=number,
            created=int((adapter / ADAPTER_CONFIG).stat().st_mtime),
            chat_format=chat_format,
            vocabulary=vocabulary if same else Vocabulary(chat_format.tokenizer, vocab_size, chat_format.stop_ids),
        )
    return served
