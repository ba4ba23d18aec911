"""The index of a shard: which request each of its lines answers, and where the line is.

    traces-node7-1.jsonl    the shard: one record per line, and the only truth
    traces-node7-1.index    its index, a cache: 16 bytes of header, then 16 bytes per line

    0        8         16                24                            32
    ┌────────┬─────────┬─────────────────┬────────┬─────────────────────┬─────
    │ magic  │ version │ hash of line 1  │ length │ offset of line 1    │ …
    └────────┴─────────┴─────────────────┴────────┴─────────────────────┴─────

All numbers are little-endian. A hash is the 16 hex digits of `request_hash`, or 0 for a line that answers no request.
A place is 28 bits of length (the line's `\\n` included) below 36 bits of offset. Lines follow each other without a gap,
so an index says itself how much of the shard it covers, and the lines behind that are read when the shard is opened. An
index that has a gap, goes beyond its shard, or names another line than the shard has there is not used, but made again.
"""

from __future__ import annotations

import os
from array import array
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from distill.store.failure import Failure
from toolkit.errors import InputError
from toolkit.json_files import parse_json
from toolkit.records import Trace
from toolkit.terminal import counted, say

Hashes = NDArray[np.uint64]
MAGIC, VERSION = b"TRACEIDX", 1
HEADER = MAGIC + VERSION.to_bytes(8, "little")
ENTRY = np.dtype([("hash", "<u8"), ("place", "<u8")])
LENGTH_BITS = 28
OFFSET_BITS = 64 - LENGTH_BITS
LONGEST_LINE = 2**LENGTH_BITS - 1
"""The longest record in bytes, which is just less than `toolkit.json_files.MOST_BYTES`."""
SPOT_CHECKS = 3
R = TypeVar("R", Trace, Failure)
_END = b', "request_hash": "'
"""How a record's line ends: this, 16 hex digits and `_CLOSE`."""
_CLOSE = b'"}\n'
_BEGIN = b'{"problem_id": "'
_DIGITS = 16


class IndexEntry(NamedTuple):
    """One line of a shard; the hash is 0 if it answers no request."""

    hash: int
    offset: int
    length: int


class Scan:
    """What was read of a shard: its whole lines from an offset on."""

    def __init__(self, start: int) -> None:
        self.end = start
        self.damaged: list[int] = []
        """Offsets of lines that are no JSON."""
        self._hashes, self._places = array("Q"), array("Q")

    def take(self, hash: int, length: int) -> None:
        """Note the next line."""
        self._hashes.append(hash)
        self._places.append(self.end << LENGTH_BITS | length)
        self.end += length

    def entries(self) -> NDArray[Any]:
        """Return what an index says of these lines."""
        entries = np.empty(len(self._hashes), dtype=ENTRY)
        entries["hash"], entries["place"] = self._hashes, self._places
        return entries


def hash_of(text: str) -> int:
    """Return a request's hash as a number; 0 if the text is not 16 hex digits."""
    try:
        return int.from_bytes(bytes.fromhex(text)) if len(text) == _DIGITS else 0
    except ValueError:
        return 0


def covered(entries: NDArray[Any]) -> int:
    """Return up to which byte of the shard its entries go."""
    return int(ends_of(entries[-1:])[0]) if len(entries) else 0


def ends_of(entries: NDArray[Any]) -> Hashes:
    """Return for each entry the offset behind its line."""
    places: Hashes = entries["place"]
    return (places >> np.uint64(LENGTH_BITS)) + (places & np.uint64(LONGEST_LINE))


def read_index(shard: Path, size: int) -> NDArray[Any]:
    """Return what the index of a shard of so many bytes says of it, as far as it can be trusted; empty if it cannot."""
    nothing = np.empty(0, dtype=ENTRY)
    try:
        with index_path(shard).open("rb") as file:
            if file.read(len(HEADER)) != HEADER:
                return nothing
            content = file.read()
    except OSError:
        return nothing
    entries = np.frombuffer(content, dtype=ENTRY, count=len(content) // ENTRY.itemsize)
    ends, starts = ends_of(entries), entries["place"] >> np.uint64(LENGTH_BITS)
    gaps = np.flatnonzero(starts != np.concatenate([[np.uint64(0)], ends[:-1]]))
    whole = int(gaps[0]) if len(gaps) else len(entries)
    whole = min(
        whole, int(np.searchsorted(ends[:whole], np.uint64(size), side="right"))
    )  # what another machine wrote comes later
    entries = entries[:whole]
    return entries if whole and _matches(shard, entries) else nothing


def index_path(shard: Path) -> Path:
    return shard.with_suffix(".index")


def write_index(shard: Path, known: int, more: NDArray[Any]) -> None:
    """Put entries behind the first `known` ones of an index; only who holds the shard's lock may do that."""
    path = index_path(shard)
    with path.open("r+b" if known else "wb") as file:
        if not known:
            file.write(HEADER)
        file.truncate(len(HEADER) + known * ENTRY.itemsize)
        file.seek(0, os.SEEK_END)
        file.write(more.tobytes())


def complete_index(shard: Path, kind: type[R]) -> int:
    """Bring the index of a locked shard up to date; return how many lines it knows now, 0 if it cannot be written."""
    entries = read_index(shard, shard.stat().st_size)
    more = scan(shard, covered(entries), kind).entries()
    try:
        write_index(shard, len(entries), more)
    except OSError:
        return len(entries)
    return len(entries) + len(more)


def scan(shard: Path, start: int, kind: type[R]) -> Scan:
    """Read the whole lines of a shard from an offset on; an end without its `\n` is left out.

    Raises `InputError` if a line is an object, but no record of this kind: another version of the project wrote it.
    """
    found = Scan(start)
    with shard.open("rb", buffering=2**20) as file:
        file.seek(start)
        while (line := file.readline(LONGEST_LINE + 1)).endswith(b"\n"):
            found.take(_hash_of_line(line, f"{shard} byte {found.end}", kind, found), len(line))
        if len(line) > LONGEST_LINE:
            raise InputError(
                f"{shard} byte {found.end}: a line has more than {LONGEST_LINE} bytes, which no record has; move the "
                "file out of the store"
            )
        if found.end >> OFFSET_BITS:
            raise InputError(
                f"{shard} has {found.end} bytes, and a store reads files of up to {2**OFFSET_BITS}; split it between "
                "lines, into files traces-1.jsonl, traces-2.jsonl …"
            )
    return found


def report_damage(shard: Path, damaged: list[int]) -> None:
    """Say which lines of a shard cannot be read."""
    if damaged:
        lines = counted(len(damaged), "line")
        say(f"traces: {lines} of {shard} cannot be read (byte {damaged[0]}); their requests count as not answered")


def _hash_of_line(line: bytes, where: str, kind: type[R], found: Scan) -> int:
    """Return the hash of the request that a line answers. A line as we write it need not be parsed for that."""
    digits = len(line) - len(_CLOSE) - _DIGITS
    is_ours = line.startswith(_BEGIN) and line.endswith(_CLOSE) and line[digits - len(_END) : digits] == _END
    if is_ours and line.find(_BEGIN, 1) < 0:  # inside a text its quotes would be escaped
        return hash_of(line[digits : digits + _DIGITS].decode("ascii", "replace"))
    if not line.strip():
        return 0
    try:
        values = parse_json(line, where, constants=True)
    except InputError:
        found.damaged.append(found.end)
        return 0
    return hash_of(record_of(values, where, kind).request_hash)


def record_of(values: Any, where: str, kind: type[R]) -> R:
    """Return a line's record; raises `InputError` if it is none of this kind."""
    try:
        if not isinstance(values, dict):
            raise InputError(f"it is a {type(values).__name__}")
        return kind.from_dict(values)
    except InputError as error:
        raise InputError(
            f"{where}: no {kind.__name__} that this version reads: {error}; update, or move the file out of the store"
        ) from error


def _matches(shard: Path, entries: NDArray[Any]) -> bool:
    """Return whether some lines of the shard are what its index says, the last one among them."""
    try:
        with shard.open("rb") as file:
            for number in {len(entries) * part // SPOT_CHECKS - 1 for part in range(1, SPOT_CHECKS + 1)}:
                entry = entries[max(number, 0)]
                line = read_line(file.fileno(), int(entry["place"]))
                digest = f"{int(entry['hash']):016x}".encode()
                if not line.endswith(b"\n") or (entry["hash"] and digest not in line):
                    return False
    except OSError:
        return False
    return True


def read_line(descriptor: int, place: int) -> bytes:
    """Return the line at a place of a shard."""
    os.lseek(descriptor, place >> LENGTH_BITS, os.SEEK_SET)
    return os.read(descriptor, place & LONGEST_LINE)
