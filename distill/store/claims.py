"""Requests that several processes share without asking any of them twice.

Requests fall into 4,096 buckets by the first 12 bits of their hash. A process locks a bucket, looks again at what the
others have appended, and asks what is still missing; it frees the bucket once the outcomes are on the disk. The kernel
frees the buckets of a process that dies, and the others ask what it left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from distill.store.byte_locks import ByteLocks
from distill.store.shard_index import Hashes

BUCKET_BITS = 12
GROUP = 16
"""Buckets are locked until they hold as many requests: looking at the disk for each alone would cost too much."""
Missing = Callable[[Hashes], NDArray[np.bool_]]
"""Looks at the disk, and returns which requests have no outcome there."""


class Claims:
    """The missing requests of a job, each handed out to one process only."""

    def __init__(self, locks: ByteLocks, hashes: Hashes, missing: Missing) -> None:
        """`hashes`: of the job's requests; those that have an outcome already are never handed out."""
        self._locks, self._hashes, self._missing = locks, hashes, missing
        order = np.argsort(hashes, kind="stable")
        buckets = (hashes[order] >> np.uint64(64 - BUCKET_BITS)).astype(np.int64)
        numbers, starts = np.unique(buckets, return_index=True)
        rows = np.split(order, starts[1:]) if len(order) else []
        self._left: dict[int, NDArray[np.int64]] = dict(zip(numbers.tolist(), rows, strict=True))
        """The requests of each bucket that was not claimed yet, as positions in `hashes`."""
        self._open: dict[int, set[int]] = {}
        """The requests of each claimed bucket that have no outcome yet."""
        self._settled: list[int] = []
        """Claimed buckets that can be freed when the disk has their outcomes."""
        self.ended = False
        """Whether the last round handed out all that it could claim."""

    @property
    def left(self) -> int:
        """How many requests are in buckets that others hold, or that were not claimed yet."""
        return sum(map(len, self._left.values()))

    def round(self) -> Iterator[int]:
        """Claim what nobody holds and yield the positions of requests to send, never waiting for others."""
        self.ended = False
        for group in self._groups():
            rows = np.concatenate([self._left.pop(bucket) for bucket in group])
            wanted = rows[self._missing(self._hashes[rows])]
            for hash in self._hashes[wanted].tolist():
                self._open.setdefault(_bucket(hash), set()).add(hash)
            self._settled += [bucket for bucket in group if bucket not in self._open]
            yield from wanted.tolist()
        self.ended = True

    def settle(self, hash: int) -> None:
        """Note that the outcome of a request was appended."""
        bucket = _bucket(hash)
        left = self._open.get(bucket, set())
        left.discard(hash)
        if bucket in self._open and not left:
            del self._open[bucket]
            self._settled.append(bucket)

    def free_settled(self) -> None:
        """Free the buckets whose outcomes are all on the disk, once they are."""
        for bucket in self._settled:
            self._locks.free(bucket)
        self._settled.clear()

    def free_all(self) -> None:
        """Free all buckets, once the disk has the outcomes; what they lack is for another process, or another run."""
        self._settled += self._open
        self._open.clear()
        self.free_settled()

    def _groups(self) -> Iterator[list[int]]:
        """Yield groups of buckets as they are locked."""
        group: list[int] = []
        count = 0
        for bucket in list(self._left):
            if self._locks.take(bucket):
                group.append(bucket)
                count += len(self._left[bucket])
            if count >= GROUP:
                yield group
                group, count = [], 0
        if group:
            yield group


def _bucket(hash: int) -> int:
    return hash >> (64 - BUCKET_BITS)
