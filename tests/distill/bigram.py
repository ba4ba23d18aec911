"""The smallest real language model: the next token's logits are a row of a fixed random table.

It needs no torch, so a process that samples from it starts quickly, and a row cannot see its neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from toolkit.generation.generate import Floats, Ints


class BigramDecoder:
    """Gives logits that depend only on the last token."""

    def __init__(self, vocab_size: int, *, max_length: int = 4096, step_s: float = 0.0) -> None:
        self.max_length = max_length
        self._table = np.random.default_rng(7).normal(scale=2.0, size=(vocab_size, vocab_size)).astype(np.float32)
        self._table[:, 2] += 2.0  # the tiny student's end of turn comes now and then
        self._step_s = step_s

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        return self._logits(np.array([prompt[-1] for prompt in prompts]))

    def step(self, tokens_B: Ints) -> Floats:
        return self._logits(tokens_B)

    def keep(self, rows: Ints) -> None:
        pass

    def replace(self, rows: Ints, prompts: Sequence[Sequence[int]]) -> Floats:
        return self.start(prompts)

    def _logits(self, tokens_B: Ints) -> Floats:
        time.sleep(self._step_s)
        logits_BV: Floats = self._table[tokens_B]
        return logits_BV
