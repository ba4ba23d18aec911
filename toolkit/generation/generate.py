"""Runs the decode loop: prompts in, sampled ids out.

A `Decoder` owns a model and its cache; torch (`toolkit.model.decoder`) and ONNX Runtime (`export.runtime.decoder`) both
implement it. Sampling is numpy and separate for each row: a row's result depends on its prompt and its seed, never on
the rows beside it.

Shapes: B rows of the batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import InputError
from toolkit.records import FinishReason

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

COMPACT_BELOW = 0.75
"""Finished rows leave the decoder's batch when less than this share of its rows is alive."""
LIKELY_ABOVE = -12.0
"""A token that is e to this power times as probable as the likeliest one is hardly ever within top-p."""
TOP_P_MARGIN = 1e-4
"""How much more than top-p the likely tokens must have, so that it ends among them whatever the rounding."""
GREEDY_BELOW = 1e-6
"""Lower temperatures count as 0: logits divided by one overflow, and the likeliest token would be drawn anyway."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn. Temperature 0 is greedy, and the other limits then have no effect."""

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    """0 keeps all tokens."""
    min_p: float = 0.0
    """Keeps tokens of at least this share of the most probable one's probability."""
    repetition_penalty: float = 1.0
    max_new_tokens: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("temperature", self.temperature, 0.0, 10.0),
            ("top_p", self.top_p, 0.0, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("repetition_penalty", self.repetition_penalty, 0.1, 10.0),
            ("top_k", self.top_k, 0, 2**31),
            ("max_new_tokens", self.max_new_tokens, 1, 2**31),
        ):
            if not low <= value <= high:
                raise InputError(f"{name} ({value}) must be between {low} and {high}")


GREEDY = Sampling(temperature=0.0)


def check_samples(samples: int, temperature: float, top_k: int = 0) -> None:
    """Raise `InputError` if a problem is to be sampled several times where all samples are equal: at temperature 0, or
    among one token."""
    if samples > 1 and temperature == 0.0:
        raise InputError(
            f"samples ({samples}) must be 1 at temperature 0, since all samples would be equal; raise the temperature"
        )
    if samples > 1 and top_k == 1:
        raise InputError(f"samples ({samples}) must be 1 with top_k 1, since all samples would be equal; raise top_k")


class Decoder(Protocol):
    """A model with its cache, over a batch of rows."""

    max_length: int
    """The most positions of a row, prompt included."""

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        """Forget everything and read the prompts; returns logits_BV after each prompt's last token."""

    def step(self, tokens_B: Ints) -> Floats:
        """Append one token to each row; returns logits_BV after it."""

    def keep(self, rows: Ints) -> None:
        """Keep only these rows of the batch, in this order."""

    def replace(self, rows: Ints, prompts: Sequence[Sequence[int]]) -> Floats:
        """Read a prompt into each of these rows, in place of what it holds; returns logits_BV of these rows alone."""


@dataclass(frozen=True, slots=True)
class Token:
    """One sampled token of one row. The last one of a row says why it ended; a stop token is always the last."""

    row: int
    id: int
    finish_reason: FinishReason | None


@dataclass(kw_only=True)
class Sampled:
    """One row's whole completion; `ids` includes the stop token, if there was one."""

    ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason = "length"


def decode(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: frozenset[int],
    seeds: Sequence[int] | None = None,
    drawn: int = 0,
) -> Iterator[Token]:
    """Sample all rows until each has stopped; tokens come in the order they are drawn.

    `seeds`: one for each row; by default, `sampling.seed` plus the row's number. `drawn`: how many of each prompt's
    last tokens were drawn by the same generator before, so that the same tokens follow as without the interruption.
    Raises `InputError` if a prompt leaves no room for a token.
    """
    longest = max(len(prompt) for prompt in prompts)
    room = decoder.max_length - longest
    if room < 1:
        raise InputError(
            f"the prompt ({longest} tokens) must be shorter than the model's context ({decoder.max_length}); shorten it"
        )
    limit = min(sampling.max_new_tokens, room)
    generators = [generator_of(seeds[i] if seeds else sampling.seed + i, drawn) for i in range(len(prompts))]
    histories = [list(prompt) for prompt in prompts]
    alive = list(range(len(prompts)))
    batch = alive.copy()  # the row of each row in the decoder's batch
    logits_BV = decoder.start(prompts)
    for count in range(1, limit + 1):
        position = {row: i for i, row in enumerate(batch)}
        tokens_B = np.zeros(len(batch), dtype=np.int64)
        for row in alive.copy():
            token = sample(logits_BV[position[row]], sampling, generators[row], histories[row])
            tokens_B[position[row]] = token
            histories[row].append(token)
            reason: FinishReason | None = "stop" if token in stop_ids else "length" if count == limit else None
            if reason:
                alive.remove(row)
            yield Token(row, token, reason)
        if not alive:
            return
        if len(alive) < COMPACT_BELOW * len(batch):
            rows = np.array([position[row] for row in alive])
            decoder.keep(rows)
            tokens_B, batch = tokens_B[rows], alive.copy()
        logits_BV = decoder.step(tokens_B)


def complete(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: frozenset[int],
    seeds: Sequence[int] | None = None,
) -> list[Sampled]:
    """Run `decode` to its end and collect each row's ids."""
    rows = [Sampled() for _ in prompts]
    for token in decode(decoder, prompts, sampling, stop_ids, seeds):
        rows[token.row].ids.append(token.id)
        if token.finish_reason:
            rows[token.row].finish_reason = token.finish_reason
    return rows


def generator_of(seed: int, drawn: int) -> np.random.Generator:
    """Return numpy's default generator after so many draws."""
    bits = np.random.PCG64(seed)
    bits.advance(drawn)
    return np.random.Generator(bits)


def sample(logits_V: Floats, sampling: Sampling, generator: np.random.Generator, history: Sequence[int]) -> int:
    """Draw one token id from one row's logits."""
    if sampling.repetition_penalty != 1.0:
        seen = np.unique(np.asarray(history, dtype=np.int64))
        scores = logits_V[seen]
        logits_V = logits_V.copy()
        logits_V[seen] = np.where(
            scores > 0, scores / sampling.repetition_penalty, scores * sampling.repetition_penalty
        )
    if sampling.temperature < GREEDY_BELOW:
        return int(logits_V.argmax())
    sorted_V, probabilities = candidates(logits_V, sampling)
    place = int(np.searchsorted(probabilities.cumsum(), generator.random()))
    return token_at(logits_V, sorted_V, min(place, len(probabilities) - 1))


def candidates(logits_V: Floats, sampling: Sampling) -> tuple[Floats, NDArray[np.float64]]:
    """Return logits, greatest first, and the probabilities of the first ones, which may be drawn (they sum to 1).

    The limits apply in this order: temperature, top-k, min-p, top-p (the smallest set that reaches the mass). Logits
    that are too small to be drawn may be left out.
    """
    likely, unlikely_mass = _likely(logits_V, sampling)
    sorted_V = -np.sort(-likely)  # only values: sorting them with their ids takes ten times as long
    scaled = sorted_V[: sampling.top_k or None].astype(np.float64) / sampling.temperature
    probabilities = np.exp(scaled - scaled[0])
    probabilities = probabilities[probabilities >= sampling.min_p]  # relative to the most probable, which is 1 here
    probabilities /= probabilities.sum() + unlikely_mass
    if sampling.top_p < 1.0:
        size = int(np.searchsorted(probabilities.cumsum(), sampling.top_p)) + 1
        probabilities = probabilities[:size]
        probabilities /= probabilities.sum()
    return sorted_V, probabilities


def _likely(logits_V: Floats, sampling: Sampling) -> tuple[Floats, float]:
    """Return the logits among which top-p ends, and the mass of the others, relative to the most probable token.

    Of a large vocabulary few tokens are likely, and sorting all of them would take most of the time. Where the others
    matter, all logits are returned.
    """
    if sampling.top_p >= 1.0 or sampling.top_k or sampling.min_p:
        return logits_V, 0.0
    relative_V = (logits_V - logits_V.max()) / np.float32(sampling.temperature)
    is_likely = relative_V > LIKELY_ABOVE
    likely, mass_V = logits_V[is_likely], np.exp(relative_V, dtype=np.float32)
    mass, unlikely = float(mass_V.sum(dtype=np.float64)), float(mass_V[~is_likely].sum(dtype=np.float64))
    return (likely, unlikely) if mass - unlikely > (sampling.top_p + TOP_P_MARGIN) * mass else (logits_V, 0.0)


def token_at(logits_V: Floats, sorted_V: Floats, place: int) -> int:
    """Return the token id at a place among the sorted logits; of equal logits the lower id comes first."""
    value = sorted_V[place]
    equals_before = place - int(np.searchsorted(-sorted_V, -value))
    return int(np.flatnonzero(logits_V == value)[equals_before])
