"""A model with its cache: runs new tokens of some rows and appends their keys and values.

    cache of a layer   float32 or int8 [rows, num_key_value_heads, room, head_dim], key and value
                       the caller knows how many positions of a row are valid; those after them are stale

One allocation serves as past and as present, so a step writes its new position in place and copies nothing. It grows by
an eighth when it is full, so a long context costs memory only as far as it is used. onnxruntime's buffers for reading
prompts are freed by the first step after them.

Shapes: B rows that run, T new tokens, S attended tokens, V vocabulary, G kv heads, A head dim.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from toolkit.machine.advice import advise

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

SMALLEST_ROOM = 256
"""The fewest positions by which a cache grows."""
LOGITS_FROM = "logits_from"
"""The graph's overridable input: the first new token whose logits are computed; negative ones count from the end."""
ADAPTERS = "adapter_of_row"
"""The input of a graph with adapters (`export.runtime.adapted_graph`): each row's, [B]; 0 for none."""
RELEASE = {"memory.enable_memory_arena_shrinkage": "cpu:0"}


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """The shape of one row of a cache."""

    names: tuple[str, ...]
    heads: int
    head_dim: int
    dtype: np.dtype[Any]

    def array_bytes(self, positions: int) -> int:
        """Return the size of one layer's keys or values."""
        return self.heads * positions * self.head_dim * self.dtype.itemsize


class CachedModel:
    """An open graph with its cache; `export.runtime.exported_model` opens one."""

    def __init__(
        self,
        session: ort.InferenceSession,
        shape: CacheShape,
        *,
        vocab_size: int,
        max_length: int,
        adapters: int = 0,
    ) -> None:
        """`adapters`: how many the graph holds, which is their input `ADAPTERS`' largest value."""
        self.shape, self.vocab_size, self.max_length = shape, vocab_size, max_length
        self.adapters = adapters
        self._session = session
        no_rows = np.empty((0, shape.heads, 0, shape.head_dim), dtype=shape.dtype)
        self._cache: dict[str, NDArray[Any]] = dict.fromkeys(shape.names, no_rows)
        self._binding: ort.IOBinding | None = None
        self._bound_rows = (0, 0)
        self._releasing = ort.RunOptions()
        for name, value in RELEASE.items():
            self._releasing.add_run_config_entry(name, value)
        self._has_read = False
        """Whether a prompt was read since memory was last given back."""

    @property
    def position_bytes(self) -> int:
        """Bytes of the cache for one position of one row."""
        return len(self.shape.names) * self.shape.array_bytes(1)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache for all rows and positions, used or not."""
        return sum(cache.nbytes for cache in self._cache.values())

    def row(self, row: int) -> dict[str, NDArray[Any]]:
        """Return the arrays of one row's cache by name, [G, room, A]."""
        return {name: cache[row] for name, cache in self._cache.items()}

    def make_room(self, rows: int, length: int, *, used: int) -> None:
        """Grow the cache to at least so many rows and positions; the first `used` positions of each row are kept."""
        has_rows, _, has_length, _ = next(iter(self._cache.values())).shape
        if rows <= has_rows and length <= has_length:
            return
        room = has_length
        if length > has_length:
            room = min(length + max(length // 8, SMALLEST_ROOM), self.max_length)
        self._binding = None
        shape = (max(rows, has_rows), self.shape.heads, room, self.shape.head_dim)
        for name, old in self._cache.items():  # one layer at a time exists twice
            self._cache[name] = _own_pages(shape, old.dtype)
            self._cache[name][:has_rows, :, :used] = old[:, :, :used]

    def move(self, origins: Sequence[int] | Ints, rows: Sequence[int] | Ints, *, used: int) -> None:
        """Copy the first `used` positions of the rows `origins` into `rows`, pairwise and all at once."""
        for cache in self._cache.values():
            cache[rows, :, :used] = cache[origins, :, :used]

    def read(self, row: int, tokens_T: Sequence[int], *, held: int, adapter: int = 0) -> Floats:
        """Read a piece of a prompt after the `held` positions of one row; returns logits_V after it."""
        logits_V: Floats = self.read_each(row, tokens_T, held=held, wanted=1, adapter=adapter)[0]
        return logits_V

    def read_each(self, row: int, tokens_T: Sequence[int], *, held: int, wanted: int = 0, adapter: int = 0) -> Floats:
        """Read a piece as `read` does; returns logits_TV after each of its last `wanted` tokens, or after all."""
        self._has_read = True
        tokens_1T = np.array([tokens_T], dtype=np.int64)
        lengths = np.array([held + len(tokens_T)])
        logits_TV: Floats = self.run(
            row, tokens_1T, lengths, wanted=wanted or len(tokens_T), adapters_B=np.array([adapter])
        )[0]
        return logits_TV

    def step(self, tokens_B: Ints, held_B: Ints, *, is_reading: bool, adapters_B: Ints | None = None) -> Floats:
        """Append one token to each of the first rows, which hold `held_B` positions; returns logits_BV after it.

        `is_reading`: another row is still reading its prompt, so the buffers for reading are kept.
        """
        releases = self._has_read and not is_reading
        self._has_read = self._has_read and is_reading
        tokens_B1 = np.ascontiguousarray(tokens_B, dtype=np.int64)[:, None]
        logits_B1V = self.run(0, tokens_B1, held_B + 1, wanted=1, releases=releases, adapters_B=adapters_B)
        return logits_B1V[:, 0]

    def run(
        self,
        first_row: int,
        tokens_BT: Ints,
        lengths_B: Ints,
        *,
        wanted: int,
        releases: bool = False,
        adapters_B: Ints | None = None,
    ) -> Floats:
        """Run new tokens of the rows from `first_row` on; returns logits_BTV after the last `wanted` tokens.

        `lengths_B` include the new tokens, for which there must be room. `releases`: give memory back to the system.
        `adapters_B`: each row's adapter, from 1 on; None or 0 for the model alone.
        """
        rows = len(tokens_BT)
        adapters_B = np.zeros(rows, dtype=np.int64) if adapters_B is None else adapters_B
        assert len(adapters_B) == rows and 0 <= adapters_B.min() <= adapters_B.max() <= self.adapters
        logits_from = np.array([-wanted])
        mask_BS = (np.arange(lengths_B.max()) < lengths_B[:, None]).astype(np.int64)
        logits_BTV = np.empty((rows, wanted, self.vocab_size), dtype=np.float32)
        binding = self._bound_cache(first_row, rows)
        _bind_input(binding, "input_ids", tokens_BT)
        _bind_input(binding, "attention_mask", mask_BS)
        _bind_input(binding, LOGITS_FROM, logits_from)
        if self.adapters:
            _bind_input(binding, ADAPTERS, adapters_B)
        _bind_output(binding, "logits", logits_BTV)
        self._session.run_with_iobinding(binding, self._releasing if releases else None)
        return logits_BTV

    def _bound_cache(self, first_row: int, rows: int) -> ort.IOBinding:
        """Bind past and present to these rows of the cache; nearly free if the last run had the same rows."""
        if self._binding is None or self._bound_rows != (first_row, rows):
            self._binding, self._bound_rows = self._session.io_binding(), (first_row, rows)
            for name, cache in self._cache.items():
                view = cache[first_row : first_row + rows]
                _bind_input(self._binding, f"past_key_values.{name}", view)
                _bind_output(self._binding, f"present.{name}", view)
        return self._binding


def _bind_input(binding: ort.IOBinding, name: str, array: NDArray[Any]) -> None:
    """Let the run read the array in place."""
    binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _bind_output(binding: ort.IOBinding, name: str, array: NDArray[Any]) -> None:
    """Let the run write into the array."""
    binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _own_pages(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Make an array of zeros in pages of its own, which return to the system when it is freed; a heap would keep
    them."""
    size_bytes = math.prod(shape) * dtype.itemsize
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    pages = mmap.mmap(-1, size_bytes, **private)
    advise(pages, "MADV_HUGEPAGE")
    return np.frombuffer(pages, dtype=dtype).reshape(shape)
