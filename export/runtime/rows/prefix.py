"""Tracks what one row of a cache holds, and how much of it another prompt can reuse.

    tokens   │ read as prompts are      │ stepped │      read: more than `FEW_ROWS` tokens at once
             │ by whole chunks │ others │         │      whole chunks: as any other process reads them
             0               whole    read      length

Our own kernels reproduce positions that were read bit for bit, whatever the pieces; any kernels reproduce those that
were read in whole chunks. Stepped ones may differ by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

PROMPT_CHUNK = 128
"""Tokens of a prompt that are read at once: enough for full speed."""
FEW_ROWS = 8
"""Our own kernels compute a token the same way in every batch of at most so many, and in another way, again the same,
in every larger batch."""


@dataclass(kw_only=True)
class Prefix:
    """The tokens that a row has read and stepped so far, with one adapter or none."""

    adapter: int = 0
    """The number of the adapter that its keys and values come from; 0 for none."""
    tokens: list[int] = field(default_factory=list)
    """The tokens whose keys and values the row holds."""
    read: int = 0
    """How many of the first positions were read as prompts are; the others were stepped."""
    whole: int = 0
    """How many of the first positions were read in whole chunks from the start on; at most `read`."""

    @property
    def length(self) -> int:
        return len(self.tokens)

    def note_read(self, tokens_T: Sequence[int]) -> None:
        """Note that a piece of a prompt was read after the present tokens."""
        before, count = self.length, len(tokens_T)
        if self.read == before and count > FEW_ROWS:
            self.read += count
        if self.whole == before and count == PROMPT_CHUNK:
            self.whole += count
        self.tokens += tokens_T

    def note_steps(self, tokens_T: Sequence[int]) -> None:
        """Note that tokens were appended, a few at once or one by one."""
        self.tokens += tokens_T

    def cut(self, length: int) -> None:
        """Keep only the first positions."""
        del self.tokens[length:]
        self.read = min(self.read, length)
        self.whole = min(self.whole, length - length % PROMPT_CHUNK)

    def shared(self, prompt: Sequence[int]) -> int:
        """Count the positions that a prompt can reuse, however they were computed."""
        return common_prefix(self.tokens, prompt)

    def again(self, prompt: Sequence[int], *, by_chunks: bool, adapter: int = 0) -> int:
        """Count the positions that a prompt would reproduce bit for bit, with our kernels, or `by_chunks` with any.

        Enough tokens remain after them for the rest to be read in the same way. With another `adapter`, it reproduces
        none.
        """
        if adapter != self.adapter:
            return 0
        if by_chunks:
            shared = min(self.shared(prompt[:-1]), self.whole)
            return shared - shared % PROMPT_CHUNK
        return min(self.shared(prompt[: -FEW_ROWS - 1]), self.read)


def common_prefix(first: Sequence[int] | NDArray[np.int32], second: Sequence[int] | NDArray[np.int32]) -> int:
    """Count the tokens with which both begin."""
    size = min(len(first), len(second))
    differs_T = np.asarray(first[:size]) != np.asarray(second[:size])
    return int(differs_T.argmax()) if differs_T.any() else size
