"""An exported folder, loaded as the chat needs it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from export.session import OnnxDecoder
from toolkit.chat_format import ChatFormat
from toolkit.generate import Decoder
from toolkit.runs import folder_bytes


@dataclass(kw_only=True)
class Model:
    """A loaded model as the page needs it."""

    name: str
    size_bytes: int
    decoder: Decoder
    chat_format: ChatFormat
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held by the turn that the decoder is running."""


def load_model(folder: Path) -> Model:
    """Load an exported folder; raises `InputError` where it is none."""
    return Model(
        name=folder.resolve().name,
        size_bytes=folder_bytes(folder),
        decoder=OnnxDecoder(folder, keeps_prefix=True),
        chat_format=ChatFormat.from_folder(folder),
    )
