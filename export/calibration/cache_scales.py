"""Computes the steps of an int8 cache from how large each channel of keys and values becomes on calibration texts.

The exported model itself is measured; its float cache holds keys after their rotation.

Invariant: a step suffices at every position. A position rotates a pair of key channels, (r, r + R), and keeps its
length; so both get the step of the largest length, which no rotation exceeds. With a step for each channel, a pair that
has hardly rotated by the end of a short text would be clipped badly in a longer one.

Shapes: G kv heads, S positions, A head dim, R rotated pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from export.calibration.odd_tokens import odd_texts
from export.calibration.texts import CalibrationText
from export.checkpoint.source import Source
from export.runtime.decoder import OnnxDecoder
from toolkit.formats.chat_format import ChatFormat
from toolkit.generation.generate import Floats
from toolkit.progress import Progress

TOKENS = 4000
"""Tokens read of the texts one by one; more hardly change the largest values."""
LONG_TOKENS = 2000
"""Tokens read of the texts as one long text."""
ODD_TOKENS = 1000
"""Tokens from all over the vocabulary: a user may write what traces don't contain."""
LARGEST_CODE = 127
MARGIN = 0.1
"""Room for values that the calibration texts don't show, as a share of their spread: a bias that all keys share needs
none. Larger values are clipped."""
SMALLEST_STEP = np.float32(1e-8)


def cache_scales(source: Source, folder: Path, texts: Sequence[CalibrationText]) -> dict[str, Floats]:
    """Return every channel's step, [num_key_value_heads · padded_head_dim], for each layer's `N.key` and `N.value`."""
    decoder = OnnxDecoder(folder, cache="exact")
    pairs = {f"{layer}.key": len(rope.turns) for layer, rope in enumerate(source.checkpoint.config.ropes) if rope}
    smallest: dict[str, Floats] = {}
    largest: dict[str, Floats] = {}
    read = list(_calibration_ids(decoder, source.chat_format, texts))
    with Progress("steps of the int8 cache", len(read)) as progress:
        for ids in read:
            decoder.start([ids])
            for name, kept_GSA in decoder.kept().items():
                sizes_GSA = _reach(kept_GSA, pairs.get(name, 0))
                low, high = (extreme(sizes_GSA, 1).reshape(-1) for extreme in (np.min, np.max))
                smallest[name] = np.minimum(smallest.get(name, low), low)
                largest[name] = np.maximum(largest.get(name, high), high)
            progress.advance()
    reach = {name: high + MARGIN * (high - smallest[name]) for name, high in largest.items()}
    return {name: np.maximum(size / LARGEST_CODE, SMALLEST_STEP) for name, size in reach.items()}


def _calibration_ids(
    decoder: OnnxDecoder, chat_format: ChatFormat, texts: Sequence[CalibrationText]
) -> Iterator[list[int]]:
    """Yield the ids of the texts one by one, of all as one long text, and of odd tokens."""
    each = [text.ids for text in texts]
    before = accumulate((len(ids) for ids in each), initial=0)
    yield from (ids for ids, tokens in zip(each, before, strict=False) if tokens < TOKENS)
    yield [token for ids in each for token in ids][: min(LONG_TOKENS, decoder.max_length)]
    yield from odd_texts(chat_format, decoder.model.vocab_size, ODD_TOKENS)


def _reach(kept_GSA: Floats, pairs: int) -> Floats:
    """Return how large each channel can become: both of each rotated pair get the length of the pair."""
    first_GSR, second_GSR, rest = np.split(kept_GSA, [pairs, 2 * pairs], axis=-1)
    lengths_GSR = np.hypot(first_GSR, second_GSR)
    reach_GSA: Floats = np.concatenate([lengths_GSR, lengths_GSR, np.abs(rest)], axis=-1)
    return reach_GSA
