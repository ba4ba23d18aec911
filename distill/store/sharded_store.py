"""The traces of one teacher under one sampling, at any size, filled by any number of processes and machines.

    .traces/<key>/
    ├── asked.json                     the teacher, the sampling, the layout of the store
    ├── traces.jsonl  failed.jsonl     shards of earlier versions, which are only read
    ├── traces-node7-1.jsonl           shards: the answers,
    ├── failed-node7-1.jsonl           and the requests without one
    ├── *.index                        where the record of each request is: `distill.store.shard_index`
    ├── *.logprobs  *.tokens.jsonl     log-probabilities, if they were asked for: `distill.store.logprobs`
    ├── *.torn                         ends of lines that a kill cut off
    └── .claims                        locks of requests and shards: `distill.store.claims`

Shards are append-only and the only truth. What a store holds is known from its indexes, so opening it reads no records.
Opening it to read changes nothing on the disk.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from distill.store.byte_locks import ByteLocks
from distill.store.claims import Claims, Missing
from distill.store.failure import Failure
from distill.store.logprobs import LogprobsWriter, ShardLogprobs, TokenLogprobs
from distill.store.shard_index import Hashes, hash_of
from distill.store.shard_writer import ShardWriter
from distill.store.shards import Shards, is_shard
from toolkit.errors import InputError
from toolkit.json_files import read_json
from toolkit.records import Trace

TRACE_SHARDS, FAILURE_SHARDS = "traces", "failed"
LOCKS = ".claims"
SYNC_EVERY_S = 1.0
ASKED = "asked.json"
LAYOUT = 2
"""The number of this layout in `asked.json`; the first one, without shards, has none."""


def check_layout(folder: Path) -> None:
    """Raise `InputError` if a later version made the store, whose traces this one would not find and pay for again."""
    try:
        found = read_json(folder / ASKED).get("layout", LAYOUT)
    except (InputError, AttributeError):  # it says nothing, or not what it should
        return
    if isinstance(found, int) and found > LAYOUT:
        raise InputError(
            f"{folder} is a store of layout {found}, and this version knows layouts up to {LAYOUT}; update, or choose "
            "an --out elsewhere"
        )


class TraceStore:
    """The records of a folder, found by what was asked."""

    def __init__(self, folder: Path) -> None:
        """Open a store to read it; a folder without shards is an empty one.

        Raises `InputError` if the store, or a record in it, is of a later version.
        """
        check_layout(folder)
        self.folder = folder
        self.traces = Shards(folder, TRACE_SHARDS, Trace)
        self.failures = Shards(folder, FAILURE_SHARDS, Failure)

    def __len__(self) -> int:
        """Return how many requests have a trace."""
        return len(self.traces)

    def refresh(self, noted: Iterable[str] | None = None) -> None:
        """Take in what was appended since the last look, by whomever; `noted` as for `Shards.refresh`."""
        self.traces.refresh(noted)
        self.failures.refresh(noted)

    def held(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Return which requests have a trace."""
        return self.traces.held(hashes)

    def read(self, hashes: Hashes) -> Iterator[Trace]:
        """Yield the trace of each request that has one, in the order of the requests."""
        return self.traces.read(hashes)

    def logprobs(self, hashes: Hashes) -> Iterator[list[TokenLogprobs] | None]:
        """Yield what came with the trace of each request, in the order of the requests; None if nothing did."""
        opened: dict[Path, ShardLogprobs] = {}
        for hash in hashes.tolist():
            shard = self.traces.shard_of(hash)
            if shard is None:
                yield None
                continue
            if shard not in opened:
                opened[shard] = ShardLogprobs(shard)
            yield opened[shard].of(hash)

    @contextmanager
    def writer(self) -> Iterator[StoreWriter]:
        """Open the store for appending, as any number of processes may at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with ByteLocks(self.folder / LOCKS) as locks:
            writer = StoreWriter(self, locks)
            try:
                yield writer
            finally:
                writer.close()


class StoreWriter:
    """Appends to shards of its own, and claims requests; for one thread."""

    def __init__(self, store: TraceStore, locks: ByteLocks) -> None:
        self._store, self._locks = store, locks
        self._traces, self._failures = ShardWriter(store.traces, locks), ShardWriter(store.failures, locks)
        self._logprobs: LogprobsWriter | None = None
        self._logprobs_shard: Path | None = None
        self._synced_at = time.monotonic()
        self._traces.complete_indexes()
        self._failures.complete_indexes()

    def claims(self, hashes: Hashes, missing: Missing) -> Claims:
        """Share the requests that lack an outcome with all processes that ask for some of the same."""
        return Claims(self._locks, hashes, missing)

    def refresh(self) -> None:
        """Take in what others appended before they freed what is claimed here, also on another machine."""
        self._store.refresh(self._locks.notes())

    def append(self, trace: Trace, logprobs: Sequence[TokenLogprobs] | None = None) -> int:
        """Append a trace, after its log-probabilities; return the hash of its request."""
        if logprobs is not None:
            self._append_logprobs(hash_of(trace.request_hash), logprobs)
        return self._traces.append(trace)

    def failed(self, failure: Failure) -> int:
        """Append a failure; return the hash of its request."""
        return self._failures.append(failure)

    def sync_if_due(self) -> bool:
        """Sync if the last time was long enough ago, and return whether all that was appended is on the disk now."""
        if time.monotonic() - self._synced_at < SYNC_EVERY_S:
            return False
        self.sync()
        return True

    def sync(self) -> None:
        """Return when what was appended would survive a loss of power."""
        if self._logprobs:
            self._logprobs.sync()
        self._traces.sync()
        self._failures.sync()
        self._synced_at = time.monotonic()

    def close(self) -> None:
        try:
            if self._logprobs:
                self._logprobs.close()
        finally:
            try:
                self._traces.close()
            finally:
                self._failures.close()

    def _append_logprobs(self, hash: int, logprobs: Sequence[TokenLogprobs]) -> None:
        shard = self._traces.shard.path
        if shard != self._logprobs_shard:
            if self._logprobs:
                self._logprobs.close()
            self._logprobs, self._logprobs_shard = LogprobsWriter(shard), shard
        assert self._logprobs
        self._logprobs.append(hash, logprobs)


class HeldTraces(Sequence[Trace]):
    """The traces of some requests in their order, read from their store whenever they are asked for."""

    def __init__(self, store: TraceStore, hashes: Hashes) -> None:
        """Requests without a trace are left out."""
        held = store.held(hashes)
        self.store, self.hashes, self._unanswered = store, hashes[held], hashes[~held]
        self.requests = len(hashes)

    def __len__(self) -> int:
        return len(self.hashes)

    def __iter__(self) -> Iterator[Trace]:
        return self.store.read(self.hashes)

    @overload
    def __getitem__(self, at: int) -> Trace: ...
    @overload
    def __getitem__(self, at: slice) -> HeldTraces: ...
    def __getitem__(self, at: Any) -> Trace | HeldTraces:
        if isinstance(at, slice):
            return HeldTraces(self.store, self.hashes[at])
        return next(self.store.read(self.hashes[[at]]))

    def lines(self) -> Iterator[bytes]:
        """Yield each trace's line as it is in its shard."""
        return self.store.traces.lines(self.hashes)

    def failures(self) -> Iterator[Failure]:
        """Yield the last failure of each request that has no trace, in the order of the requests."""
        return self.store.failures.read(self._unanswered)


def has_traces(folder: Path) -> bool:
    """Return whether a folder is a store with traces."""
    return any(is_shard(path.name, TRACE_SHARDS) for path in folder.glob(f"{TRACE_SHARDS}*"))
