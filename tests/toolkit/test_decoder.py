"""The torch decoder against transformers' own generation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM

from distill.teach import teacher_config
from distill.teacher_recipe import quick
from toolkit.chat_format import ChatFormat
from toolkit.errors import InputError
from toolkit.generate import Sampling, complete
from toolkit.model.decoder import TorchDecoder

PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]]


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


@pytest.mark.parametrize("kind", ["tiny_student", "tiny_deepseek"])
def test_rows_that_stay_go_on_as_if_alone(kind: str, request: pytest.FixtureRequest) -> None:
    decoder = TorchDecoder.open(request.getfixturevalue(kind), torch.float32)
    decoder.start(PROMPTS)
    decoder.step(np.array([3, 4, 5]))
    decoder.keep(np.array([1, 0]))
    together = decoder.step(np.array([7, 8]))
    decoder.start([PROMPTS[1]])
    decoder.step(np.array([4]))
    alone = decoder.step(np.array([7]))
    np.testing.assert_allclose(together[0], alone[0], atol=2e-4)


def test_folder_without_config_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path} must hold a config.json"):
        TorchDecoder.open(tmp_path)
