"""The torch decoder against transformers' own generation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM

from distill.teach.teach import teacher_config
from distill.teach.teacher_recipe import quick
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.generation.generate import Sampling, complete
from toolkit.model.decoder import EXACT, LatentCache, TorchDecoder

PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]]

INT8 = LatentCache(int8=True)
LOW_RANK = LatentCache(rank=24, calibration=[list(range(5, 60)), list(range(200, 260))])


@pytest.fixture(scope="module")
def tiny_deepseek(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DeepSeek-V3 model of the quick preset's shape."""
    folder = tmp_path_factory.mktemp("models") / "tiny_deepseek"
    torch.manual_seed(0)
    model = DeepseekV3ForCausalLM(teacher_config(quick().shape, ChatFormat.from_folder(tiny_student)))
    with torch.no_grad():  # larger weights than the initial ones, so that greedy choices are clear
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["tiny_student", "tiny_deepseek"])
def test_batched_greedy_decoding_equals_transformers_generate(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    decoder = TorchDecoder.open(folder, torch.float32)
    sampled = complete(decoder, PROMPTS, Sampling(temperature=0.0, max_new_tokens=80), frozenset())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for prompt, row in zip(PROMPTS, sampled, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=80, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert row.ids == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("kind", "cache"),
    [("tiny_student", EXACT), ("tiny_deepseek", EXACT), ("tiny_deepseek", INT8), ("tiny_deepseek", LOW_RANK)],
)
def test_rows_that_stay_go_on_as_if_alone(kind: str, cache: LatentCache, request: pytest.FixtureRequest) -> None:
    decoder = TorchDecoder.open(request.getfixturevalue(kind), torch.float32, cache)
    decoder.start(PROMPTS)
    decoder.step(np.array([3, 4, 5]))
    decoder.keep(np.array([1, 0]))
    together = decoder.step(np.array([7, 8]))
    decoder.start([PROMPTS[1]])
    decoder.step(np.array([4]))
    alone = decoder.step(np.array([7]))
    # where a number lies between two of int8's, the batch may decide: one step of one number
    np.testing.assert_allclose(together[0], alone[0], atol=2e-2 if cache.int8 else 2e-4)


@pytest.mark.parametrize(
    ("kind", "cache"), [("tiny_student", EXACT), ("tiny_deepseek", EXACT), ("tiny_deepseek", INT8)]
)
def test_rows_of_one_prompt_go_on_as_if_alone(kind: str, cache: LatentCache, request: pytest.FixtureRequest) -> None:
    decoder = TorchDecoder.open(request.getfixturevalue(kind), torch.float32, cache)
    prompts, tokens = [PROMPTS[i] for i in (0, 1, 0, 2, 1)], [3, 4, 5, 6, 7]
    first_together, then_together = decoder.start(prompts), decoder.step(np.array(tokens))
    for place, (prompt, token) in enumerate(zip(prompts, tokens, strict=True)):
        first_alone, then_alone = decoder.start([prompt]), decoder.step(np.array([token]))
        np.testing.assert_allclose(first_together[place], first_alone[0], atol=2e-4)
        np.testing.assert_allclose(then_together[place], then_alone[0], atol=2e-2 if cache.int8 else 2e-4)


@pytest.mark.parametrize("cache", [INT8, LOW_RANK])
def test_a_smaller_cache_reads_the_prompt_exactly_and_steps_from_what_it_kept(
    cache: LatentCache, tiny_deepseek: Path
) -> None:
    exact, smaller = (TorchDecoder.open(tiny_deepseek, torch.float32, kept) for kept in (EXACT, cache))
    np.testing.assert_array_equal(smaller.start(PROMPTS), exact.start(PROMPTS))
    expected, found = (decoder.step(np.array([3, 4, 5])) for decoder in (exact, smaller))
    assert np.abs(found - expected).mean() > 1e-3


@pytest.mark.parametrize("cache", [INT8, LOW_RANK])
def test_a_smaller_cache_is_refused_where_there_are_no_latents(cache: LatentCache, tiny_student: Path) -> None:
    with pytest.raises(InputError, match=r"needs a model with latent attention .* this one is llama"):
        TorchDecoder.open(tiny_student, torch.float32, cache)


def test_folder_without_config_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path} has no config.json"):
        TorchDecoder.open(tmp_path)
