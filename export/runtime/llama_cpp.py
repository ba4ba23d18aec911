"""Runs llama.cpp for comparison: quantizes a float GGUF file (`benchmarks.peers.gguf_writer`) and decodes one.

This alone in the project needs llama-cpp-python, which is compiled for the machine that it runs on. Its time and memory
are measured in a process that imports this file, so it imports neither torch nor a GGUF reader. Source: llama.h.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from toolkit.errors import InputError
from toolkit.generation.generate import Floats

Quantization = Literal["Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q8_0"]

BATCH = 512
"""Tokens that llama.cpp reads at once, by its own default."""


def is_installed() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


def library() -> ModuleType:
    """Import llama-cpp-python; raises `InputError` if it is missing."""
    try:
        return importlib.import_module("llama_cpp")
    except ImportError as error:
        raise InputError(
            "comparing with a GGUF file needs llama-cpp-python, which is not installed; "
            'CMAKE_ARGS="-DLLAVA_BUILD=OFF" pip install llama-cpp-python'
        ) from error


class LlamaCpp:
    """A loaded GGUF file, which decodes one row as far as comparisons need it."""

    def __init__(self, path: Path, *, threads: int, max_length: int) -> None:
        """Load a file; raises `InputError` if llama-cpp-python is missing."""
        self._api: Any = library()
        self._path = path
        self._model = self._api.Llama(
            str(path), n_ctx=max_length, n_batch=BATCH, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self.vocab_size = self._model.n_vocab()
        self._batch = self._api.llama_batch_init(BATCH, 0, 1)
        self._length = 0

    def step_bytes(self, context: int) -> int:
        """Count the bytes of weights and cache that a step reads; this itself takes time and memory."""
        from gguf import GGUFReader

        tensors = {tensor.name: tensor for tensor in GGUFReader(self._path).tensors}
        looked_up = tensors["token_embd.weight"].n_bytes if "output.weight" in tensors else 0
        weight_bytes = sum(tensor.n_bytes for tensor in tensors.values()) - int(looked_up)
        layers, kv_width = int(self._model.metadata["llama.block_count"]), tensors["blk.0.attn_k.weight"].shape[1]
        position_bytes = int(2 * 2 * layers * kv_width)  # key and value, in fp16
        return int(weight_bytes + position_bytes * context)

    def read(self, tokens_T: Sequence[int]) -> int:
        """Forget everything and read a prompt; returns the most probable next token."""
        self._forget()
        return int(self._decode(tokens_T, every=False)[-1].argmax())

    def append(self, token: int) -> int:
        """Read one more token; returns the most probable next one."""
        return int(self._decode([token], every=False)[-1].argmax())

    def score(self, tokens_T: Sequence[int], *, first: int = 0) -> Floats:
        """Return logits_TV after each token of a text from index `first` on."""
        self._forget()
        return self._decode(tokens_T, every=True)[first:]

    def _forget(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._model.ctx), True)
        self._length = 0

    def _decode(self, tokens_T: Sequence[int], *, every: bool) -> Floats:
        """Append tokens in batches; returns the logits after every one of them, or after the last alone."""
        api, context = self._api, self._model.ctx
        last = len(tokens_T) - 1
        rows: list[Floats] = []
        for begin in range(0, len(tokens_T), BATCH):
            piece = tokens_T[begin : begin + BATCH]
            for place, token in enumerate(piece):
                self._batch.token[place], self._batch.pos[place] = token, self._length + place
                self._batch.n_seq_id[place], self._batch.seq_id[place][0] = 1, 0
                self._batch.logits[place] = every or begin + place == last
            self._batch.n_tokens = len(piece)
            failed = api.llama_decode(context, self._batch)
            if failed:
                raise RuntimeError(f"llama_decode returned {failed} at position {self._length}")
            self._length += len(piece)
            rows += [
                np.ctypeslib.as_array(api.llama_get_logits_ith(context, place), (self.vocab_size,)).copy()
                for place in range(len(piece))
                if every or begin + place == last
            ]
        return np.stack(rows)


def quantize(source: Path, out: Path, kind: Quantization, *, threads: int) -> None:
    """Quantize a float GGUF file as llama.cpp does by default."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    parameters.nthread = threads
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), parameters)
    if failed:
        raise InputError(f"llama.cpp cannot quantize {source} to {kind}; it returned {failed}")
