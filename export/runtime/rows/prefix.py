"""What one row of a cache holds, and how much of it another prompt may go on from.

    tokens   │ read as prompts are      │ stepped │      read: more than `FEW_ROWS` tokens at once
             │ by whole chunks │ others │         │      whole chunks: as any other process reads them
             0               whole    read      length

Positions that were read would be made again by our own kernels, bit for bit, by whoever reads so many tokens; those of
whole chunks by any kernels. Stepped ones may differ by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

PROMPT_CHUNK = 128
"""Tokens of a prompt that run at once: enough for full speed."""
FEW_ROWS = 8
"""Up to so many rows at once, our own kernels round each as if it were alone; more rows as any greater number of
them."""


@dataclass(kw_only=True)
class Prefix:
    """What a row has read and stepped so far, from its first position on."""

    tokens: list[int] = field(default_factory=list)
    """Whose keys and values the row holds."""
    read: int = 0
    """Its first positions that were read as prompts are; the others were stepped."""
    whole: int = 0
    """Its first positions that were read by whole chunks from the start on; at most `read`."""

    @property
    def length(self) -> int:
        return len(self.tokens)

    def note_read(self, tokens_T: Sequence[int]) -> None:
        """A piece of a prompt was read behind what is here."""
        before, count = self.length, len(tokens_T)
        if self.read == before and count > FEW_ROWS:
            self.read += count
        if self.whole == before and count == PROMPT_CHUNK:
            self.whole += count
        self.tokens += tokens_T

    def note_steps(self, tokens_T: Sequence[int]) -> None:
        """Tokens were appended, a few at once or one by one."""
        self.tokens += tokens_T

    def cut(self, length: int) -> None:
        """Keep only the first positions."""
        del self.tokens[length:]
        self.read = min(self.read, length)
        self.whole = min(self.whole, length - length % PROMPT_CHUNK)

    def shared(self, prompt: Sequence[int]) -> int:
        """Positions that a prompt may go on from, however they were made."""
        return common_prefix(self.tokens, prompt)

    def again(self, prompt: Sequence[int], *, by_chunks: bool) -> int:
        """Positions that a prompt would have again, bit for bit; `by_chunks` with any kernels, else with our own.

        They leave as many tokens of it to be read as it takes to read them in the same way.
        """
        if by_chunks:
            shared = min(self.shared(prompt[:-1]), self.whole)
            return shared - shared % PROMPT_CHUNK
        return min(self.shared(prompt[: -FEW_ROWS - 1]), self.read)


def common_prefix(first: Sequence[int] | NDArray[np.int32], second: Sequence[int] | NDArray[np.int32]) -> int:
    """How many tokens both begin with."""
    size = min(len(first), len(second))
    differs_T = np.asarray(first[:size]) != np.asarray(second[:size])
    return int(differs_T.argmax()) if differs_T.any() else size
