"""Finds where an ONNX file's external data is stored, and checks that it is safe to open.

onnxruntime refuses some dangerous paths but follows a hard link to any file of the user's, so every location is checked
before a session is made. The protobuf is parsed here, because the chat does not import onnx.

Wire format: a field is varint (number << 3 | type); type 0 varint, 1 eight bytes, 2 varint length and bytes, 5 four
bytes. Source: protocol buffers' encoding; the field numbers are those of onnx.proto.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from toolkit.errors import InputError
from toolkit.json_files import MOST_NESTED, check_regular, read_bytes
from toolkit.runs import file_digest, read_manifest
from toolkit.sources.stores import check_inside

CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
EXTERNAL_DATA = 13
"""TensorProto.external_data, a list of (key = 1, value = 2)."""
NAME, FLOAT_DATA, RAW_DATA = 8, 4, 9
"""Field numbers of a TensorProto."""
LONGEST_VARINT = 10
MOST_GRAPH_BYTES = 256 * 2**20
"""Limit for the graph file, without the weights beside it: the largest model's norms and biases take a few MB."""


def check_external_data(model_path: Path) -> None:
    """Check that every location is a regular file of the folder and long enough; raises `InputError` otherwise.

    A link is followed inside the folder's own store (`toolkit.sources.stores`). A file with several names may be
    anybody's, so it is accepted only if its digest is the manifest's.
    """
    check_inside(model_path, model_path.parent)
    content = read_bytes(model_path, MOST_GRAPH_BYTES)
    try:
        entries = {tuple(sorted(entry.items())) for entry in _external_data(memoryview(content), "model", MOST_NESTED)}
    except (ValueError, IndexError) as error:
        raise InputError(f"{model_path} is not a whole ONNX file; export again") from error
    for entry in sorted(entries):
        _check(model_path, dict(entry))


def read_number(model_path: Path, name: str) -> float | None:
    """Return the float constant of this name in a graph, or None if there is none."""
    content = memoryview(read_bytes(model_path, MOST_GRAPH_BYTES))
    try:
        tensors = (
            dict(held_fields(tensor))
            for graph in (
                message for number, message in held_fields(content) if CHILDREN["model"].get(number) == "graph"
            )
            for number, tensor in held_fields(graph)
            if CHILDREN["graph"].get(number) == "tensor"
        )
        found = next((tensor for tensor in tensors if bytes(tensor.get(NAME, b"")) == name.encode()), {})
        data = found.get(RAW_DATA, found.get(FLOAT_DATA))
        return float(struct.unpack("<f", data)[0]) if data else None
    except (ValueError, IndexError, struct.error) as error:
        raise InputError(f"{model_path} is not a whole ONNX file; export again") from error


def _check(model_path: Path, entry: dict[str, str]) -> None:
    location = entry.get("location", "")
    if location in ("", ".", "..") or Path(location).name != location or "\0" in location:
        raise InputError(
            f"external data {location!r:.200} must be a file beside {model_path}; do not trust this folder"
        )
    path = model_path.parent / location
    if not os.path.lexists(path):
        raise InputError(f"{path}, which {model_path.name} reads, is missing; copy the folder again")
    check_inside(path, model_path.parent)
    facts = check_regular(path)
    if facts.st_nlink != 1:
        _check_digest(path, facts)
    end = sum(_number(entry, key, model_path) for key in ("offset", "length"))
    if end > facts.st_size:
        raise InputError(f"{path} has {facts.st_size} of {end} bytes; it was cut short, so copy the folder again")


def _number(entry: dict[str, str], key: str, model_path: Path) -> int:
    text = entry.get(key, "0")
    if not re.fullmatch(r"[0-9]{1,20}", text):  # as onnxruntime reads it; Python accepts more notations
        raise InputError(f"{key} ({text!r:.40}) in {model_path} must be a number of bytes; export again")
    return int(text)


def _check_digest(path: Path, facts: os.stat_result) -> None:
    """Check that a file with several names (a backup, or a trap) is the one that the manifest describes."""
    outputs = (read_manifest(path.parent) or {}).get("outputs", {})
    expected = outputs.get(path.name, {}).get("sha256")
    if expected is None or _digest(path, facts.st_ino, facts.st_size, facts.st_mtime_ns) != expected:
        raise InputError(
            f"{path} has {facts.st_nlink} names (hard links) and is not the file that the manifest describes; "
            "copy the folder and try again"
        )


@cache
def _digest(path: Path, inode: int, size_bytes: int, changed_ns: int) -> str:
    """Digest a file in its present state, once for both graphs that read it."""
    return file_digest(path)


def _external_data(message: memoryview, kind: str, levels: int) -> Iterator[dict[str, str]]:
    """Yield the entries of all tensors in a message; raises `ValueError` if it is nested deeper than `levels`."""
    if not levels:
        raise ValueError(f"messages are nested deeper than {MOST_NESTED}")
    entry: dict[str, str] = {}
    for number, payload, _ in wire_fields(message):
        if payload is None:
            continue
        if kind == "tensor" and number == EXTERNAL_DATA:
            name, value = read_pair(payload)
            entry[name] = value
        elif number in CHILDREN[kind]:
            yield from _external_data(payload, CHILDREN[kind][number], levels - 1)
    if entry:
        yield entry


def read_pair(message: memoryview) -> tuple[str, str]:
    """Return key and value of one entry of `EXTERNAL_DATA`."""
    texts = {number: bytes(text).decode() for number, text, _ in wire_fields(message) if text is not None}
    return texts.get(1, ""), texts.get(2, "")


def written_pair(name: str, value: str) -> bytes:
    """Write one entry of `EXTERNAL_DATA`."""
    return written(EXTERNAL_DATA, written(1, name) + written(2, value))


def held_fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the number and the payload of each length-delimited field."""
    return ((number, held) for number, held, _ in wire_fields(message) if held is not None)


def wire_fields(message: memoryview) -> Iterator[tuple[int, memoryview | None, memoryview]]:
    """Yield each field's number, its payload if it is length-delimited, and all its bytes.

    Raises `ValueError` or `IndexError` if the message is damaged.
    """
    position = 0
    while position < len(message):
        begin = position
        key, position = read_varint(message, position)
        wire_type, payload = key & 7, None
        if wire_type == 0:
            _, position = read_varint(message, position)
        elif wire_type == 2:
            length, position = read_varint(message, position)
            payload = message[position : position + length]
            position += length
        elif wire_type in (1, 5):
            position += 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire_type}")
        if position > len(message):
            raise ValueError("a field is longer than the file")
        yield key >> 3, payload, message[begin:position]


def written(number: int, value: int | str | bytes) -> bytes:
    """Write a field: a number as a varint, anything else length-delimited."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    payload = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def read_varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return a number and the position after it; raises `ValueError` if it takes more bytes than 64 bits need."""
    value = 0
    for shift in range(0, 7 * LONGEST_VARINT, 7):
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError(f"a number has more than {LONGEST_VARINT} bytes")
