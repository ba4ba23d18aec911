"""Moves the ranges of an ONNX file's external data to multiples of ALIGNMENT.

onnxruntime's kernels compute the addresses of a packed matrix's parts from its first byte, which they expect at a
multiple of 64. The file that onnxruntime writes (1.31) aligns ranges above 1 MB; smaller ones follow each other
unaligned, and products read from there are wrong (logits of 0 and NaN were seen). So each range is written again at an
aligned offset.

In TensorProto.external_data the keys `offset` and `length` give the tensor's range, and each `prepacked_N` gives the
ranges of a packed form: kernel|offset;length;checksum|…   `export.runtime.external_data` describes the wire format.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from pathlib import Path

from export.runtime.external_data import CHILDREN, EXTERNAL_DATA, read_pair, wire_fields, written, written_pair

ALIGNMENT = 64
"""In bytes; also the size of a cache line."""
PREPACKED = "prepacked_"
Move = Callable[[int, int], int]
"""Copies a range (offset, length) and returns its new offset."""


def align_data(model_path: Path, data_path: Path) -> None:
    """Rewrite a model and the one file that holds its external data."""
    fresh = data_path.with_suffix(".aligned")
    with data_path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as source, fresh.open("wb") as target:
        content = memoryview(source)

        def move(offset: int, length: int) -> int:
            begin = aligned(target.tell())
            target.seek(begin)
            target.write(content[offset : offset + length])
            return begin

        moved = _with_moved_ranges(memoryview(model_path.read_bytes()), "model", move)
        content.release()
    model_path.write_bytes(moved)
    os.replace(fresh, data_path)


def aligned(position: int) -> int:
    """Round a position up to a multiple of ALIGNMENT."""
    return position + -position % ALIGNMENT


def _with_moved_ranges(message: memoryview, kind: str, move: Move) -> bytes:
    """Return a message in which every tensor's entries are rewritten, at any depth."""
    pieces: list[bytes | memoryview] = []
    entries: dict[str, str] = {}
    for number, payload, whole in wire_fields(message):
        if payload is not None and kind == "tensor" and number == EXTERNAL_DATA:
            name, value = read_pair(payload)
            entries[name] = value
        elif payload is not None and number in CHILDREN[kind]:
            pieces.append(written(number, _with_moved_ranges(payload, CHILDREN[kind][number], move)))
        else:
            pieces.append(whole)
    for name, value in _moved(entries, move).items():
        pieces.append(written_pair(name, value))
    return b"".join(pieces)


def _moved(entries: dict[str, str], move: Move) -> dict[str, str]:
    found = dict(entries)
    if entries:
        found["offset"] = str(move(int(entries["offset"]), int(entries["length"])))
    for name, value in entries.items():
        if name.startswith(PREPACKED):
            kernel, *blobs = value.split("|")
            parts = [blob.split(";") for blob in blobs]
            placed = [";".join([str(move(int(at), int(size))), size, *rest]) for at, size, *rest in parts]
            found[name] = "|".join([kernel, *placed])
    return found
