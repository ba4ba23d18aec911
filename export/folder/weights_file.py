"""Writes `model.onnx.data`: every large initializer at its final offset, once, in the order in which it is made.

    ┌───────────┬─────┬───────────┬─────┬──     little-endian, row-major; offsets are multiples of 64
    │ tensor 0  │ pad │ tensor 1  │ pad │ …     codes, scales and zero points of one matrix, then of the next;
    └───────────┴─────┴───────────┴─────┴──     a matrix of floats has its values alone

Invariant: a `StoredWeight` names bytes that are in the file already, so only some rows are in memory at a time and two
initializers may name the same bytes. A matrix's place follows from its offset and sizes alone, so five numbers are
enough to resume a file that an earlier run left.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from export.quantization.codes import LARGEST_CODE_BITS, FloatWeight, QuantizedWeight, Weight
from export.runtime.aligned_data import aligned
from toolkit.records import Record

FILE_NAME = "model.onnx.data"


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor's place in the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def end(self) -> int:
        return self.offset + self.size_bytes


@dataclass(frozen=True, kw_only=True)
class StoredWeight(Record):
    """The place of a matrix of `out_features` × `in_features`, which starts at `offset`."""

    bits: int
    block_size: int
    out_features: int
    in_features: int
    offset: int

    @property
    def is_float(self) -> bool:
        return self.bits > LARGEST_CODE_BITS

    @property
    def values(self) -> StoredTensor:
        dtype = np.dtype(np.float16 if self.bits == 16 else np.float32)
        return StoredTensor(dtype=dtype, shape=(self.out_features, self.in_features), offset=self.offset)

    @property
    def codes(self) -> StoredTensor:
        shape = (self.out_features, self._blocks, self.block_size * self.bits // 8)
        return StoredTensor(dtype=np.dtype(np.uint8), shape=shape, offset=self.offset)

    @property
    def scales(self) -> StoredTensor:
        shape = (self.out_features, self._blocks)
        return StoredTensor(dtype=np.dtype(np.float16), shape=shape, offset=aligned(self.codes.end))

    @property
    def zero_points(self) -> StoredTensor:
        shape = (self.out_features, self._blocks if self.bits == 8 else -(-self._blocks // 2))
        return StoredTensor(dtype=np.dtype(np.uint8), shape=shape, offset=aligned(self.scales.end))

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The tensors in the order of the file."""
        return (self.values,) if self.is_float else (self.codes, self.scales, self.zero_points)

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def step_bytes(self) -> int:
        """The bytes that a product reads from memory, where fp16 has become float32."""
        return 2 * self.size_bytes if self.bits == 16 else self.size_bytes

    @property
    def _blocks(self) -> int:
        return self.in_features // self.block_size


class WeightsFile:
    """A weights file that is being written."""

    def __init__(self, folder: Path, *, end: int) -> None:
        """Continue an existing file after its first `end` bytes; 0 starts a new one."""
        path = folder / FILE_NAME
        self._file = path.open("rb+" if end else "wb")
        self._file.truncate(end)
        self.end = end

    def append(self, slices: Iterable[Weight], out_features: int) -> StoredWeight:
        """Write a matrix that arrives in slices of its rows, `out_features` in all."""
        stored: StoredWeight | None = None
        row = 0
        for weight in slices:
            stored = stored or self._place(weight, out_features)
            for tensor, array in zip(stored.tensors, weight.arrays, strict=True):
                self._write(array, tensor.offset + row * (tensor.size_bytes // out_features))
            row += len(weight.arrays[0])
        assert stored and row == out_features
        self.end = stored.tensors[-1].end
        return stored

    def replace_scales(self, stored: StoredWeight, scales: NDArray[np.float16]) -> None:
        """Overwrite the scales of a matrix in the file."""
        assert scales.shape == stored.scales.shape
        self._write(scales, stored.scales.offset)

    def sync(self) -> None:
        """Wait until everything that was written is on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def _place(self, weight: Weight, out_features: int) -> StoredWeight:
        return StoredWeight(
            bits=weight.bits,
            block_size=weight.block_size,
            out_features=out_features,
            in_features=weight.in_features,
            offset=aligned(self.end),
        )

    def _write(self, array: NDArray[Any], offset: int) -> None:
        self._file.seek(offset)  # padding is never written and reads as zeros
        self._file.write(np.ascontiguousarray(array).data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def read_weight(path: Path, stored: StoredWeight) -> Weight:
    """Map a matrix of a file."""
    arrays = [np.memmap(path, t.dtype, "r", offset=t.offset, shape=t.shape) for t in stored.tensors]
    if stored.is_float:
        return FloatWeight(values=arrays[0])
    codes, scales, zero_points = arrays
    return QuantizedWeight(
        bits=stored.bits, block_size=stored.block_size, codes=codes, scales=scales, zero_points=zero_points
    )


Weights = Mapping[str, StoredWeight]
"""Stored matrices by the name of the checkpoint's tensor; q, k and v are stored as one, named qkv_proj, and gate and up
as gate_up_proj."""
