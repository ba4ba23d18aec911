"""Rows that come and go, against transformers' own generation of each prompt alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from distill.local.causal_model import open_causal_model
from distill.local.continuous import complete_each
from tests.distill.bigram import BigramDecoder
from toolkit.generation.generate import Floats, Ints, Sampling, complete
from toolkit.model import decoder as torch_decoder
from toolkit.model.decoder import LatentCache, TorchDecoder

KINDS = ("llama", "qwen3", "mistral", "deepseek_v2", "deepseek_v3")


@dataclass
class Question:
    prompt: list[int]
    seed: int = 0
    name: str = field(default="")


def questions(count: int, longest: int = 40) -> list[Question]:
    """Draw prompts of very different lengths, the longest first; some are equal."""
    generator = np.random.default_rng(3)
    lengths = sorted(generator.integers(1, longest, count), reverse=True)
    drawn = [Question(generator.integers(3, 320, length).tolist(), seed=i) for i, length in enumerate(lengths)]
    return [*drawn, Question(list(drawn[-1].prompt), seed=count)]


def completed(decoder: TorchDecoder, asked: list[Question], sampling: Sampling, rows: int) -> dict[int, list[int]]:
    stops = frozenset(range(3, 13))
    return {one.seed: row.ids for one, row in complete_each(decoder, asked, sampling, stops, rows=rows)}


@pytest.mark.parametrize(("kind", "rows"), [*((kind, 3) for kind in KINDS), ("qwen3", 64), ("deepseek_v3", 1)])
def test_each_row_says_what_transformers_generates_for_its_prompt_alone(
    kind: str, rows: int, tiny: Callable[[str], Path]
) -> None:
    folder, asked = tiny(kind), questions(12)
    found = completed(open_causal_model(folder, torch.float32), asked, Sampling(temperature=0, max_new_tokens=60), rows)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ends = []
    for one in asked:
        expected = model.generate(
            torch.tensor([one.prompt]), max_new_tokens=60, do_sample=False, eos_token_id=list(range(3, 13))
        )
        assert found[one.seed] == expected[0, len(one.prompt) :].tolist()
        ends.append(len(found[one.seed]))
    assert len(set(ends)) > 1


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3"])
def test_a_sample_does_not_depend_on_the_rows_beside_it(kind: str, tiny: Callable[[str], Path]) -> None:
    decoder = open_causal_model(tiny(kind), torch.float32)
    sampling = Sampling(temperature=0.8, top_k=50, repetition_penalty=1.1, max_new_tokens=40)
    asked = questions(20)
    alone = completed(decoder, asked, sampling, 1)
    assert completed(decoder, asked, sampling, 5) == alone
    assert completed(decoder, asked[::-1], sampling, 4) == alone  # the shortest first: the cache must widen for others


@pytest.mark.parametrize("cache", [LatentCache(int8=True), LatentCache(rank=40, calibration=[list(range(5, 300))])])
def test_a_smaller_latent_cache_takes_rows_too(cache: LatentCache, tiny: Callable[[str], Path]) -> None:
    decoder = open_causal_model(tiny("deepseek_v3"), torch.float32, cache=cache)
    asked = questions(6)
    decoder.start([one.prompt for one in asked[:3]])
    decoder.step(np.array([5, 6, 7]))
    decoder.replace(np.array([1]), [asked[3].prompt])
    together = decoder.step(np.array([8, 9, 10]))
    for place, prompt, tokens in (
        (0, asked[0].prompt, [5, 8]),
        (1, asked[3].prompt, [9]),
        (2, asked[2].prompt, [7, 10]),
    ):
        decoder.start([prompt])
        for token in tokens:
            alone = decoder.step(np.array([token]))
        np.testing.assert_allclose(together[place], alone[0], atol=5e-2 if cache.int8 else 2e-3)


def test_many_prompts_are_read_in_pieces_with_the_same_result(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, asked = open_causal_model(tiny("qwen3"), torch.float32), questions(12)
    prompts = [one.prompt for one in asked[::-1]]
    at_once, then = decoder.start(prompts), decoder.step(np.arange(3, 3 + len(prompts)))
    monkeypatch.setattr(torch_decoder, "MOST_READ", 60)
    np.testing.assert_allclose(decoder.start(prompts), at_once, atol=2e-4)
    np.testing.assert_allclose(decoder.step(np.arange(3, 3 + len(prompts))), then, atol=2e-4)


class Noting(BigramDecoder):
    """Notes how many rows each step has, and each reading of prompts."""

    def __init__(self) -> None:
        super().__init__(320)
        self.steps: list[int] = []
        self.read: list[int] = []

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        self.read.append(len(prompts))
        return super().start(prompts)

    def step(self, tokens_B: Ints) -> Floats:
        self.steps.append(len(tokens_B))
        return super().step(tokens_B)


def test_no_row_waits_for_the_longest_one() -> None:
    sampling, stops = Sampling(temperature=1.0, max_new_tokens=400), frozenset({2})
    asked = [Question([5, 6], seed=seed) for seed in range(200)]
    decoder = Noting()
    lengths = [len(row.ids) for _, row in complete_each(decoder, asked, sampling, stops, rows=8)]
    drawn_by_steps = sum(lengths) - len(asked)  # the first token of a row comes with its prompt
    full = [rows for rows in decoder.steps if rows == 8]
    assert sum(decoder.read) == 200 and decoder.read[0] == 8
    assert len(decoder.steps) < drawn_by_steps / 8 + 2 * max(lengths)
    assert len(full) > 0.7 * len(decoder.steps)


def test_prompts_are_taken_when_there_is_room_for_them() -> None:
    taken, ended = [], []

    def waiting() -> Iterator[Question]:
        for seed in range(30):
            taken.append(seed)
            yield Question([5, 6], seed=seed)

    stops = frozenset({2})
    for one, _ in complete_each(Noting(), waiting(), Sampling(max_new_tokens=50), stops, rows=4):
        ended.append(one.seed)
        assert len(taken) - len(ended) <= 4
    assert sorted(ended) == taken == list(range(30))


def test_rows_sampled_one_after_another_equal_the_plain_loop() -> None:
    sampling, stops = Sampling(temperature=0.9, top_p=0.9, max_new_tokens=30), frozenset({2})
    asked = [Question([4 + i % 7, 5 + i], seed=1000 + i) for i in range(40)]
    rows = {one.seed: row for one, row in complete_each(BigramDecoder(320), asked, sampling, stops, rows=6)}
    plain = complete(BigramDecoder(320), [one.prompt for one in asked], sampling, stops, [one.seed for one in asked])
    assert [rows[one.seed] for one in asked] == plain
