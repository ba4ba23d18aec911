"""Decodes several tokens in one step where a text repeats itself, by looking up what followed the last tokens before.

    text      … 1 7 + 2 5 = 4 2 … 1 7 + │ 2 5 = 4        the last three tokens occurred before: what followed is the draft
    one step reads the new token and the draft, and returns the logits after each of them
    while sampled tokens equal the draft, their logits are ready; at the first other token the rest is taken back

Every token is still drawn from the logits after the tokens before it, so the distribution stays the same, up to the
rounding of products over several rows. Whether drafts pay depends on the machine and the text, and both are measured:
a step over several tokens costs more than one, and drafts are used only while they give more tokens a second.
Source: prompt lookup decoding (Saxena 2023), after Leviathan et al., "Fast inference by speculative decoding" (2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from toolkit.generation.generate import Decoder, Floats, Ints

NGRAM = 3
"""How many last tokens must have occurred together before."""
DRAFT_LENGTHS = (3, 7)
"""Steps of four and eight rows, which fill the kernels' tiles."""
MEMORY = 0.9
"""The share of its old value that a running average keeps at each new measurement."""
RETRY_AFTER = 48
"""How many drafts are skipped before one is tried again although drafts did not pay."""


class DraftDecoder(Decoder, Protocol):
    """A decoder whose only row can be extended by several tokens and taken back."""

    def extend(self, tokens_T: Sequence[int]) -> Floats:
        """Append several tokens to the only row; returns logits_TV after each of them."""

    def rewind(self, count: int) -> None:
        """Forget the only row's last tokens."""


class SpeculativeDecoder:
    """A `Decoder` that drafts if it has one row, and otherwise passes everything on."""

    def __init__(self, decoder: DraftDecoder, clock: Callable[[], float]) -> None:
        """`clock` returns seconds."""
        self.max_length = decoder.max_length
        self._decoder = decoder
        self._clock = clock
        self._history: list[int] = []
        self._followers: dict[tuple[int, ...], int] = {}
        """The place after the last occurrence of each n-gram."""
        self._indexed = 0
        self._ahead: list[tuple[int, Floats]] = []
        """Drafted tokens that have been read, each with the logits after it."""
        self._pace = Pace()

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        """See `Decoder`."""
        self._history = list(prompts[0]) if len(prompts) == 1 else []
        self._followers, self._indexed, self._ahead = {}, 0, []
        return self._decoder.start(prompts)

    def step(self, tokens_B: Ints) -> Floats:
        """See `Decoder`."""
        if not self._history:
            return self._decoder.step(tokens_B)
        token = int(tokens_B[0])
        self._history.append(token)
        if self._ahead:
            drafted, logits_V = self._ahead.pop(0)
            if drafted == token:
                self._pace.note_draft(accepted=True)
                return logits_V[None]
            self._pace.note_draft(accepted=False)
            self._decoder.rewind(1 + len(self._ahead))
            self._ahead = []
        draft = self._draft()
        begun = self._clock()
        logits_TV = self._decoder.extend([token, *draft]) if draft else self._decoder.step(tokens_B)
        self._pace.note_step(len(draft), self._clock() - begun)
        self._ahead = list(zip(draft, logits_TV[1:], strict=True))
        return logits_TV[:1]

    def keep(self, rows: Ints) -> None:
        """See `Decoder`."""
        self._decoder.keep(rows)

    def replace(self, rows: Ints, prompts: Sequence[Sequence[int]]) -> Floats:
        """See `Decoder`."""
        self._history = []
        return self._decoder.replace(rows, prompts)

    def _draft(self) -> list[int]:
        """Return what followed the last tokens before, as far as a draft pays."""
        history = self._history
        for end in range(max(self._indexed, NGRAM), len(history)):
            self._followers[tuple(history[end - NGRAM : end])] = end
        self._indexed = len(history)
        place = self._followers.get(tuple(history[-NGRAM:]))
        if place is None:
            return []
        length = min(self._pace.length(), self.max_length - len(history))
        return history[place : place + length] if length > 0 else []


class Pace:
    """Tracks what steps cost and how often drafts were right, to choose how long a draft should be."""

    def __init__(self) -> None:
        self._step_s: dict[int, float] = {}
        self._accepted = 0.8
        """The share of drafted tokens that were right; assumed to be high until it is known."""
        self._let_go = 0

    def note_step(self, drafted: int, seconds: float) -> None:
        known = self._step_s.get(drafted, seconds)
        self._step_s[drafted] = MEMORY * known + (1 - MEMORY) * seconds

    def note_draft(self, *, accepted: bool) -> None:
        self._accepted = MEMORY * self._accepted + (1 - MEMORY) * accepted

    def length(self) -> int:
        """Return the draft length with the most tokens a second; 0 if none is faster than a plain step."""
        if 0 not in self._step_s:
            return 0
        unknown = next((length for length in DRAFT_LENGTHS if length not in self._step_s), None)
        if unknown is not None:
            return unknown
        best = max((0, *DRAFT_LENGTHS), key=self._tokens_per_s)
        if best == 0:
            self._let_go += 1
            if self._let_go % RETRY_AFTER == 0:
                return DRAFT_LENGTHS[0]
        return best

    def _tokens_per_s(self, length: int) -> float:
        expected = float(np.sum(self._accepted ** np.arange(length + 1)))
        return expected / self._step_s[length]
