"""Loads an exported folder as the chat needs it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from apps.learned_questions import learned_questions
from apps.read_ahead import ReadAhead
from export.runtime.decoder import OnnxDecoder, OpenDecoder
from export.runtime.verify.checks import check_start, outgrown, why_no_record
from toolkit.errors import InputError
from toolkit.formats.chat_format import TOKENIZER, ChatFormat
from toolkit.generation.chat_model import ChatModel, LocalChatModel
from toolkit.generation.speculation import SpeculativeDecoder
from toolkit.runs import folder_bytes
from toolkit.terminal import say

CLOSE_S = 10.0
"""Most seconds that a closing model waits for a turn to stop; a long prompt is read to the end of its chunk."""

CHAT_DECODER = partial(OnnxDecoder, keeps_prefix=True)
"""Opens a decoder that keeps its prefix, because each turn of a chat continues the one before."""


class Stoppable(Protocol):
    """A turn that ends soon after it is asked to."""

    stop_requested: bool


@dataclass(kw_only=True)
class Model:
    """A loaded model, here or behind an endpoint."""

    name: str
    size_bytes: int
    chat_model: ChatModel
    endpoint: tuple[str, int] | None = None
    """Host and port of the server that answers; None if the model runs in this process."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the model writes a turn or reads ahead."""
    goes_on: bool = True
    """Whether it can continue a turn that was interrupted."""
    ahead: ReadAhead | None = None
    """Reads what is being typed; None if the model runs elsewhere."""
    questions: tuple[str, ...] = ()
    """Questions that it learned from, to begin a chat with."""
    writing: list[Stoppable] = field(default_factory=list)
    """The turns that are being written, or wait for the lock."""

    @property
    def facts(self) -> str:
        """Describe the model for the page in a few words."""
        context = f"context {self.chat_model.max_length:,} tokens"
        if self.endpoint:
            return f"{context} · answers from {self.endpoint[0]}:{self.endpoint[1]}"
        return f"{self.size_bytes / 1e6:,.0f} MB · {context} · runs on this machine only"


def close_model(model: Model) -> None:
    """Stop the model's turns and keep its lock, so that no thread computes while the process ends.

    A process that ends under a computing thread is aborted by the C++ library that the thread is in.
    """
    ends_at = time.monotonic() + CLOSE_S
    for turn in list(model.writing):
        turn.stop_requested = True
    while model.writing and time.monotonic() < ends_at:
        time.sleep(0.02)
    model.lock.acquire(timeout=max(0.0, ends_at - time.monotonic()))


def check_folder(folder: Path) -> None:
    """Run the fast part of `toolkit verify`; raises `InputError` if it fails.

    Warns if there is nothing to check, or if long chats will go astray.
    """
    if not check_start(folder):
        say(f"{folder} cannot be verified: it {why_no_record(folder)}")
    elif line := outgrown(folder):
        say(line)


def chat_format_of(folder: Path, adapter: Path | None = None) -> ChatFormat:
    """Read the tokenizer and template that a folder's model has with an adapter: the adapter's own, if it has any,
    because they were trained together.

    Raises `InputError` if the adapter's tokenizer gives a token another id than the folder's.
    """
    own = ChatFormat.from_folder(folder)
    if adapter is None or not (adapter / TOKENIZER).is_file():
        return own
    trained = ChatFormat.from_folder(adapter, model_folder=folder)
    ids = own.tokenizer.get_vocab()
    for token, number in trained.tokenizer.get_vocab().items():
        if ids.get(token) != number:
            raise InputError(
                f"{token!r:.40} is number {number} in the tokenizer of {adapter} and {ids.get(token)} in that of "
                f"{folder}; give the exported folder of the adapter's own base"
            )
    return trained


def load_model(folder: Path, open_decoder: OpenDecoder = CHAT_DECODER) -> Model:
    """Load an exported folder; raises `InputError` if it is none or fails the fast part of `toolkit verify`."""
    check_folder(folder)
    decoder, lock = open_decoder(folder), threading.Lock()
    chat_format = chat_format_of(folder, decoder.adapter)
    parts = [folder] if decoder.adapter is None else [folder, decoder.adapter]
    return Model(
        name=" + ".join(part.resolve().name for part in parts),
        size_bytes=folder_bytes(folder),
        chat_model=LocalChatModel(SpeculativeDecoder(decoder, time.perf_counter), chat_format),
        lock=lock,
        questions=learned_questions(folder, chat_format),
        ahead=ReadAhead(chat_format.prompt_ids, decoder.read_ahead, lock),
    )
