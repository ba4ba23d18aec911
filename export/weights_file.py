"""`model.onnx.data`: every large initializer at its final offset, written once, in the order that it is made.

    ┌───────────┬─────┬───────────┬─────┬──
    │ tensor 0  │ pad │ tensor 1  │ pad │ …     little-endian, row-major; offsets are multiples of ALIGNMENT
    └───────────┴─────┴───────────┴─────┴──

Invariant: a `StoredTensor` names bytes that are in the file already, so one tensor is in memory at a time and two
initializers may name the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from export.quantize import Bytes, Halves, QuantizedWeight

FILE_NAME = "model.onnx.data"
ALIGNMENT = 64
"""One cache line."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where one tensor lies."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class StoredWeight:
    """Where a quantized matrix of `out_features` × `in_features` lies."""

    bits: int
    block_size: int
    out_features: int
    in_features: int
    codes: StoredTensor
    scales: StoredTensor
    zero_points: StoredTensor

    @property
    def size_bytes(self) -> int:
        return self.codes.size_bytes + self.scales.size_bytes + self.zero_points.size_bytes


class WeightsFile:
    """The file while it is being written."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / FILE_NAME).open("wb")
        self._position = 0

    def append(self, weight: QuantizedWeight) -> StoredWeight:
        """Write a matrix's three tensors one after the other."""
        rows, blocks, blob_size = weight.codes.shape
        return StoredWeight(
            bits=weight.bits,
            block_size=weight.block_size,
            out_features=rows,
            in_features=blocks * blob_size * 8 // weight.bits,
            codes=self._append(weight.codes),
            scales=self._append(weight.scales),
            zero_points=self._append(weight.zero_points),
        )

    def _append(self, array: Bytes | Halves | NDArray[np.float32]) -> StoredTensor:
        padding = -self._position % ALIGNMENT
        data = np.ascontiguousarray(array)
        self._file.write(b"\0" * padding)
        self._file.write(data.data)
        stored = StoredTensor(dtype=data.dtype, shape=data.shape, offset=self._position + padding)
        self._position = stored.offset + data.nbytes
        return stored

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


Weights = Mapping[str, StoredWeight]
"""Stored matrices by the name of the checkpoint's tensor; q, k and v are stored as one, named
qkv_proj, gate and up as gate_up_proj."""
