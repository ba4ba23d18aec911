"""Reads and writes the header of a safetensors file, which says where its tensors are, without the tensors.

    ┌──────────┬─────────────────────────────────────┬────────────────┐
    │ N, eight │ N bytes of JSON: name → dtype,      │ tensors, row-  │
    │ bytes    │ shape, data_offsets [begin, end)    │ major          │
    └──────────┴─────────────────────────────────────┴────────────────┘   offsets count from the end of the JSON

The library writes only what is completely in memory, and maps the whole file that it reads, so every page touched
counts as this process's memory until the file is closed. For a model larger than memory, tensors are written after a
header and read from their offsets a few rows at a time. The library still opens each file once, because it checks the
header. Source: the format's README.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

from toolkit.errors import InputError
from toolkit.json_files import check_regular
from toolkit.sources.stores import LFS_POINTER, LFS_REMEDY

VALUE_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
"""The bytes of a value of each type that is written."""
BF16: Mapping[str, str] = {}
"""No other type for any tensor."""
SLICE_WEIGHTS = 1 << 22
"""The most values in memory at once: 16 MB of float32."""


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """The facts of one tensor in a header."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Bytes from the beginning of the file."""


def read_header(path: Path) -> dict[str, TensorFacts]:
    """Read the facts of every tensor of a file, by name.

    Raises `InputError` if the file is damaged.
    """
    if path.exists():
        check_regular(path)
    try:
        with safe_open(path, framework="np"), path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        file_bytes = path.stat().st_size if path.is_file() else 0
        remedy = LFS_REMEDY if file_bytes and _begins(path, LFS_POINTER) else "fetch it again"
        raise InputError(f"{path} ({file_bytes} bytes) must be a whole safetensors file: {error}; {remedy}") from error
    header.pop("__metadata__", None)
    return {
        name: TensorFacts(dtype=facts["dtype"], shape=tuple(facts["shape"]), offset=8 + size + facts["data_offsets"][0])
        for name, facts in header.items()
    }


def write_header(file: BinaryIO, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str] = BF16) -> int:
    """Write the header for tensors that follow in this order, of the format's `dtypes` by name or bf16; returns the
    bytes that they take."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        dtype = dtypes.get(name, "BF16")
        begin, end = end, end + VALUE_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    file.write(len(text).to_bytes(8, "little") + text)
    return end


def _begins(path: Path, words: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(words)) == words
