"""Steps of an int8 cache: how large each channel of keys and values becomes on the calibration texts.

Measured on the exported model itself, whose float cache holds keys as they are after the rotation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from export.calibration import Text
from export.session import Floats, OnnxDecoder

TOKENS = 4000
"""More change the largest values little."""
LARGEST_CODE = 127
MARGIN = 1.1
"""Room for values that the calibration texts don't show; what is larger still is clipped."""
SMALLEST_STEP = np.float32(1e-8)


def cache_scales(folder: Path, texts: Sequence[Text]) -> dict[str, Floats]:
    """For each layer's `N.key` and `N.value` the step of every channel, [num_key_value_heads · head_dim]."""
    decoder = OnnxDecoder(folder, cache="exact")
    largest: dict[str, Floats] = {}
    room = TOKENS
    for text in texts:
        if room <= 0:
            break
        ids = text.prompt + text.completion
        decoder.start([ids])
        for name, seen in decoder.largest_kept().items():
            largest[name] = np.maximum(largest.get(name, seen), seen)
        room -= len(ids)
    return {name: np.maximum(seen * MARGIN / LARGEST_CODE, SMALLEST_STEP) for name, seen in largest.items()}
