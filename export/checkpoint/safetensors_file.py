"""Rows of tensors out of a safetensors file, by plain reads.

    ┌──────────┬─────────────────────────────────────┬────────────────┐
    │ N, eight │ N bytes of JSON: name → dtype,       │ tensors, row-  │
    │ bytes    │ shape, data_offsets [begin, end)     │ major          │
    └──────────┴─────────────────────────────────────┴────────────────┘   offsets count from the end of the JSON

The library maps the whole file, and every page that was touched counts as this process' memory until the file is closed;
reads leave nothing behind. It still opens each file once, because it checks the header. Source: the format's README.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from toolkit.errors import InputError
from toolkit.json_files import check_regular
from toolkit.sources.stores import LFS_POINTER, LFS_REMEDY

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Where a checkpoint's tensors lie: in one file, or in those that the index names."""
COMPARED_BYTES = 1 << 24
"""Of each of two tensors, at once."""
DTYPES: Mapping[str, tuple[type[np.generic], torch.dtype]] = {
    "F32": (np.float32, torch.float32),
    "F16": (np.float16, torch.float16),
    "BF16": (np.int16, torch.bfloat16),  # numpy has none: the bits alone
}


@dataclass(frozen=True, kw_only=True)
class StoredRows:
    """Where a tensor of the file lies."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """From the begin of the file."""

    @property
    def row_size(self) -> int:
        """Values of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64))

    def size_bytes(self, rows: int) -> int:
        return rows * self.row_size * np.dtype(DTYPES[self.dtype][0]).itemsize

    def check_type(self, name: str) -> None:
        """Raises `InputError` where the values are none of `DTYPES`."""
        if self.dtype not in DTYPES:
            raise InputError(f"{name} in {self.path} has type {self.dtype}, which must be one of {', '.join(DTYPES)}")

    def equals(self, other: StoredRows) -> bool:
        """Whether two tensors hold the same values; raises `InputError` as `read`, and none of `DTYPES` equals nothing."""
        if self.shape != other.shape or not self.shape or not {self.dtype, other.dtype} <= DTYPES.keys():
            return False
        step = max(1, COMPARED_BYTES // max(1, self.size_bytes(1)))
        pairs = ((begin, min(begin + step, self.shape[0])) for begin in range(0, self.shape[0], step))
        return all(torch.equal(self.read(*rows), other.read(*rows)) for rows in pairs)

    def read(self, begin: int, end: int) -> Tensor:
        """Rows from `begin` up to `end` as float32."""
        bits, dtype = DTYPES[self.dtype]
        count = (end - begin) * self.row_size
        values = np.fromfile(self.path, bits, count, offset=self.offset + self.size_bytes(begin))
        if len(values) != count:
            raise InputError(f"{self.path} must stay as it is while it is read, but became shorter; fetch it again")
        return torch.from_numpy(values).view(dtype).float().view(end - begin, *self.shape[1:])


def open_safetensors(path: Path) -> dict[str, StoredRows]:
    """Every tensor of a file by its name.

    Raises `InputError` where the file is damaged.
    """
    if path.exists():
        check_regular(path)
    try:
        with safe_open(path, framework="pt"), path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(header_size))
    except (SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size if path.is_file() else 0
        remedy = LFS_REMEDY if size and _begins(path, LFS_POINTER) else "fetch it again"
        raise InputError(f"{path} ({size} bytes) must be a whole safetensors file: {error}; {remedy}") from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, facts in header.items():
        offset = 8 + header_size + facts["data_offsets"][0]
        tensors[name] = StoredRows(path=path, dtype=facts["dtype"], shape=tuple(facts["shape"]), offset=offset)
    return tensors


def _begins(path: Path, words: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(words)) == words
