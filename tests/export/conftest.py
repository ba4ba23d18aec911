"""Tiny checkpoints of every architecture that exports, and one exported folder."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.checkpoint.decoder_families import FAMILIES
from export.checks.parity import Bounds
from export.pipeline import export_model
from export.presets import int4_config
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
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
MIXED = ["sliding_attention", "full_attention"]
GRANITE_4 = {
    "shared_intermediate_size": 96,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "layer_types": ["full_attention"] * 2,
    "mamba_n_heads": 4,
    "attention_multiplier": 0.2,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 4.0,
}
BIASED_CONTEXT = 1400
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {"tie_word_embeddings": True}),
    "Llama 3": ("Llama", {"tie_word_embeddings": False, "rope_parameters": LLAMA3}),
    "Llama with biases": ("Llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "Mistral": ("Mistral", {"tie_word_embeddings": False, "sliding_window": 7}),
    "Qwen2": ("Qwen2", {"tie_word_embeddings": True, "rope_theta": 1e6}),
    "Qwen2 with a window from layer 1 on": (
        "Qwen2",
        {"tie_word_embeddings": False, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "Qwen3": ("Qwen3", {"tie_word_embeddings": False, "head_dim": 32}),
    "Qwen3 with a window in layer 0": (
        "Qwen3",
        {
            "tie_word_embeddings": True,
            "head_dim": 32,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "SmolLM3": ("SmolLM3", {"tie_word_embeddings": True, "no_rope_layers": [1, 0]}),
    "SmolLM3 with a window": (
        "SmolLM3",
        {"tie_word_embeddings": False, "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 6},
    ),
    "Llama with biases everywhere and linear positions": (
        "Llama",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        },
    ),
    "Llama with dynamic positions": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "Qwen3 with YaRN": ("Qwen3", {"head_dim": 32, "rope_parameters": YARN}),
    "CWM": ("Cwm", {"head_dim": 16, "sliding_window": 6, "layer_types": MIXED, "rope_parameters": LLAMA3}),
    "ERNIE 4.5": ("Ernie4_5", {"head_dim": 16, "use_bias": True}),
    "Exaone 4": ("Exaone4", {"head_dim": 16, "sliding_window": 6, "layer_types": MIXED}),
    "Gemma": ("Gemma", {"head_dim": 32}),
    "Gemma 3": (
        "Gemma3",
        {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 6, "layer_types": MIXED},
    ),
    "GLM": ("Glm", {"head_dim": 32}),
    "GLM-4": ("Glm4", {"head_dim": 32}),
    "Granite": (
        "Granite",
        {
            "tie_word_embeddings": True,
            "attention_multiplier": 0.1,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
    ),
    "Granite 4, dense": ("GraniteMoeHybrid", GRANITE_4 | {"position_embedding_type": "rope"}),
    "Granite 4, dense, without positions": ("GraniteMoeHybrid", GRANITE_4),
    "Ministral": ("Ministral", {"head_dim": 16, "sliding_window": 6, "layer_types": MIXED}),
    "Ministral 3": (
        "Ministral3",
        {
            "head_dim": 16,
            "rope_parameters": YARN
            | {
                "original_max_position_embeddings": 200,
                "llama_4_scaling_beta": 0.1,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        },
    ),
    "OLMo 2": ("Olmo2", {}),
    "OLMo 3": ("Olmo3", {"sliding_window": 6, "layer_types": MIXED, "rope_scaling": YARN}),
    "Phi-3 with LongRoPE": (
        "Phi3",
        {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "original_max_position_embeddings": 200,
            "sliding_window": 400,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "short_factor": [1.0 + 0.1 * i for i in range(8)],
                "long_factor": [2.0 + i for i in range(8)],
            },
        },
    ),
    "Apertus": ("Apertus", {"rope_parameters": LLAMA3, "attention_bias": True}),
    "Arcee": ("Arcee", {"attention_bias": True, "mlp_bias": True}),
    "Helium": ("Helium", {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "HyperCLOVA X": (
        "HyperCLOVAX",
        {
            "tie_word_embeddings": True,
            "mlp_bias": True,
            "attention_multiplier": 0.1,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 0.125,
        },
    ),
    "Jais 2": ("Jais2", {}),
    "Nemotron": (
        "Nemotron",
        {
            "head_dim": 32,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
    ),
    "StarCoder 2": ("Starcoder2", {"sliding_window": 7}),
    "Llama with heads of 20 that are filled up": ("Llama", {"head_dim": 20, "attention_bias": True}),
    "Qwen3 with heads of 24 that are filled up": ("Qwen3", {"head_dim": 24}),
    "OLMo 2 with heads of 8 that are filled up": ("Olmo2", {"num_attention_heads": 8, "num_key_value_heads": 4}),
    "GLM with heads of 24 that are filled up": ("Glm", {"head_dim": 24, "attention_bias": True}),
    "Phi-3 with pairs that are filled up": (
        "Phi3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}},
    ),
    "SmolLM3 with heads of 20 that are filled up": ("SmolLM3", {"head_dim": 20, "no_rope_layers": [1, 0]}),
    "Seed-OSS": ("SeedOss", {"head_dim": 16, "attention_bias": True, "attention_out_bias": True, "mlp_bias": True}),
}
assert {f"{family}ForCausalLM" for family, _ in VARIANTS.values()} == set(FAMILIES)
REPEATED = {
    "Granite 4, dense, without positions",
    "OLMo 2 with heads of 8 that are filled up",
    "Phi-3 with pairs that are filled up",
    "Qwen3 with a window in layer 0",
    "Qwen3 with YaRN",
    "SmolLM3 with a window",
    "SmolLM3 with heads of 20 that are filled up",
}
"""What other variants show as well, together: each goes through some dozen tests."""
nightly = pytest.mark.skipif(os.environ.get("TOOLKIT_NIGHTLY") != "1", reason="shown by others: TOOLKIT_NIGHTLY=1")


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=nightly) if name in REPEATED else name for name in VARIANTS],
)
def checkpoint_folder(
    request: pytest.FixtureRequest, tiny_student: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A random model of each architecture, its biases and norms random as well, with the tiny student's tokenizer."""
    import torch
    import transformers

    family, facts = VARIANTS[request.param]
    folder = tmp_path_factory.mktemp(family)
    for path in tiny_student.iterdir():
        if "token" in path.name or path.suffix == ".jinja":
            shutil.copy(path, folder)
    torch.manual_seed(1)
    name = "Gemma3Text" if family == "Gemma3" else family
    config = getattr(transformers, f"{name}Config")(**TINY | facts)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            multiplies = "norm" in parameter_name and not FAMILIES[f"{family}ForCausalLM"].norms_add_one
            torch.nn.init.normal_(parameter, mean=float(multiplies), std=0.2)
        else:
            torch.nn.init.normal_(parameter, std=0.08)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wide_student(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny student with rows that are whole blocks of 256, which three bits need."""
    facts = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    return _reshaped(tiny_student, tmp_path_factory.mktemp("models") / "wide_student", facts)


@pytest.fixture(scope="session")
def deep_student(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student whose MLPs have 50 million weights."""
    facts = {"hidden_size": 512, "intermediate_size": 2048, "head_dim": 128, "num_hidden_layers": 16}
    return _reshaped(tiny_student, tmp_path_factory.mktemp("models") / "deep_student", facts)


def _reshaped(student: Path, folder: Path, facts: dict[str, int]) -> Path:
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    shutil.copytree(student, folder)
    config = AutoConfig.from_pretrained(student)
    config.update(facts)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
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


@pytest.fixture(scope="session")
def calibrated(tiny_student: Path, traces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny student, exported by the default recipe; tests only read it."""
    out = tmp_path_factory.mktemp("calibrated") / "int4"
    export_model(
        replace(int4_config(tiny_student, out, calibration=traces), bounds=Bounds(max_mean_kl=9.0, min_top1=0.0))
    )
    return out


@pytest.fixture(scope="session")
def fast(wide_student: Path, traces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wide student by `--fast`, with three bits in its MLPs; tests only read it."""
    config = int4_config(wide_student, tmp_path_factory.mktemp("fast") / "int4", preset="fast", calibration=traces)
    export_model(replace(config, bounds=Bounds(max_mean_kl=9.0, min_top1=0.0)))
    return config.out


@pytest.fixture(scope="session")
def biased_student(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 with key biases and a slow rotation as in published models, and logits that differ widely."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("models") / "biased_student"
    folder.mkdir()
    for path in tiny_student.iterdir():
        if "token" in path.name or path.suffix == ".jinja":
            shutil.copy(path, folder)
    shape: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    shape |= {"max_position_embeddings": BIASED_CONTEXT, "rope_theta": 1e6}
    torch.manual_seed(1)
    model = Qwen2ForCausalLM(Qwen2Config(**(TINY | shape), tie_word_embeddings=True))
    spread = {"k_proj.bias": 30.0, "q_proj.bias": 1.0, "v_proj.weight": 0.1, "o_proj.weight": 0.1, "tokens.weight": 0.3}
    for name, parameter in model.named_parameters():
        for ending, std in spread.items():
            if name.endswith(ending):
                torch.nn.init.normal_(parameter, std=std)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def biased(biased_student: Path, traces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The biased student, exported by the default recipe within its own bounds; tests only read it."""
    out = tmp_path_factory.mktemp("biased") / "int4"
    export_model(int4_config(biased_student, out, calibration=traces))
    return out
