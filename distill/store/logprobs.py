"""Log-probabilities of a trace's tokens and of their likeliest alternatives, beside the shard that holds the trace.

    traces-node7-1.logprobs        one record per trace, written before the trace's line
    traces-node7-1.tokens.jsonl    each token that occurs in them, once; its number is that of its line, from 0

A record, all numbers little-endian:

    8 bytes   hash of the request
    4         tokens T
    4         candidates C, over all tokens
    T × 1     how many of the candidates belong to each token
    T × 1     which of them was sampled
    C × 4     the candidates' tokens, by number
    C × 2     their log-probabilities, as float16

So a candidate takes at most 8 bytes. The sampled token is a candidate, whether it is among the likeliest or not. A
record whose trace is missing says nothing, and an end that is cut short is left out.
"""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from distill.store.shards import TOKENS
from toolkit.disk import BINARY
from toolkit.errors import InputError
from toolkit.records import mend_torn_line, read_jsonl

HEAD = struct.Struct("<QII")
MOST_CANDIDATES = 255
"""The most candidates of one token; servers give at most some 20."""


class ServerToken(NamedTuple):
    """A token as its server writes it; texts alone can be ambiguous where a character takes several tokens."""

    text: str
    bytes: bytes | None = None
    id: int | None = None


class Candidate(NamedTuple):
    """A token that may have been sampled, and the logarithm of its probability."""

    token: ServerToken
    logprob: float


class TokenLogprobs(NamedTuple):
    """One token of a trace: what was sampled, and the likeliest candidates."""

    sampled: Candidate
    top: Sequence[Candidate]


def logprobs_path(shard: Path) -> Path:
    return shard.with_suffix(".logprobs")


def tokens_path(shard: Path) -> Path:
    return shard.with_suffix(TOKENS)


class LogprobsWriter:
    """The log-probabilities of a locked shard, open for appending."""

    def __init__(self, shard: Path) -> None:
        self._shard, self._paths = shard, (logprobs_path(shard), tokens_path(shard))
        mend_torn_line(self._paths[1])
        self._numbers = {token: number for number, token in enumerate(read_tokens(shard))}
        self._files = [os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | BINARY, 0o644) for path in self._paths]
        os.ftruncate(self._files[0], _whole_bytes(self._paths[0]))

    def append(self, hash: int, logprobs: Sequence[TokenLogprobs]) -> None:
        """Write the record of one trace, after the tokens that it is the first to name."""
        known = len(self._numbers)
        content = self._packed(hash, logprobs)
        fresh = list(self._numbers)[known:]
        self._write(1, "".join(_token_line(token) for token in fresh).encode(errors="backslashreplace"))
        self._write(0, content)

    def sync(self) -> None:
        """Return when what was appended would survive a loss of power."""
        for file in reversed(self._files):
            os.fsync(file)

    def close(self) -> None:
        """Sync, and close the files."""
        self.sync()
        for file in self._files:
            os.close(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _packed(self, hash: int, logprobs: Sequence[TokenLogprobs]) -> bytes:
        counts, sampled, numbers, values = bytearray(), bytearray(), [], []
        for token in logprobs:
            candidates = list(token.top[:MOST_CANDIDATES])
            place = next((n for n, each in enumerate(candidates) if each.token == token.sampled.token), None)
            if place is None:
                candidates = [*candidates[: MOST_CANDIDATES - 1], token.sampled]
                place = len(candidates) - 1
            counts.append(len(candidates))
            sampled.append(place)
            numbers += [self._numbers.setdefault(each.token, len(self._numbers)) for each in candidates]
            values += [each.logprob for each in candidates]
        least = float(np.finfo(np.float16).min)  # servers write -inf, or -9999, for what was impossible
        halves = np.maximum(np.array(values, dtype=np.float64), least).astype("<f2")
        head = HEAD.pack(hash, len(counts), len(numbers))
        return b"".join((head, counts, sampled, np.array(numbers, dtype="<u4").tobytes(), halves.tobytes()))

    def _write(self, which: int, content: bytes) -> None:
        """Write by one system call; if a full disk takes only a part, that part is cut off again."""
        if not content:
            return
        size = os.fstat(self._files[which]).st_size
        try:
            written = os.write(self._files[which], content)
            if written != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._files[which], size)
            self._numbers = {token: number for number, token in enumerate(read_tokens(self._shard))}
            error.filename = str(self._paths[which])
            raise


def _token_line(token: ServerToken) -> str:
    values: dict[str, Any] = {"text": token.text}
    if token.bytes is not None:
        values["bytes"] = token.bytes.hex()
    if token.id is not None:
        values["id"] = token.id
    return json.dumps(values, ensure_ascii=False) + "\n"


def read_tokens(shard: Path) -> Iterator[ServerToken]:
    """Yield the tokens that a shard's log-probabilities name, in the order of their numbers."""
    path = tokens_path(shard)
    if path.exists():
        for number, values in read_jsonl(path, torn_end=True):
            try:
                written = values.get("bytes")
                yield ServerToken(values["text"], None if written is None else bytes.fromhex(written), values.get("id"))
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{path} line {number} must hold a token; get the store again") from error


class ShardLogprobs:
    """The log-probabilities of one shard, to be read."""

    def __init__(self, shard: Path) -> None:
        """Find the whole records; their contents stay on the disk."""
        self._path = logprobs_path(shard)
        self._tokens = list(read_tokens(shard))
        records = list(_records(self._path))
        hashes = np.array([hash for hash, _, _ in records], dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._offsets = hashes[order], np.array([offset for _, offset, _ in records], np.int64)[order]

    def of(self, hash: int) -> list[TokenLogprobs] | None:
        """Return what came with the trace of a request; None if nothing did."""
        place = int(np.searchsorted(self._hashes, np.uint64(hash), side="right")) - 1
        if place < 0 or int(self._hashes[place]) != hash:
            return None
        with self._path.open("rb") as file:
            file.seek(int(self._offsets[place]))
            _, count, candidates = HEAD.unpack(file.read(HEAD.size))
            counts, sampled = file.read(count), file.read(count)
            numbers = np.frombuffer(file.read(4 * candidates), dtype="<u4").tolist()
            values = np.frombuffer(file.read(2 * candidates), dtype="<f2").tolist()
        found, start = [], 0
        for length, place in zip(counts, sampled, strict=True):
            top = [Candidate(self._tokens[numbers[n]], values[n]) for n in range(start, start + length)]
            found.append(TokenLogprobs(sampled=top[place], top=top))
            start += length
        return found


def _whole_bytes(path: Path) -> int:
    """Return up to where a file of log-probabilities is whole."""
    return max((end for _, _, end in _records(path)), default=0)


def _records(path: Path) -> Iterator[tuple[int, int, int]]:
    """Yield each whole record: the hash, where it begins and where it ends."""
    if not path.exists():
        return
    size, offset = path.stat().st_size, 0
    with path.open("rb") as file:
        while len(head := file.read(HEAD.size)) == HEAD.size:
            hash, count, candidates = HEAD.unpack(head)
            end = offset + HEAD.size + 2 * count + 6 * candidates
            if end > size:
                return
            yield hash, offset, end
            offset = file.seek(end)
