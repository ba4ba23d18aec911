"""Writes TensorBoard's event files, which need nothing but TensorBoard to be looked at.

A file is a sequence of records (TFRecord); each holds one `Event` of TensorFlow's event.proto:

    u64 length | u32 masked CRC-32C of these 8 bytes | the event | u32 masked CRC-32C of the event

    Event    1 wall_time (double)  2 step (int64)  3 file_version (text, in the first event)  5 summary
    Summary  1 value, repeated: { 1 tag (text)  2 simple_value (float) }
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

VERSION = b"brain.Event:2"
POLYNOMIAL = 0x82F63B78
"""Castagnoli's, reflected."""
MASK = 0xA282EAD8


def first_event(wall_time: float) -> bytes:
    """Return the record that begins a file."""
    return _record(_double(1, wall_time) + _bytes(3, VERSION))


def scalars_event(wall_time: float, step: int, scalars: Mapping[str, float]) -> bytes:
    """Return the record of the scalars of one step."""
    values = b"".join(
        _bytes(1, _bytes(1, tag.encode()) + b"\x15" + struct.pack("<f", value)) for tag, value in scalars.items()
    )
    return _record(_double(1, wall_time) + b"\x10" + _varint(step) + _bytes(5, values))


def _record(event: bytes) -> bytes:
    length = struct.pack("<Q", len(event))
    return length + _checksum(length) + event + _checksum(event)


def _checksum(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF)


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def _bytes(field: int, data: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(data)) + data


def _double(field: int, value: float) -> bytes:
    return bytes([field << 3 | 1]) + struct.pack("<d", value)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
