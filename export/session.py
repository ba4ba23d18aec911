"""An exported folder as a `toolkit.generate.Decoder`, through onnxruntime and numpy alone.

    cache of a layer   float32 [rows, num_key_value_heads, max_length, head_dim], key and value
                       row b holds lengths_B[b] positions from the left; what lies right of them is stale

One allocation serves as past and as present, so a step writes its new column in place and copies nothing. The operating
system hands out its pages when they are first written: a long context costs memory only as far as it is used.
Prompts are read row by row, so rows of different lengths need no padding; steps run all rows at once.

Shapes: B rows of the batch, T new tokens, S attended tokens, V vocabulary.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.external_data import check_external_data
from export.model_config import read_model_config
from toolkit.errors import InputError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

MODEL_FILE = "model.onnx"
PROMPT_CHUNK = 128
"""Tokens of a prompt that run at once: enough for full speed, few enough that their logits stay small."""
ERRORS_ONLY = 3


class OnnxDecoder:
    """The model of an exported folder with its cache; see `toolkit.generate.Decoder`."""

    def __init__(self, folder: Path) -> None:
        """Raises `InputError` where the folder is not an exported one, or its files are damaged or unsafe."""
        model_path = folder / MODEL_FILE
        if not model_path.is_file():
            raise InputError(
                f"{model_path} must exist; make the folder with: toolkit export MODEL --int4 --out {folder}"
            )
        self.config = read_model_config(folder)
        self.max_length = self.config.max_position_embeddings
        check_external_data(model_path)
        self._session = _open_session(model_path)
        names = [f"{layer}.{kind}" for layer in range(self.config.num_hidden_layers) for kind in ("key", "value")]
        self._cache: dict[str, Floats] = dict.fromkeys(names, np.empty((0,), dtype=np.float32))
        self._rows_allocated = 0
        self._lengths_B: Ints = np.zeros(0, dtype=np.int64)

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        """Forget everything, read the prompts; returns logits_BV after each prompt's last token."""
        longest = max(len(prompt) for prompt in prompts)
        if longest > self.max_length:
            raise InputError(
                f"the prompt ({longest} tokens) must fit the model's context ({self.max_length}); shorten it"
            )
        self._allocate(len(prompts))
        self._lengths_B = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        logits_BV = np.empty((len(prompts), self.config.vocab_size), dtype=np.float32)
        for row, prompt in enumerate(prompts):
            for begin in range(0, len(prompt), PROMPT_CHUNK):
                tokens_T = np.asarray(prompt[begin : begin + PROMPT_CHUNK], dtype=np.int64)
                lengths = np.array([begin + len(tokens_T)])
                logits_BV[row] = self._run(tokens_T[None], lengths, row)[0, -1]
        return logits_BV

    def step(self, tokens_B: Ints) -> Floats:
        """Append one token to each row; returns logits_BV after it."""
        self._lengths_B = self._lengths_B + 1
        assert self._lengths_B.max() <= self.max_length
        logits_BTV = self._run(np.ascontiguousarray(tokens_B, dtype=np.int64)[:, None], self._lengths_B, 0)
        return logits_BTV[:, 0]

    def keep(self, rows: Ints) -> None:
        """Keep only these rows of the batch, in this order."""
        self._lengths_B = self._lengths_B[rows]
        used = int(self._lengths_B.max())
        for cache in self._cache.values():
            cache[: len(rows), :, :used] = cache[rows, :, :used]

    def score(self, tokens_T: Sequence[int]) -> Floats:
        """Read one text; returns logits_TV after each of its tokens."""
        self._allocate(1)
        self._lengths_B = np.array([len(tokens_T)])
        pieces = []
        for begin in range(0, len(tokens_T), PROMPT_CHUNK):
            piece_T = np.asarray(tokens_T[begin : begin + PROMPT_CHUNK], dtype=np.int64)
            pieces.append(self._run(piece_T[None], np.array([begin + len(piece_T)]), 0)[0])
        return np.concatenate(pieces)

    def _allocate(self, rows: int) -> None:
        if rows <= self._rows_allocated:
            return
        config = self.config
        shape = (rows, config.num_key_value_heads, self.max_length, config.head_dim)
        for name in self._cache:
            self._cache[name] = np.empty((0,), dtype=np.float32)  # free the old one before the new one is made
            self._cache[name] = np.empty(shape, dtype=np.float32)
        self._rows_allocated = rows

    def _run(self, tokens_BT: Ints, lengths_B: Ints, first_row: int) -> Floats:
        """Run new tokens of the rows from `first_row` on, whose lengths include them; returns logits_BTV."""
        rows, new = tokens_BT.shape
        mask_BS = (np.arange(lengths_B.max()) < lengths_B[:, None]).astype(np.int64)
        logits_BTV = np.empty((rows, new, self.config.vocab_size), dtype=np.float32)
        binding = self._session.io_binding()
        _bind_input(binding, "input_ids", tokens_BT)
        _bind_input(binding, "attention_mask", mask_BS)
        _bind_output(binding, "logits", logits_BTV)
        for name, cache in self._cache.items():
            view = cache[first_row : first_row + rows]
            _bind_input(binding, f"past_key_values.{name}", view)
            _bind_output(binding, f"present.{name}", view)
        self._session.run_with_iobinding(binding)
        return logits_BTV


def physical_cores() -> int:
    """Cores that this process may use, each counted once however many threads it runs."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(topology.read_text() if topology.is_file() else str(cpu))
    return len(siblings)


def _open_session(model_path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = physical_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    try:
        return ort.InferenceSession(str(model_path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise InputError(
            f"{model_path} must be a model that onnxruntime opens: {str(error).splitlines()[0]}"
        ) from error


def _bind_input(binding: ort.IOBinding, name: str, array: Floats | Ints) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _bind_output(binding: ort.IOBinding, name: str, array: Floats) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
