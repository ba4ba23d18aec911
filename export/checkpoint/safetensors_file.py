"""Reads rows of tensors from a safetensors file by plain reads, which leave nothing in this process' memory.

`toolkit.sources.safetensors_header` finds their offsets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.sources.safetensors_header import TensorFacts, read_header

COMPARED_BYTES = 1 << 24
"""Bytes of each of two tensors that are compared at once."""
DTYPES: Mapping[str, tuple[type[np.generic], torch.dtype]] = {
    "F32": (np.float32, torch.float32),
    "F16": (np.float16, torch.float16),
    "BF16": (np.int16, torch.bfloat16),  # numpy has no such type: the bits alone
}


@dataclass(frozen=True, kw_only=True)
class StoredRows(TensorFacts):
    """A tensor's place in a file."""

    path: Path

    @property
    def rows(self) -> int:
        """The number of rows; a single number is a row."""
        return self.shape[0] if self.shape else 1

    @property
    def row_size(self) -> int:
        """The number of values in one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64))

    def size_bytes(self, rows: int) -> int:
        return rows * self.row_size * np.dtype(DTYPES[self.dtype][0]).itemsize

    def check_type(self, name: str) -> None:
        """Raise `InputError` if the type is none of `DTYPES`."""
        if self.dtype not in DTYPES:
            raise InputError(
                f"{name} in {self.path} has type {self.dtype}: expected one of {', '.join(DTYPES)}; convert the "
                "checkpoint to one of them"
            )

    def equals(self, other: StoredRows) -> bool:
        """Whether two tensors have the same values, which must be of `DTYPES`; raises as `read` does."""
        if self.shape != other.shape or not self.shape or not {self.dtype, other.dtype} <= DTYPES.keys():
            return False
        step = max(1, COMPARED_BYTES // max(1, self.size_bytes(1)))
        pairs = ((begin, min(begin + step, self.shape[0])) for begin in range(0, self.shape[0], step))
        return all(torch.equal(self.read(*rows), other.read(*rows)) for rows in pairs)

    def read(self, begin: int, end: int) -> Tensor:
        """Read rows from `begin` up to `end` as float32."""
        bits, dtype = DTYPES[self.dtype]
        count = (end - begin) * self.row_size
        values = np.fromfile(self.path, bits, count, offset=self.offset + self.size_bytes(begin))
        if len(values) != count:
            raise InputError(f"{self.path} became shorter while it was read; fetch it again")
        return torch.from_numpy(values).view(dtype).float().view(end - begin, *self.shape[1:])


def open_safetensors(path: Path) -> dict[str, StoredRows]:
    """Find every tensor of a file by name; raises `InputError` if the file is damaged."""
    return {
        name: StoredRows(path=path, dtype=facts.dtype, shape=facts.shape, offset=facts.offset)
        for name, facts in read_header(path).items()
    }
