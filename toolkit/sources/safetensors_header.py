"""Reads and writes the header of a safetensors file, which says where its tensors are, without the tensors.

    ┌──────────┬─────────────────────────────────────┬────────────────┐
    │ N, eight │ N bytes of JSON: name → dtype,      │ tensors, row-  │
    │ bytes    │ shape, data_offsets [begin, end)    │ major          │
    └──────────┴─────────────────────────────────────┴────────────────┘   offsets count from the end of the JSON

The library writes only what is completely in memory, and maps the whole file that it reads, so every page touched
counts as this process's memory until the file is closed. For a model larger than memory, tensors are written after a
header and read from their offsets a few rows at a time. Nor is the library among what runs at the edge, where adapters
are read; so a header is checked here, as the library does. Source: the format's README.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import InputError
from toolkit.field_types import fits
from toolkit.json_files import check_regular, parse_json
from toolkit.sources.stores import LFS_POINTER, LFS_REMEDY

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""A checkpoint's tensors are in one file, or in those that the index names."""
METADATA = "__metadata__"
MOST_DIMENSIONS = 16
MOST_HEADER_BYTES = 100_000_000
"""The library's limit."""
BITS = (
    dict.fromkeys(("F64", "I64", "U64", "C64"), 64)
    | dict.fromkeys(("F32", "I32", "U32"), 32)
    | dict.fromkeys(("F16", "BF16", "I16", "U16"), 16)
    | dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
    | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
)
"""The bits of a value of each of the format's types."""
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
        with path.open("rb") as file:
            size_bytes, count = path.stat().st_size, int.from_bytes(file.read(8), "little")
            if not 0 < count <= min(size_bytes - 8, MOST_HEADER_BYTES):
                raise ValueError(f"its header cannot have {count} bytes")
            header: Any = parse_json(file.read(count), "its header")
        return _facts(header, begin=8 + count, end=size_bytes)
    except (InputError, OSError, ValueError) as error:
        file_bytes = path.stat().st_size if path.is_file() else 0
        remedy = LFS_REMEDY if file_bytes and _begins(path, LFS_POINTER) else "fetch it again"
        raise InputError(f"{path} ({file_bytes} bytes) must be a whole safetensors file: {error}; {remedy}") from error


def _facts(header: Any, begin: int, end: int) -> dict[str, TensorFacts]:
    """Return the facts in a header; raises `ValueError` unless its tensors fill the file from `begin` up to `end`."""
    facts: dict[str, TensorFacts] = {}
    if not fits(header, dict[str, dict[str, Any]]):
        raise ValueError("its header must be an object of objects")
    for name, stored in header.items():
        if name == METADATA:
            continue
        dtype, shape, offsets = (stored.get(key) for key in ("dtype", "shape", "data_offsets"))
        if not (fits(dtype, str) and dtype in BITS and fits(shape, list[int]) and fits(offsets, list[int])):
            raise ValueError(f"the header of {name} must have a dtype, a shape and data_offsets")
        if len(shape) > MOST_DIMENSIONS or len(offsets) != 2:
            raise ValueError(f"{name} must have at most {MOST_DIMENSIONS} dimensions and two data_offsets")
        if min([*shape, *offsets]) < 0 or (offsets[1] - offsets[0]) * 8 != math.prod(shape) * BITS[dtype]:
            raise ValueError(f"{name} must have the bytes of its shape {shape} in {dtype}, not {offsets}")
        facts[name] = TensorFacts(dtype=dtype, shape=tuple(shape), offset=begin + offsets[0])
    place = begin
    for name, found in sorted(facts.items(), key=lambda pair: (pair[1].offset, math.prod(pair[1].shape))):
        if found.offset != place:
            raise ValueError(f"{name} must begin where the tensor before it ends")
        place += math.prod(found.shape) * BITS[found.dtype] // 8
    if place != end:
        raise ValueError(f"its tensors end at byte {place} of {end}")
    return facts


def read_floats(path: Path, facts: TensorFacts) -> NDArray[np.float32]:
    """Read a whole tensor of one of the types in `VALUE_BYTES`."""
    bits = np.fromfile(path, f"<u{VALUE_BYTES[facts.dtype]}", math.prod(facts.shape), offset=facts.offset)
    if facts.dtype == "BF16":
        bits = bits.astype("<u4") << 16  # the upper half of a float32
    floats = bits.view("<f2" if facts.dtype == "F16" else "<f4")
    return floats.astype(np.float32).reshape(facts.shape)


def write_header(file: BinaryIO, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str] = BF16) -> int:
    """Write the header for tensors that follow in this order, of the format's `dtypes` by name or bf16; returns the
    bytes that they take."""
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
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
