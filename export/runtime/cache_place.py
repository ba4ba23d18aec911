"""What one row's place in the cache holds, and which of its positions another prompt would have again, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from export.runtime.prefix_cache import common_prefix

PROMPT_CHUNK = 128
"""Tokens of a prompt that run at once: enough for full speed."""
FEW_ROWS = 8
"""Up to so many rows at once, our own kernels round each as if it were alone; more rows as any greater number of them."""


@dataclass(kw_only=True)
class CachePlace:
    """A row's place in the cache."""

    tokens: list[int] = field(default_factory=list)
    """Whose keys and values it holds."""
    read: int = 0
    """Its first positions that were read as prompts are, more than `FEW_ROWS` at once; the others were stepped."""
    whole: int = 0
    """Its first positions that were read by whole chunks from the start on."""
    changed: int = 0
    """When its last row was dropped: a count."""

    def note(self, tokens_T: Sequence[int]) -> None:
        """A piece of a prompt was read behind what is here."""
        before, count = len(self.tokens), len(tokens_T)
        if self.read == before and count > FEW_ROWS:
            self.read += count
        if self.whole == before and count == PROMPT_CHUNK:
            self.whole += count
        self.tokens += tokens_T

    def again(self, prompt: Sequence[int], *, by_chunks: bool) -> int:
        """Positions that a prompt would have again; `by_chunks` with any kernels, else with our own."""
        if by_chunks:
            shared = min(common_prefix(self.tokens, prompt[:-1]), self.whole)
            return shared - shared % PROMPT_CHUNK
        return min(common_prefix(self.tokens, prompt[: -FEW_ROWS - 1]), self.read)
