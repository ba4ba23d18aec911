"""Tiny checkpoints of every architecture that exports, and one exported folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from export.model_config import ARCHITECTURES
from toolkit.records import Example, write_records

TINY = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"tie_word_embeddings": True},
    "MistralForCausalLM": {"tie_word_embeddings": False, "sliding_window": 7},
    "Qwen2ForCausalLM": {"tie_word_embeddings": True, "rope_theta": 1e6},
    "Qwen3ForCausalLM": {"tie_word_embeddings": False, "head_dim": 32},
}
assert set(VARIANTS) == set(ARCHITECTURES)


@pytest.fixture(scope="session", params=sorted(VARIANTS))
def checkpoint_folder(
    request: pytest.FixtureRequest, tiny_student: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A random model of each architecture, its biases and norms random as well, with the tiny student's tokenizer."""
    import torch
    import transformers

    name: str = request.param
    folder = tmp_path_factory.mktemp(name)
    for path in tiny_student.iterdir():
        if "token" in path.name or path.suffix == ".jinja":
            shutil.copy(path, folder)
    torch.manual_seed(1)
    config_class = getattr(transformers, name.removesuffix("ForCausalLM") + "Config")
    model = getattr(transformers, name)(config_class(**TINY, **VARIANTS[name]))
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=float("norm" in parameter_name), std=0.2)
        else:
            torch.nn.init.normal_(parameter, std=0.08)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A traces file of short examples."""
    path = tmp_path_factory.mktemp("traces") / "train.jsonl"
    write_records(
        path,
        [
            Example(
                problem_id=str(i),
                family="chain_sum",
                question=f"What is {i} + {i}?",
                reasoning=f"{i} and {i} is twice {i}, that is {2 * i}.",
                answer=str(2 * i),
                sample=0,
                teacher="test",
            )
            for i in range(40)
        ],
    )
    return path
