"""Where faults hide that short traces don't show: what the gate and `toolkit verify` look at besides them.

    long positions   the end of a text that goes on for `LONG_POSITIONS`, or to the context's end where that is nearer
    several turns    a conversation as the chat reads it, each turn going on from what the cache holds
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

LONG, TURNS, BATCH, ODD = PLACES = ("long positions", "several turns", "a batch", "odd tokens")
LONG_POSITIONS = 2048
"""A text of so many takes a 1.7B some ten seconds; steps that a position outgrows are long outgrown by then."""

INT8_FACTOR, INT8_SLACK = 1.5, 0.005
"""What an int8 cache may make of the exact one's KL: measured × factor + slack (nats). The slack is for models that are
hardly rounded, whose KL is next to nothing."""


def measure_places(decoder: OnnxDecoder, expected: Mapping[str, Expected]) -> dict[str, CoarseParity]:
    """What a decoder that keeps prefixes says at each place, beside what the float model expects there."""
    read = {TURNS: _read_turns, BATCH: read_batch}
    for there in expected.values():
        check_readable(decoder, there)
    return {
        place: agreement(read.get(place, score_passages)(decoder, there.passages()), there)
        for place, there in expected.items()
    }


def int8_fault(exact: Mapping[str, CoarseParity], int8: Mapping[str, CoarseParity]) -> str:
    """How an int8 cache falls short of the exact one, in one clause; empty where it doesn't."""
    for place, found in int8.items():
        most_kl = exact[place].mean_kl * INT8_FACTOR + INT8_SLACK
        if not found.mean_kl <= most_kl:  # also where it is NaN
            return (
                f"the int8 cache's mean KL to the float model at {place} ({found.mean_kl:.4f}) must be at most "
                f"{most_kl:.4f} (the exact cache's is {exact[place].mean_kl:.4f})"
            )
    return ""


def _read_turns(decoder: OnnxDecoder, passages: list[Passage]) -> list[Floats]:
    """logits_TV of each turn; prompts are read by pieces and answers token by token."""
    turns = []
    for tokens, count in passages:
        prompt, completion = tokens[:-count], tokens[-count:]
        rows = [decoder.start([prompt])[0]]
        rows += [decoder.step(np.array([token]))[0] for token in completion[:-1]]
        turns.append(np.stack(rows))
    return turns


def read_batch(decoder: OnnxDecoder, passages: list[Passage]) -> list[Floats]:
    """logits_TV of each row, the longest completions first: those that are at their end are no longer stepped."""
    counts = [count for _, count in passages]
    assert counts == sorted(counts, reverse=True)
    logits_BV = decoder.start([tokens[:-count] for tokens, count in passages])
    rows = [[logits_V] for logits_V in logits_BV]
    for t in range(counts[0] - 1):
        going = [tokens[t - count] for tokens, count in passages if t + 1 < count]
        for row, logits_V in zip(rows, decoder.step(np.array(going)), strict=False):
            row.append(logits_V)
    return [np.stack(row) for row in rows]
