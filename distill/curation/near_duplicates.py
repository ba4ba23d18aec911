"""Finds traces with nearly the same words: MinHash signatures, and bands of them as locality-sensitive hashing.

    words ── runs of 5 ── rensa's R-MinHash ──> 128 numbers ── bands ── traces that share a band ──> estimated Jaccard

The share of equal numbers in two signatures estimates the Jaccard similarity of the texts' runs of words, with a
standard error of at most 0.045. A pair of exactly the threshold's similarity is found with a probability of 94 %, a
more similar one with a higher one; of pairs a little below the threshold some are taken too.

A signature keeps the lower 16 bits of each number (256 bytes a trace), and bands are sorted one after another in place
of a hash table, so that a million traces need some 600 MB.

Sources: A. Broder, On the resemblance and containment of documents, 1997; A. Rajaraman and J. Ullman, Mining of Massive
Datasets, chapter 3.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from distill.curation.word_numbers import mixed, runs_of
from toolkit.errors import MissingExtra

RUN_WORDS = 5
NUMBERS = 128
SEED = 1
LOWER = 1.645
"""Standard errors below the threshold at which 95 % of a normal distribution lie above."""
FOUND = 0.99
"""The probability at which a pair of exactly the threshold's similarity shares a band."""
PAIRS_AT_ONCE = 1 << 18


def check_library() -> None:
    """Raise `MissingExtra` if rensa is not installed."""
    if find_spec("rensa") is None:
        raise MissingExtra("rensa", "distill")


def signature_of(numbers: np.ndarray) -> np.ndarray:
    """Return the signature of a text by the numbers of its words; fewer than `RUN_WORDS` words count as one run."""
    from rensa import RMinHash

    runs = runs_of(numbers, min(RUN_WORDS, max(len(numbers), 1)))
    offsets = np.array([0, len(runs)], dtype=np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(runs, offsets, NUMBERS, SEED)
    return np.array(matrix.to_rows()[0], dtype=np.uint32).astype(np.uint16)


def bands_for(threshold: float) -> tuple[int, int]:
    """Return how many bands of how many numbers find a pair of the threshold's similarity with probability `FOUND`."""
    rows = next(
        rows for rows in range(NUMBERS, 0, -1) if 1 - (1 - threshold**rows) ** (NUMBERS // rows) >= FOUND or rows == 1
    )
    return NUMBERS // rows, rows


def near_duplicates(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """Return for each row the earlier row that stays in its place, or -1 if the row itself stays.

    Rows come in the order of preference. A row goes if it is at least as similar to an earlier row that stays as
    `threshold` says.
    """
    bands, rows = bands_for(threshold)
    least = least_estimate(threshold)
    later, earlier = _links(signatures, bands, rows, least)
    stays_for = np.full(len(signatures), -1, dtype=np.int64)
    for row, other in zip(later.tolist(), earlier.tolist(), strict=True):  # in the order of the later rows
        if stays_for[row] < 0:
            kept = other if stays_for[other] < 0 else int(stays_for[other])
            if kept == other or _similarity(signatures, np.array([row]), np.array([kept]))[0] >= least:
                stays_for[row] = kept
    return stays_for


def least_estimate(threshold: float) -> float:
    """Return the least share of equal numbers that counts: 95 % of pairs of the threshold's similarity have it."""
    return threshold - LOWER * float(np.sqrt(threshold * (1 - threshold) / NUMBERS))


def _links(signatures: np.ndarray, bands: int, rows: int, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of similar rows, the later and the earlier one, sorted by both.

    Within a bucket each row is compared with the first one and with its neighbour, so that many equal texts make few
    pairs.
    """
    found = np.empty(0, dtype=np.uint64)
    for band in range(bands):
        keys = mixed(signatures[:, band * rows + k].astype(np.uint64) for k in range(rows))
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]]) + 1
        if not len(same):
            continue
        starts = np.ones(len(order), dtype=bool)
        starts[same] = False
        first = np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
        pairs = np.concatenate([_pairs(order[same], order[first[same]]), _pairs(order[same], order[same - 1])])
        pairs = np.setdiff1d(np.unique(pairs), found, assume_unique=True)
        found = np.union1d(found, pairs[_are_similar(signatures, pairs, least)])
    return (found >> np.uint64(32)).astype(np.int64), (found & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _pairs(later: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    return (later.astype(np.uint64) << np.uint64(32)) | earlier.astype(np.uint64)


def _are_similar(signatures: np.ndarray, pairs: np.ndarray, least: float) -> np.ndarray:
    similar = np.zeros(len(pairs), dtype=bool)
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        some = pairs[start : start + PAIRS_AT_ONCE]
        later, earlier = (some >> np.uint64(32)).astype(np.int64), (some & np.uint64(0xFFFFFFFF)).astype(np.int64)
        similar[start : start + PAIRS_AT_ONCE] = _similarity(signatures, later, earlier) >= least
    return similar


def _similarity(signatures: np.ndarray, some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the estimated Jaccard similarity of pairs of rows."""
    equal: np.ndarray = (signatures[some] == signatures[others]).mean(axis=1)
    return equal
