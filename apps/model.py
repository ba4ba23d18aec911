"""An exported folder, loaded as the chat needs it."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from export.session import Cache, OnnxDecoder
from export.verify import check_start
from toolkit.chat_format import ChatFormat
from toolkit.generate import Decoder
from toolkit.runs import folder_bytes
from toolkit.speculation import SpeculativeDecoder


@dataclass(kw_only=True)
class Model:
    """A loaded model as the page needs it."""

    name: str
    size_bytes: int
    decoder: Decoder
    chat_format: ChatFormat
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held by the turn that the decoder is running."""


def load_model(folder: Path, cache: Cache = "exact", prefix_bytes: int = 0, prepacked: bool = False) -> Model:
    """Load an exported folder; raises `InputError` where it is none, or the fast part of `toolkit verify` fails."""
    is_verified = check_start(folder)
    decoder = OnnxDecoder(folder, cache=cache, keeps_prefix=True, prefix_bytes=prefix_bytes, prepacked=prepacked)
    model = Model(
        name=folder.resolve().name,
        size_bytes=folder_bytes(folder),
        decoder=SpeculativeDecoder(decoder, time.perf_counter),
        chat_format=ChatFormat.from_folder(folder),
    )
    if not is_verified:
        print(f"{folder} cannot be verified: it was exported before there was a record; export again", file=sys.stderr)
    return model
