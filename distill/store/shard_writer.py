"""Appends records to a shard that no other process writes, and to its index.

A process locks a shard as long as it appends to it. It goes on with an unfinished one of its own machine that nobody
holds, or else begins a new one; another machine's it never touches, since that may still write what it has buffered.
The index follows the shard after each sync, so it never says more than the disk has.
"""

from __future__ import annotations

import itertools
import math
import platform
import re
import zlib
from contextlib import suppress
from typing import Generic, TypeVar

import numpy as np

from distill.store.byte_locks import ByteLocks
from distill.store.failure import Failure
from distill.store.shard_index import ENTRY, LENGTH_BITS, IndexEntry, complete_index, hash_of, write_index
from distill.store.shards import Shard, Shards
from toolkit.records import AppendLog, Trace

FIRST_SHARD_BYTE = 2**16
"""The locks of shards come behind those of buckets."""
SHARD_BYTES = 2**30
R = TypeVar("R", Trace, Failure)


def machine() -> str:
    """Return this machine's name as a part of a file's."""
    return re.sub(r"[^\w.]+", "_", platform.node())[:64] or "unnamed"


def lock_byte(name: str) -> int:
    """Return the byte that stands for a shard; where two have one, at worst a further shard is begun."""
    return FIRST_SHARD_BYTE + zlib.crc32(name.encode()) % SHARD_BYTES


class ShardWriter(Generic[R]):
    """Appends records of one kind; a shard is opened with the first of them."""

    def __init__(self, shards: Shards[R], locks: ByteLocks) -> None:
        self._shards: Shards[R] = shards
        self._locks = locks
        self._shard: Shard | None = None
        self._log: AppendLog | None = None
        self._indexed = 0
        """How many lines the index on the disk knows."""
        self._unindexed: list[tuple[int, int]] = []

    @property
    def shard(self) -> Shard:
        """The shard that is appended to, opened if none is, or if it is full."""
        if self._shard and self._shard.is_finished:
            self.close()
        if not self._shard:
            self._open()
        assert self._shard
        return self._shard

    def append(self, record: R) -> int:
        """Write one record by one system call, and return the hash of its request; a full disk takes it whole or not at
        all."""
        shard = self.shard
        assert self._log
        length = self._log.append(record)
        entry = IndexEntry(hash_of(record.request_hash), shard.size, length)
        self._unindexed.append((entry.hash, entry.offset << LENGTH_BITS | entry.length))
        self._shards.add(shard, entry)
        return entry.hash

    def sync(self) -> None:
        """Return when what was appended would survive a loss of power; its index is written then."""
        if self._log and self._shard and self._unindexed:
            self._log.sync()
            entries = np.array(self._unindexed, dtype=np.uint64).view(ENTRY).ravel()
            with suppress(OSError):  # a cache: what it lacks is read from the shard
                write_index(self._shard.path, self._indexed, entries)
                self._indexed += len(entries)
                self._unindexed.clear()

    def close(self) -> None:
        """Sync, and free the shard."""
        if self._log and self._shard:
            try:
                self.sync()
            finally:
                self._log.close()
                self._locks.free(lock_byte(self._shard.path.name))
                self._shard.is_written_here = False
                self._shard = self._log = None
                self._unindexed.clear()

    def complete_indexes(self) -> None:
        """Write the indexes of shards that have none, or one that is far behind, unless somebody else holds them."""
        for shard in self._shards.poorly_indexed:
            byte = lock_byte(shard.path.name)
            if self._locks.take(byte):
                with suppress(OSError):
                    complete_index(shard.path, self._shards.kind)
                self._locks.free(byte)

    def _open(self) -> None:
        """Lock an unfinished shard of this machine, or a new one."""
        for number in itertools.count(1):
            shard = self._shards.shard(f"{self._shards.stem}-{machine()}-{number}.jsonl")
            byte = lock_byte(shard.path.name)
            if shard.is_finished or not self._locks.take(byte):
                continue
            log = AppendLog(shard.path, sync_every_s=math.inf)  # moves a torn end aside
            self._shards.refresh_shard(shard)
            if not shard.is_finished:
                self._indexed = complete_index(shard.path, self._shards.kind)
                self._shard, self._log = shard, log
                shard.is_written_here = True
                if shard.path.name not in self._locks.notes():
                    self._locks.note(shard.path.name)
                return
            log.close()
            self._locks.free(byte)
