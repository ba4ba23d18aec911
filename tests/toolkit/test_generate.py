"""The decode loop: sampling against an oracle, and rows that do not depend on their neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from toolkit.errors import InputError
from toolkit.generation.generate import GREEDY, Floats, Ints, Sampling, candidates, complete, decode, sample, token_at

VOCABULARY = 23
STOP = 0


class Chain:
    """A decoder whose next-token logits depend on the row's last two tokens only: small, and exact in any batch."""

    max_length = 64

    def __init__(self) -> None:
        self.table_VVV = np.random.default_rng(1).normal(size=(VOCABULARY,) * 3).astype(np.float32) * 3
        self.sizes: list[int] = []

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        self.rows = [list(prompt) for prompt in prompts]
        return self._logits()

    def step(self, tokens_B: Ints) -> Floats:
        for row, token in zip(self.rows, tokens_B, strict=True):
            row.append(int(token))
        return self._logits()

    def keep(self, rows: Ints) -> None:
        self.rows = [self.rows[i] for i in rows]

    def replace(self, rows: Ints, prompts: Sequence[Sequence[int]]) -> Floats:
        for row, prompt in zip(rows, prompts, strict=True):
            self.rows[row] = list(prompt)
        return self._logits()[rows]

    def _logits(self) -> Floats:
        self.sizes.append(len(self.rows))
        logits_BV: Floats = np.stack([self.table_VVV[row[-2], row[-1]] for row in self.rows])
        return logits_BV


def oracle(logits_V: Floats, sampling: Sampling) -> dict[int, float]:
    """Compute the distribution after all limits, by plain loops over a sorted list."""
    pairs = sorted(((float(x) / sampling.temperature, i) for i, x in enumerate(logits_V)), key=lambda p: (-p[0], p[1]))
    if sampling.top_k:
        pairs = pairs[: sampling.top_k]
    weights = [(np.exp(x - pairs[0][0]), i) for x, i in pairs]
    weights = [(w, i) for w, i in weights if w >= sampling.min_p * weights[0][0]]
    total = sum(w for w, _ in weights)
    kept, mass = [], 0.0
    for w, i in weights:
        kept.append((w, i))
        mass += w / total
        if mass >= sampling.top_p:
            break
    total = sum(w for w, _ in kept)
    return {i: w / total for w, i in kept}


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, top_p=1.0),
        Sampling(temperature=0.6, top_p=0.9),
        Sampling(temperature=1.3, top_p=1.0, top_k=5),
        Sampling(temperature=0.8, top_p=1.0, min_p=0.2),
        Sampling(temperature=0.9, top_p=0.8, top_k=7, min_p=0.05),
    ],
)
def test_candidates_equal_the_oracle(sampling: Sampling) -> None:
    for seed in range(20):
        logits_V = np.random.default_rng(seed).normal(size=VOCABULARY).astype(np.float32) * 2
        sorted_V, probabilities = candidates(logits_V, sampling)
        ids = [token_at(logits_V, sorted_V, place) for place in range(len(probabilities))]
        expected = oracle(logits_V, sampling)
        assert set(ids) == set(expected)
        np.testing.assert_allclose(probabilities, [expected[i] for i in ids], rtol=1e-9)


def drawn_by_a_stable_sort_of_ids(logits_V: Floats, sampling: Sampling, generator: np.random.Generator) -> int:
    """Draw tokens as the first version did, whose runs must resume with the same seeds."""
    ids = np.argsort(-logits_V, kind="stable")[: sampling.top_k or None]
    scaled = logits_V[ids].astype(np.float64) / sampling.temperature
    probabilities = np.exp(scaled - scaled[0])
    probabilities = probabilities[probabilities >= sampling.min_p]
    probabilities /= probabilities.sum()
    if sampling.top_p < 1.0:
        probabilities = probabilities[: int(np.searchsorted(probabilities.cumsum(), sampling.top_p)) + 1]
        probabilities /= probabilities.sum()
    place = int(np.searchsorted(probabilities.cumsum(), generator.random()))
    return int(ids[min(place, len(probabilities) - 1)])


@pytest.mark.parametrize("spread", [0.5, 2.0, 4.0])
def test_of_a_large_vocabulary_the_same_tokens_are_drawn(spread: float) -> None:
    for seed in range(100):
        logits_V = np.random.default_rng(seed).normal(size=30_000).astype(np.float32) * np.float32(spread)
        logits_V[:5] += 6 * spread
        for sampling in (Sampling(), Sampling(temperature=0.3, top_p=0.999), Sampling(temperature=1.5, top_p=0.5)):
            expected = drawn_by_a_stable_sort_of_ids(logits_V, sampling, np.random.default_rng(seed))
            assert sample(logits_V, sampling, np.random.default_rng(seed), []) == expected


@pytest.mark.parametrize("step", [1e-6, 0.5, 4.0], ids=["all differ", "many are equal", "most are equal"])
def test_a_seed_draws_the_tokens_that_it_always_drew(step: float) -> None:
    for seed in range(300):
        logits_V = np.random.default_rng(seed).normal(size=211 + seed).astype(np.float32) * 3
        logits_V = np.round(logits_V / np.float32(step)) * np.float32(step)
        for sampling in (Sampling(temperature=1.0, top_p=1.0), Sampling(), Sampling(top_k=40, min_p=0.02)):
            expected = drawn_by_a_stable_sort_of_ids(logits_V, sampling, np.random.default_rng(seed))
            assert sample(logits_V, sampling, np.random.default_rng(seed), []) == expected


def test_samples_follow_the_distribution() -> None:
    logits_V = np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32))
    generator = np.random.default_rng(0)
    drawn = [sample(logits_V, Sampling(temperature=1.0, top_p=1.0), generator, []) for _ in range(4000)]
    # four standard deviations of a share estimated from 4000 draws are below 0.032
    np.testing.assert_allclose(np.bincount(drawn) / 4000, [0.5, 0.3, 0.2], atol=0.032)


def test_temperature_zero_takes_the_most_probable() -> None:
    logits_V = np.array([0.1, 2.0, -1.0], dtype=np.float32)
    assert sample(logits_V, GREEDY, np.random.default_rng(0), []) == 1


@pytest.mark.parametrize("temperature", [1e-308, 5e-324, 1e-7])
def test_a_temperature_that_no_logit_can_be_divided_by_is_greedy(temperature: float) -> None:
    logits_V = np.array([3.0, 30.0, 30.0, -np.inf], dtype=np.float32)
    generator = np.random.default_rng(0)
    assert {sample(logits_V, Sampling(temperature=temperature), generator, ()) for _ in range(20)} == {1}


def test_repetition_penalty_lowers_what_was_seen_whatever_its_sign() -> None:
    logits_V = np.array([2.0, 1.5, -0.1, -0.15], dtype=np.float32)
    penalty = Sampling(temperature=0.0, repetition_penalty=2.0)
    assert sample(logits_V, penalty, np.random.default_rng(0), [0]) == 1
    assert sample(-abs(logits_V[2:]), penalty, np.random.default_rng(0), [0]) == 1
    assert logits_V[0] == 2.0


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    prompts = [[i % VOCABULARY, (3 * i + 1) % VOCABULARY] for i in range(12)]
    sampling = Sampling(temperature=1.0, max_new_tokens=40)
    stops = frozenset({STOP, 7})
    seeds = list(range(100, 112))
    decoder = Chain()
    together = complete(decoder, prompts, sampling, stops, seeds)
    alone = [complete(Chain(), [p], sampling, stops, [s])[0] for p, s in zip(prompts, seeds, strict=True)]
    assert together == alone
    assert decoder.sizes[0] == 12
    assert decoder.sizes[-1] < 12, "finished rows must have left the batch"


def test_a_row_that_goes_on_draws_what_it_would_have_drawn() -> None:
    sampling = Sampling(temperature=1.0, max_new_tokens=20, seed=5)
    whole = [token.id for token in decode(Chain(), [[3, 7]], sampling, frozenset())]
    for length in (1, 7, 19):
        rest = decode(Chain(), [[3, 7, *whole[:length]]], sampling, frozenset(), drawn=length)
        assert [token.id for token in rest][: 20 - length] == whole[length:]


def test_a_stop_token_ends_its_row_and_is_its_last() -> None:
    prompts = [[i, i + 1] for i in range(1, 9)]
    for row in complete(Chain(), prompts, Sampling(temperature=1.0, max_new_tokens=50), frozenset({STOP, 5})):
        assert (row.finish_reason == "stop") == (row.ids[-1] in (STOP, 5))
        assert not {STOP, 5} & set(row.ids[:-1])


def test_a_row_ends_where_the_context_does() -> None:
    row = complete(Chain(), [[1] * 60], Sampling(temperature=1.0, max_new_tokens=50), frozenset())[0]
    assert (len(row.ids), row.finish_reason) == (4, "length")


def test_a_prompt_that_fills_the_context_is_refused_with_both_counts() -> None:
    with pytest.raises(InputError, match=r"the prompt \(64 tokens\) must be shorter than the model's context \(64\)"):
        next(decode(Chain(), [[1] * 64], GREEDY, frozenset()))


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", -0.1), ("top_p", 1.5), ("min_p", -1.0), ("top_k", -1), ("max_new_tokens", 0)]
)
def test_sampling_refuses_values_out_of_range_by_name(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"{name} \({value}\) must be between"):
        Sampling(**{name: value})  # type: ignore[arg-type]
