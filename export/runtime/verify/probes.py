"""Probes where faults hide that short traces don't show; the gate and `toolkit verify` run them.

    long positions   the end of a text of `LONG_POSITIONS`, or of the context's length if that is shorter
    several turns    a conversation as the chat reads it, each turn continuing from the cache
    a batch          rows of different lengths, stepped together
    odd tokens       added tokens, the last of the vocabulary, and some from all over it

Imports neither torch nor transformers nor onnx.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from export.runtime.decoder import OnnxDecoder
from export.runtime.verify.divergence import CoarseParity, Expected, Passage, agreement, check_readable, score_passages
from toolkit.generation.generate import Floats

LONG, TURNS, BATCH, ODD = ("long positions", "several turns", "a batch", "odd tokens")
LONG_POSITIONS = 2048
"""A 1.7B reads a text of so many in some ten seconds; a cache step that positions outgrow shows well before."""

INT8_FACTOR, INT8_SLACK = 1.5, 0.005
"""The most that an int8 cache may raise the exact one's KL: measured × factor + slack (nats). The slack is for models
that are hardly rounded, whose KL is next to nothing."""


def measure_places(decoder: OnnxDecoder, expected: Mapping[str, Expected]) -> dict[str, CoarseParity]:
    """Compare a decoder that keeps prefixes with the float model at each place."""
    read = {TURNS: _read_turns, BATCH: read_batch}
    for there in expected.values():
        check_readable(decoder, there)
    return {
        place: agreement(read.get(place, score_passages)(decoder, there.passages()), there)
        for place, there in expected.items()
    }


def int8_fault(exact: Mapping[str, CoarseParity], int8: Mapping[str, CoarseParity]) -> str:
    """Say in one clause how an int8 cache falls short of the exact one; empty if it doesn't."""
    for place, found in int8.items():
        most_kl = exact[place].mean_kl * INT8_FACTOR + INT8_SLACK
        if not found.mean_kl <= most_kl:  # also where it is NaN
            return (
                f"the int8 cache's mean KL to the float model at {place} ({found.mean_kl:.4f}) must be at most "
                f"{most_kl:.4f} (the exact cache's is {exact[place].mean_kl:.4f})"
            )
    return ""


def _read_turns(decoder: OnnxDecoder, passages: list[Passage]) -> list[Floats]:
    """Return logits_TV of each turn; prompts are read in pieces and answers token by token."""
    turns = []
    for tokens, count in passages:
        prompt, completion = tokens[:-count], tokens[-count:]
        rows = [decoder.start([prompt])[0]]
        rows += [decoder.step(np.array([token]))[0] for token in completion[:-1]]
        turns.append(np.stack(rows))
    return turns


def read_batch(decoder: OnnxDecoder, passages: list[Passage]) -> list[Floats]:
    """Return logits_TV of each row, the longest completions first; rows that have ended are no longer stepped."""
    counts = [count for _, count in passages]
    assert counts == sorted(counts, reverse=True)
    logits_BV = decoder.start([tokens[:-count] for tokens, count in passages])
    rows = [[logits_V] for logits_V in logits_BV]
    for t in range(counts[0] - 1):
        going = [tokens[t - count] for tokens, count in passages if t + 1 < count]
        for row, logits_V in zip(rows, decoder.step(np.array(going)), strict=False):
            row.append(logits_V)
    return [np.stack(row) for row in rows]
