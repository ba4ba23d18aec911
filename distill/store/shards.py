"""The shards of one kind of record, found by what was asked.

    traces.jsonl              the only shard of earlier versions; it is read, and never written
    traces-node7-1.jsonl …    shards of the machine `node7`, which only processes of that machine append to

Records stay on disk. In memory each has 20 bytes: the hash of its request, its shard, its place there. If a request was
answered twice, its last record counts. An end without its `\\n` may be a line that is just being written, so it counts
only once it is whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from distill.store.failure import Failure
from distill.store.shard_index import (
    ENTRY,
    LENGTH_BITS,
    LONGEST_LINE,
    Hashes,
    IndexEntry,
    covered,
    index_path,
    read_index,
    read_line,
    record_of,
    report_damage,
    scan,
)
from toolkit.errors import InputError
from toolkit.json_files import parse_json
from toolkit.records import Trace

ROLL_BYTES = 2**28
"""A shard of this size is finished."""
MOST_RECENT = 2**14
"""Records since the last merge that are kept in a dictionary."""
TOKENS = ".tokens.jsonl"
"""The end of the name of a file that is no shard: `distill.store.logprobs`."""
POOR_BYTES = 2**20
WINDOW_BYTES = 2**26
"""About as much is read ahead, in the order in which it is on the disk."""
R = TypeVar("R", Trace, Failure)


class Shard:
    """One file, as far as it was read."""

    def __init__(self, path: Path, number: int) -> None:
        self.path, self.number = path, number
        self.size = 0
        """The bytes that are known: whole lines only."""
        self.is_written_here = False
        """Whether this process appends to it now, so that nobody else does."""

    @property
    def is_finished(self) -> bool:
        return self.size >= ROLL_BYTES


class Shards(Generic[R]):
    """All shards of a folder whose names begin with `stem`; reading changes nothing on the disk."""

    def __init__(self, folder: Path, stem: str, kind: type[R]) -> None:
        self.folder, self.stem = folder, stem
        self.kind: type[R] = kind
        self.poorly_indexed: list[Shard] = []
        """Shards of which much had to be read, since their index is missing, wrong or far behind."""
        self._shards: dict[str, Shard] = {}
        self._by_number: list[Shard] = []
        self._hashes: Hashes = np.empty(0, dtype=np.uint64)
        """Sorted."""
        self._places: Hashes = np.empty(0, dtype=np.uint64)
        self._numbers: NDArray[np.uint32] = np.empty(0, dtype=np.uint32)
        self._recent: dict[int, tuple[int, int]] = {}
        """By hash: the number of a shard, and a place."""
        self.refresh()

    def __len__(self) -> int:
        """Return how many requests have a record."""
        self._merge()
        return len(self._hashes)

    def refresh(self, noted: Iterable[str] | None = None) -> None:
        """Take in what was appended since the last look, by whomever.

        With the names of all shards that were `noted`, new ones are not looked for in the folder, which a shared disk
        may show as it was some time ago. Raises `InputError` if a shard holds records of another version.
        """
        found: list[tuple[Shard, NDArray[Any]]] = []
        for shard in self._by_number:
            if not shard.is_finished and not shard.is_written_here:
                found.append((shard, self._appended(shard)))
        for name in self._listed() if noted is None else noted:
            if name not in self._shards and is_shard(name, self.stem) and (self.folder / name).exists():
                shard = self.shard(name)
                found.append((shard, self._begin(shard)))
        self._take(found)

    def _listed(self) -> list[str]:
        try:
            return sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []

    def shard(self, name: str) -> Shard:
        """Return the shard of a name, which need not exist yet."""
        if name not in self._shards:
            self._shards[name] = Shard(self.folder / name, len(self._by_number))
            self._by_number.append(self._shards[name])
        return self._shards[name]

    def refresh_shard(self, shard: Shard) -> None:
        """Take in what was appended to one shard."""
        self._take([(shard, self._appended(shard))])

    def add(self, shard: Shard, entry: IndexEntry) -> None:
        """Take in one line that was just appended."""
        shard.size = entry.offset + entry.length
        if entry.hash:
            self._recent[entry.hash] = (shard.number, entry.offset << LENGTH_BITS | entry.length)
            if len(self._recent) > max(MOST_RECENT, len(self._hashes) // 8):
                self._merge()

    def find(self, hashes: Hashes) -> tuple[NDArray[np.int64], Hashes]:
        """Return where the records of requests are: numbers of shards, -1 where there is none, and places."""
        numbers, places = np.full(len(hashes), -1, dtype=np.int64), np.zeros(len(hashes), dtype=np.uint64)
        if len(hashes) > MOST_RECENT // 8:
            self._merge()
        if len(self._hashes):
            at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
            found = self._hashes[at] == hashes
            numbers[found], places[found] = self._numbers[at[found]], self._places[at[found]]
        if self._recent:
            for row, hash in enumerate(hashes.tolist()):
                if place := self._recent.get(hash):
                    numbers[row], places[row] = place
        return numbers, places

    def shard_of(self, hash: int) -> Path | None:
        """Return the shard that holds a request's record."""
        number = int(self.find(np.array([hash], dtype=np.uint64))[0][0])
        return None if number < 0 else self._by_number[number].path

    def held(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Return which requests have a record."""
        found: NDArray[np.bool_] = self.find(hashes)[0] >= 0
        return found

    def lines(self, hashes: Hashes) -> Iterator[bytes]:
        """Yield the line of each request that has one, in the order of the requests.

        Raises `InputError` if a line is not what its index says.
        """
        return (line for line, _ in self._lines(hashes))

    def read(self, hashes: Hashes) -> Iterator[R]:
        """Yield the record of each request that has one, in the order of the requests.

        Raises `InputError` if a line is not what its index says, or no record.
        """
        for line, where in self._lines(hashes):
            try:
                yield record_of(parse_json(line, where, constants=True), where, self.kind)
            except InputError as error:
                raise InputError(
                    f"{error}; delete that line and the file's .index, and run the same command again, which asks for "
                    "it again"
                ) from error

    def hashes(self) -> Hashes:
        """Return the hashes of all requests that have a record, sorted."""
        self._merge()
        return self._hashes

    def records(self) -> Iterator[R]:
        """Yield the last record of each request, in the order of the disk."""
        self._merge()
        order = np.lexsort((self._places, self._numbers))
        return self.read(self._hashes[order])

    def _lines(self, hashes: Hashes) -> Iterator[tuple[bytes, str]]:
        """Yield the line of each request that has one, and where it is."""
        numbers, places = self.find(hashes)
        held = np.flatnonzero(numbers >= 0)
        numbers, places, hashes = numbers[held], places[held], hashes[held]
        ends = np.cumsum(places & np.uint64(LONGEST_LINE))
        start = 0
        while start < len(held):
            enough = (ends[start - 1] if start else np.uint64(0)) + np.uint64(WINDOW_BYTES)
            end = max(start + 1, int(np.searchsorted(ends, enough, side="right")))
            lines = self._window(numbers[start:end], places[start:end])
            for row, line in enumerate(lines, start=start):
                path = self._by_number[int(numbers[row])].path
                where = f"{path} byte {int(places[row]) >> LENGTH_BITS}"
                if f"{int(hashes[row]):016x}".encode() not in line:
                    raise InputError(
                        f"{where} is not the record that the index names; delete {index_path(path)} and run the same "
                        "command again"
                    )
                yield line, where
            start = end

    def _window(self, numbers: NDArray[np.int64], places: Hashes) -> list[bytes]:
        """Return the lines at some places in their order; they are read in the order of the disk."""
        lines: list[bytes] = [b""] * len(places)
        with ExitStack() as stack:
            opened, file = -1, None
            for row in np.lexsort((places, numbers)).tolist():
                number = int(numbers[row])
                if file is None or number != opened:
                    stack.close()
                    file, opened = stack.enter_context(self._by_number[number].path.open("rb")), number
                lines[row] = read_line(file.fileno(), int(places[row]))
        return lines

    def _begin(self, shard: Shard) -> NDArray[Any]:
        """Return the entries of a shard that is read for the first time: its index, and what is behind that."""
        entries = read_index(shard.path, shard.path.stat().st_size)
        shard.size = start = covered(entries)
        more = self._appended(shard)
        if shard.size - start > POOR_BYTES:
            self.poorly_indexed.append(shard)
        return np.concatenate([entries, more])

    def _appended(self, shard: Shard) -> NDArray[Any]:
        """Return the entries of what was appended to a shard since the last look."""
        try:
            with shard.path.open("rb") as file:  # opening asks a shared disk for the size as it is now
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:  # another process has its name, and makes it in a moment
            size = 0
        if size <= shard.size:
            return np.empty(0, dtype=ENTRY)
        found = scan(shard.path, shard.size, self.kind)
        report_damage(shard.path, found.damaged)
        shard.size = found.end
        return found.entries()

    def _take(self, found: Sequence[tuple[Shard, NDArray[Any]]]) -> None:
        """Take in the entries of some shards."""
        if sum(len(entries) for _, entries in found) > MOST_RECENT:
            self._merge()
            self._replace(
                np.concatenate([entries["hash"] for _, entries in found]),
                np.concatenate([entries["place"] for _, entries in found]),
                np.concatenate([np.full(len(entries), shard.number, np.uint32) for shard, entries in found]),
            )
            return
        for shard, entries in found:
            for hash, place in entries.tolist():
                if hash:
                    self._recent[hash] = (shard.number, place)

    def _merge(self) -> None:
        if self._recent:
            recent, self._recent = self._recent, {}
            numbers, places = zip(*recent.values(), strict=True)
            self._replace(
                np.fromiter(recent, dtype=np.uint64),
                np.array(places, dtype=np.uint64),
                np.array(numbers, dtype=np.uint32),
            )

    def _replace(self, hashes: Hashes, places: Hashes, numbers: NDArray[np.uint32]) -> None:
        """Merge sorted arrays and entries, of which later ones replace earlier ones of the same request."""
        known = hashes != 0
        hashes = np.concatenate([self._hashes, hashes[known]])
        places = np.concatenate([self._places, places[known]])
        numbers = np.concatenate([self._numbers, numbers[known]])
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        last = np.append(hashes[1:] != hashes[:-1], True)[: len(hashes)]
        self._hashes, self._places, self._numbers = hashes[last], places[order][last], numbers[order][last]


def is_shard(name: str, stem: str) -> bool:
    """Return whether a file of a store is a shard of a kind."""
    return name.startswith(stem) and name.endswith(".jsonl") and not name.endswith(TOKENS)
