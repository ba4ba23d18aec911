"""Copies records from one store into another, with the log-probabilities that came with them."""

from __future__ import annotations

import numpy as np

from distill.store.shard_index import Hashes
from distill.store.sharded_store import TraceStore


def copy_missing(source: TraceStore, target: TraceStore, hashes: Hashes, failed: Hashes) -> int:
    """Copy the traces and failures of some requests that the target lacks; return how many records it took."""
    hashes, failed = hashes[~target.held(hashes)], failed[~target.failures.held(failed)]
    if not len(hashes) and not len(failed):
        return 0
    numbers, places = source.traces.find(hashes)
    hashes = hashes[np.lexsort((places, numbers))]  # shard by shard
    with target.writer() as writer:
        for trace, logprobs in zip(source.read(hashes), source.logprobs(hashes), strict=True):
            writer.append(trace, logprobs)
        for failure in source.failures.read(failed):
            writer.failed(failure)
    return len(hashes) + len(failed)
