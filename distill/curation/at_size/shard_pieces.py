"""Finds the files of traces that a user names, and cuts them into pieces that one process can hold.

A piece holds the lines that begin within its range of bytes. Shards grow only at their ends, so all pieces of a grown
shard but the last are the same as before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.store.sharded_store import TRACE_SHARDS
from distill.store.shards import is_shard
from distill.teachers.trace_store import store_of
from toolkit.errors import InputError
from toolkit.figures.ledger import PROBLEMS
from toolkit.json_files import MOST_BYTES, check_regular
from toolkit.records import Trace, stream_records
from toolkit.runs import partial_of

PIECE_BYTES = 1 << 23


@dataclass(frozen=True, kw_only=True)
class TraceShard:
    """A file of traces, as long as it was when the curation began."""

    path: Path
    size_bytes: int
    may_be_torn: bool
    """Whether a process may be writing it, so that a last line that is not whole is left out."""


@dataclass(frozen=True, kw_only=True)
class ShardPiece:
    """A range of a shard."""

    shard: TraceShard
    start: int
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.start


def find_shards(places: Sequence[Path], *, with_problems: bool) -> tuple[list[TraceShard], list[Path]]:
    """Return the shards of files and run folders, finished or not, and the files of their problems.

    Raises `InputError` if one holds no traces, or has no problems beside it and `with_problems` says that it must.
    """
    shards: dict[Path, TraceShard] = {}
    problems: list[Path] = []
    for place in places:
        is_file = place.exists() and not place.is_dir()
        files, beside = ([place], place.parent) if is_file else _files_in(place)
        for path in files:
            size_bytes = check_regular(path).st_size
            shards[path.resolve()] = TraceShard(path=path, size_bytes=size_bytes, may_be_torn=not is_file)
            _check_first(path)
        if with_problems:
            if not (beside / PROBLEMS).is_file():
                raise InputError(f"{place} has no {PROBLEMS} beside its traces; name them with --problems")
            problems.append(beside / PROBLEMS)
    return list(shards.values()), list(dict.fromkeys(problems))


def pieces_of(shards: Sequence[TraceShard]) -> list[ShardPiece]:
    """Cut shards into pieces, in their order."""
    return [
        ShardPiece(shard=shard, start=start, end=min(start + PIECE_BYTES, shard.size_bytes))
        for shard in shards
        for start in range(0, shard.size_bytes, PIECE_BYTES)
    ]


def read_piece(piece: ShardPiece) -> tuple[int, bytes]:
    """Return where the first line of a piece begins in its file, and all lines that begin in the piece."""
    with piece.shard.path.open("rb") as file:
        if piece.start:
            file.seek(piece.start - 1)
            file.readline(MOST_BYTES)
        begin = file.tell()
        content = file.read(max(piece.end - begin, 0))
        if content and not content.endswith(b"\n") and piece.end < piece.shard.size_bytes:
            content += file.readline(MOST_BYTES)
    if content and not content.endswith(b"\n"):
        whole, _, last = content.rpartition(b"\n")
        if piece.shard.may_be_torn and not _is_json(last):
            content = whole + b"\n" if whole else b""
    return begin, content


def lines_of(content: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield each line that is not empty with its number, from 0, and its place in a piece."""
    start = 0
    for number, line in enumerate(content.split(b"\n")):
        if line.strip():
            yield number, start, line
        start += len(line) + 1


def line_number(piece: ShardPiece, place: int) -> int:
    """Return the number, from 1, of the line at a place of a shard's file."""
    lines = 1
    with piece.shard.path.open("rb") as file:
        while place > 0 and (part := file.read(min(place, PIECE_BYTES))):
            lines += part.count(b"\n")
            place -= len(part)
    return lines


def _files_in(place: Path) -> tuple[list[Path], Path]:
    folder = next((folder for folder in (place, partial_of(place)) if folder.is_dir()), None)
    if folder is None:
        raise InputError(f"{place} does not exist; name a file of traces, or a run folder of toolkit traces")
    files = _shards_in(folder)
    if not files and (folder / PROBLEMS).is_file():
        files = _shards_in(store_of(folder, place))
    if not files:
        raise InputError(
            f"{place} holds no {TRACE_SHARDS}*.jsonl; name a file of traces, or a run folder of toolkit traces"
        )
    return files, folder


def _shards_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.jsonl") if is_shard(path.name, TRACE_SHARDS))


def _check_first(path: Path) -> None:
    """Raise `InputError` if a file does not begin with a trace, before anything long is done."""
    next(stream_records(path, Trace, torn_end=True), None)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
