"""Steps of an int8 cache: how large each channel of keys and values becomes on the calibration texts.

Measured on the exported model itself, whose float cache holds keys as they are after the rotation.

Invariant: a step holds at every position. A position turns a pair of key channels, (r, r + head_dim / 2), but leaves
its length; so both have the step of the largest length, which no turn outgrows. Taken channel by channel, a pair that
has hardly turned by the end of a short text would have a second step that a longer text clips by far.

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
"""Of the texts one by one; more change the largest values little."""
LONG_TOKENS = 2000
"""Of the texts one after the other."""
ODD_TOKENS = 1000
"""From all over the vocabulary: what traces don't say, a user may."""
LARGEST_CODE = 127
MARGIN = 0.1
"""Room for values that the calibration texts don't show, as a share of how far they lie apart: a bias that all keys
share needs none. What is larger still is clipped."""
SMALLEST_STEP = np.float32(1e-8)


def cache_scales(source: Source, folder: Path, texts: Sequence[CalibrationText]) -> dict[str, Floats]:
    """For each layer's `N.key` and `N.value` the step of every channel, [num_key_value_heads · head_dim]."""
    decoder = OnnxDecoder(folder, cache="exact")
    turned = {f"{layer}.key" for layer, rotates in enumerate(source.checkpoint.config.rotates) if rotates}
    smallest: dict[str, Floats] = {}
    largest: dict[str, Floats] = {}
    read = list(_calibration_ids(decoder, source.chat_format, texts))
    with Progress("steps of the int8 cache", len(read)) as progress:
        for ids in read:
            decoder.start([ids])
            for name, kept_GSA in decoder.kept().items():
                sizes_GSA = _pair_lengths(kept_GSA) if name in turned else np.abs(kept_GSA)
                low, high = (extreme(sizes_GSA, 1).reshape(-1) for extreme in (np.min, np.max))
                smallest[name] = np.minimum(smallest.get(name, low), low)
                largest[name] = np.maximum(largest.get(name, high), high)
            progress.advance()
    reach = {name: high + MARGIN * (high - smallest[name]) for name, high in largest.items()}
    return {name: np.maximum(size / LARGEST_CODE, SMALLEST_STEP) for name, size in reach.items()}


def _calibration_ids(
    decoder: OnnxDecoder, chat_format: ChatFormat, texts: Sequence[CalibrationText]
) -> Iterator[list[int]]:
    """The texts one by one, one after the other as one long text, and odd tokens."""
    each = [text.ids for text in texts]
    before = accumulate((len(ids) for ids in each), initial=0)
    yield from (ids for ids, tokens in zip(each, before, strict=False) if tokens < TOKENS)
    yield [token for ids in each for token in ids][: min(LONG_TOKENS, decoder.max_length)]
    yield from odd_texts(chat_format, decoder.model.vocab_size, ODD_TOKENS)


def _pair_lengths(keys_GSA: Floats) -> Floats:
    """Of both channels of each pair its length."""
    first_GSR, second_GSR = np.split(keys_GSA, 2, axis=-1)
    lengths_GSR = np.hypot(first_GSR, second_GSR)
    lengths_GSA: Floats = np.concatenate([lengths_GSR, lengths_GSR], axis=-1)
    return lengths_GSA
