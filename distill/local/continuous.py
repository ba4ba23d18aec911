"""Batches continuously: a row that ends is replaced at once by a prompt that waits, so no row waits for the longest.

    row 0   ███ prompt ░░░░░░░░░░░ answer ─ ends │ ███ next prompt ░░░░
    row 1   ███ prompt ░░░░ answer ─ ends │ ███ next prompt ░░░░░░░░░░░

Each row draws with a generator of its own, and has its own history and limit: what it says depends on its prompt and
its seed, whichever rows are beside it (as far as the decoder gives a row the same logits in any batch).

transformers has a loop of this kind (`generate_batch`), whose rows share one random generator, and whose paged cache
holds keys and values, but no latents. Here each row has its seed, and the decoder its cache.

Shapes: B rows of the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Generic, Protocol, TypeVar

import numpy as np

from toolkit.generation.generate import COMPACT_BELOW, Decoder, Floats, Sampled, Sampling, generator_of, sample
from toolkit.records import FinishReason


class Waiting(Protocol):
    """What a row answers."""

    @property
    def prompt(self) -> list[int]: ...

    @property
    def seed(self) -> int: ...


A = TypeVar("A", bound=Waiting)


class _Row(Generic[A]):
    """One prompt, and what was drawn after it."""

    def __init__(self, asked: A, sampling: Sampling) -> None:
        self.asked = asked
        self._sampling = sampling
        self._generator = generator_of(asked.seed, 0)
        self._history = list(asked.prompt)
        self.finish_reason: FinishReason | None = None

    def draw(self, logits_V: Floats, stop_ids: frozenset[int]) -> int:
        """Draw the next token, and note why the row ends with it, if it does."""
        token = sample(logits_V, self._sampling, self._generator, self._history)
        self._history.append(token)
        drawn = len(self._history) - len(self.asked.prompt)
        if token in stop_ids:
            self.finish_reason = "stop"
        elif drawn == self._sampling.max_new_tokens:
            self.finish_reason = "length"
        return token

    def sampled(self) -> Sampled:
        assert self.finish_reason is not None
        return Sampled(ids=self._history[len(self.asked.prompt) :], finish_reason=self.finish_reason)


def complete_each(
    decoder: Decoder, waiting: Iterable[A], sampling: Sampling, stop_ids: frozenset[int], *, rows: int
) -> Iterator[tuple[A, Sampled]]:
    """Complete all prompts, at most so many at once; yields each as soon as it ends.

    Prompts are taken when there is room for them, and must leave room for `max_new_tokens` in the decoder's context.
    """
    queue = iter(waiting)
    batch = [_Row(asked, sampling) for asked in islice(queue, rows)]
    if not batch:
        return
    logits = list(decoder.start([row.asked.prompt for row in batch]))
    while True:
        tokens_B = np.zeros(len(batch), dtype=np.int64)
        undrawn = [place for place, row in enumerate(batch) if row.finish_reason is None]
        while undrawn:
            for place in undrawn:
                tokens_B[place] = batch[place].draw(logits[place], stop_ids)
            ended = [place for place in undrawn if batch[place].finish_reason]
            for place in ended:
                yield batch[place].asked, batch[place].sampled()
            replaced = list(zip(ended, islice(queue, len(ended)), strict=False))
            undrawn = [place for place, _ in replaced]
            if replaced:
                for place, asked in replaced:
                    batch[place] = _Row(asked, sampling)
                read = decoder.replace(np.array(undrawn), [asked.prompt for _, asked in replaced])
                for place, logits_V in zip(undrawn, read, strict=True):
                    logits[place] = logits_V
        alive = [place for place, row in enumerate(batch) if row.finish_reason is None]
        if not alive:
            return
        if len(alive) < COMPACT_BELOW * len(batch):
            decoder.keep(np.array(alive))
            batch, tokens_B = [batch[place] for place in alive], tokens_B[alive]
        logits = list(decoder.step(tokens_B))
