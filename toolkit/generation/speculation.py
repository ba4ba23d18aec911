"""Several tokens by one step, where a text repeats itself: drafts by looking up what followed the last tokens before.

    text      … 1 7 + 2 5 = 4 2 … 1 7 + │ 2 5 = 4        the last three tokens stood here before: what followed is the draft
    one step reads the new token and the draft, and answers with the logits after each of them
    while sampled tokens equal the draft, their logits are there already; at the first other one the rest is taken back

Every token is still drawn from the logits after the tokens before it, so the distribution stays what it was, up to the
rounding of products over several rows. Whether a draft pays depends on the machine and the text, and both are measured:
a step over several tokens costs more than one, and drafts are taken only as long as they give more tokens a second.
Source: prompt lookup decoding (Saxena 2023), after Leviathan et al., "Fast inference by speculative decoding" (2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from toolkit.generation.generate import Decoder, Floats, Ints

NGRAM = 3
"""Last tokens that must have stood together before."""
DRAFT_LENGTHS = (3, 7)
"""Four and eight rows a step, which fill the kernels' tiles."""
MEMORY = 0.9
"""Share that an average keeps of what it was at each new measurement."""
RETRY_AFTER = 48
"""Drafts that are let go before one is tried again although it didn't pay."""


class DraftDecoder(Decoder, Protocol):
    """A decoder whose only row can be extended by several tokens and taken back."""

    def extend(self, tokens_T: Sequence[int]) -> Floats:
        """Append several tokens to the only row; returns logits_TV after each."""

    def rewind(self, count: int) -> None:
        """Forget the only row's last tokens."""


class SpeculativeDecoder:
    """A `Decoder` that drafts where it has one row and passes everything on where it has several."""

    def __init__(self, decoder: DraftDecoder, clock: Callable[[], float]) -> None:
        """`clock` reads seconds."""
        self.max_length = decoder.max_length
        self._decoder = decoder
        self._clock = clock
        self._history: list[int] = []
        self._followers: dict[tuple[int, ...], int] = {}
        """Where the text went on the last time that it had this n-gram."""
        self._indexed = 0
        self._ahead: list[tuple[int, Floats]] = []
        """Drafted tokens that are read already, each with the logits after it."""
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

    def _draft(self) -> list[int]:
        """What followed the last tokens before, as far as it pays."""
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
    """What steps have cost and how often drafts were right, and so how long a draft should be."""

    def __init__(self) -> None:
        self._step_s: dict[int, float] = {}
        self._accepted = 0.8
        """Share of drafted tokens that were right; taken for high until it is known."""
        self._let_go = 0

    def note_step(self, drafted: int, seconds: float) -> None:
        known = self._step_s.get(drafted, seconds)
        self._step_s[drafted] = MEMORY * known + (1 - MEMORY) * seconds

    def note_draft(self, *, accepted: bool) -> None:
        self._accepted = MEMORY * self._accepted + (1 - MEMORY) * accepted

    def length(self) -> int:
        """The draft length with the most tokens a second; 0 where none is faster than a plain step."""
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
