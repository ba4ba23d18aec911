"""Copies records from one store into another, with the log-probabilities that came with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill.store.logprobs import Token, TokenLogprobs, find_logprobs, read_logprobs, read_tokens
from distill.store.shard_index import Hashes, hash_of
from distill.store.sharded_store import TraceStore
from toolkit.records import Trace


def copy_missing(source: TraceStore, target: TraceStore, hashes: Hashes, failed: Hashes) -> int:
    """Copy the traces and failures of some requests that the target lacks; return how many records it took."""
    hashes, failed = hashes[~target.held(hashes)], failed[~target.failures.held(failed)]
    if not len(hashes) and not len(failed):
        return 0
    numbers, places = source.traces.find(hashes)
    hashes = hashes[np.lexsort((places, numbers))]  # shard by shard
    logprobs = _LogprobsReader(source)
    with target.writer() as writer:
        for trace in source.read(hashes):
            writer.append(trace, logprobs.of(trace))
        for failure in source.failures.read(failed):
            writer.failed(failure)
    return len(hashes) + len(failed)


class _LogprobsReader:
    """Reads the log-probabilities of traces that come shard by shard."""

    def __init__(self, store: TraceStore) -> None:
        self._store = store
        self._shard: Path | None = None
        self._offsets: dict[int, int] = {}
        self._tokens: Sequence[Token] = ()

    def of(self, trace: Trace) -> list[TokenLogprobs] | None:
        hash = hash_of(trace.request_hash)
        shard = self._store.traces.shard_of(hash)
        if shard is not None and shard != self._shard:
            self._shard, self._offsets, self._tokens = shard, find_logprobs(shard), list(read_tokens(shard))
        offset = self._offsets.get(hash)
        return None if shard is None or offset is None else read_logprobs(shard, offset, self._tokens)
