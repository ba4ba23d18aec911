"""A config.json means for layers what it means to transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from export.checkpoint.model_config import ModelConfig, read_model_config
from export.checkpoint.tensors import tensor_shapes
from tests.export.conftest import LLAMA3, TINY
from toolkit.errors import InputError


def read(folder: Path, family: str, **values: Any) -> ModelConfig:
    facts = {"architectures": [f"{family}ForCausalLM"], "model_type": family.lower(), "rms_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(TINY | facts | values))
    return read_model_config(folder)


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3"])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"rope_theta": 5e5},
        {"rope_parameters": LLAMA3},
        {"rope_theta": 5e5, "rope_scaling": {name: value for name, value in LLAMA3.items() if name != "rope_theta"}},
        {"rope_theta": 1e4, "max_position_embeddings": 131072, "rope_scaling": LLAMA3 | {"factor": 32.0}},
        {"head_dim": 48},
        {"head_dim": 20},
    ],
)
def test_frequencies_are_the_bits_of_transformers(family: str, values: dict[str, Any], tmp_path: Path) -> None:
    config = read(tmp_path, family, **values)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    module = getattr(transformers.models, family.lower())
    embedding = getattr(getattr(module, f"modeling_{family.lower()}"), f"{family}RotaryEmbedding")(theirs)
    assert {rope and rope.inv_freq for rope in config.ropes} - {None} == {tuple(embedding.inv_freq.tolist())}


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "SmolLM3"])
@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 30},
        {"num_hidden_layers": 30, "use_sliding_window": True, "sliding_window": 9},
        {"num_hidden_layers": 9, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 4},
        {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {"num_hidden_layers": 4, "use_sliding_window": False, "sliding_window": 9, "max_window_layers": 0},
        {
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ],
)
def test_layers_slide_and_rotate_as_in_transformers(family: str, values: dict[str, Any], tmp_path: Path) -> None:
    config = read(tmp_path, family, **values)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    windows = [theirs.sliding_window if kind == "sliding_attention" else 0 for kind in theirs.layer_types]
    assert list(config.sliding_windows) == windows
    assert [rope is not None for rope in config.ropes] == [
        bool(x) for x in getattr(theirs, "no_rope_layers", [1] * len(windows))
    ]


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("Llama", {"head_dim": 25}, r"RoPE requires an even rotary dimension, but got `head_dim`=25"),
        ("Qwen3", {"head_dim": 512}, r"head_dim \(512, in the graph 512\) must be at most 256"),
        ("HyperCLOVAX", {"use_post_norm": False}, r"use_post_norm \(False\) must be True"),
        ("Llama", {"num_hidden_layers": 10**9}, r"num_hidden_layers in .* must be from 1 to 4096"),
        ("Mistral", {"layer_types": ["full_attention"] * 2}, r"config\.json describes Ministral \(layer_types\)"),
        ("Llama", {"model_type": "mistral"}, r"model_type \(mistral\) in .* is not that of LlamaForCausalLM"),
        (
            "Llama",
            {"rope_scaling": {"type": "proportional"}},
            r"rope_type \(proportional\) must be default or dynamic or",
        ),
        ("Llama", {"rope_scaling": {"rope_type": "llama3"}}, r"transformers cannot build the model of .*factor"),
        ("Llama", {"is_causal": False}, r"is_causal \(False\) must be True"),
        ("Llama", {"quantization_config": {"quant_method": "awq"}}, r"quantization_config \(awq\) must be none"),
        ("Qwen3", {"layer_types": ["chunked_attention"] * 2}, r"layer_types \(chunked_attention\) must be full"),
        ("Qwen2", {"layer_types": ["sliding_attention"] * 2}, r"\(sliding_attention\) must be full_attention;"),
        ("SmolLM3", {"no_rope_layers": [1]}, r"no_rope_layers \(1 entries\) must name each of the 2 layers"),
    ],
)
def test_what_the_graph_cannot_compute_is_refused_by_name(
    family: str, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, family, **values)


@pytest.mark.parametrize("family", ["InternLM3", "IQuestCoder"])
def test_a_model_of_other_code_is_of_the_class_by_which_transformers_computes_it(family: str, tmp_path: Path) -> None:
    config = read(tmp_path, family)
    model = built(tmp_path)
    assert model is not None and config.architecture == type(model).__name__ == "LlamaForCausalLM"
    assert {name: tuple(parameter.shape) for name, parameter in model.named_parameters()} == tensor_shapes(config)


ODD: dict[str, dict[str, Any]] = {
    "nothing": {},
    "mlp_bias null": {"mlp_bias": None},
    "mlp_bias a number": {"mlp_bias": 0},
    "attention_bias null": {"attention_bias": None},
    "attention_bias a number": {"attention_bias": 1},
    "rope_theta null": {"rope_theta": None},
    "rope_theta a text": {"rope_theta": "10000"},
    "rope_theta whole": {"rope_theta": 500000},
    "rope_theta 0": {"rope_theta": 0},
    "rope_theta null inside": {"rope_parameters": {"rope_type": "default", "rope_theta": None}},
    "rope_scaling a text": {"rope_scaling": "linear"},
    "rope_scaling a list": {"rope_scaling": ["linear", 2]},
    "rope_scaling null": {"rope_scaling": None},
    "rope_scaling empty": {"rope_scaling": {}, "rope_theta": 3e4},
    "rope_parameters null": {"rope_parameters": None},
    "rope_type null": {"rope_parameters": {"rope_type": None, "rope_theta": 1e4}},
    "factor null": {"rope_scaling": LLAMA3 | {"factor": None}},
    "factor a text": {"rope_scaling": LLAMA3 | {"factor": "8"}},
    "partial_rotary_factor null": {"partial_rotary_factor": None},
    "tie_word_embeddings a text": {"tie_word_embeddings": "false"},
    "tie_word_embeddings null": {"tie_word_embeddings": None},
    "tie_word_embeddings 1": {"tie_word_embeddings": 1},
    "no layers": {"num_hidden_layers": 0},
    "layers a fraction": {"num_hidden_layers": 2.0},
    "layers null": {"num_hidden_layers": None},
    "layers a list": {"num_hidden_layers": [2]},
    "kv heads null": {"num_key_value_heads": None},
    "kv heads 0": {"num_key_value_heads": 0},
    "kv heads that don't divide": {"num_key_value_heads": 3},
    "heads 0": {"num_attention_heads": 0},
    "heads a text": {"num_attention_heads": "4"},
    "head_dim null": {"head_dim": None},
    "head_dim a text": {"head_dim": "16"},
    "hidden size not of whole heads": {"hidden_size": 72, "head_dim": 16},
    "sliding_window null": {"sliding_window": None},
    "sliding_window a text": {"sliding_window": "7"},
    "use_sliding_window null": {"use_sliding_window": None},
    "layer_types null": {"layer_types": None},
    "layer_types a text": {"layer_types": "full_attention"},
    "layer_types too many": {"layer_types": ["full_attention"] * 3},
    "no_rope_layers a text": {"no_rope_layers": "01"},
    "no_rope_layer_interval null": {"no_rope_layer_interval": None},
    "max_window_layers null": {"max_window_layers": None},
    "eps whole": {"rms_norm_eps": 1},
    "eps a text": {"rms_norm_eps": "1e-6"},
    "eps null": {"rms_norm_eps": None},
    "vocabulary null": {"vocab_size": None},
    "vocabulary negative": {"vocab_size": -1},
    "hidden_act null": {"hidden_act": None},
    "hidden_act swish": {"hidden_act": "swish"},
    "architectures null": {"architectures": None},
    "architectures a text": {"architectures": "Llama"},
    "architectures empty": {"architectures": []},
    "quantization_config null": {"quantization_config": None},
    "quantization_config a text": {"quantization_config": "awq"},
}
STRICTER = {
    "attention_bias a number",
    "rope_theta 0",
    "no layers",
    "kv heads that don't divide",
    "architectures a text",
}
"""What transformers builds and cannot run, or runs without a meaning."""


def built(folder: Path) -> Any:
    """Build transformers' model of a config.json, without weights; None if it refuses."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
    except Exception:  # noqa: BLE001 – each check of transformers raises its own
        return None
    return model


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_values_are_read_as_transformers_reads_them_or_refused_in_one_line(
    family: str, odd: str, tmp_path: Path
) -> None:
    values = {"head_dim": 16} if family == "Qwen3" else {}
    try:
        config = read(tmp_path, family, **values | ODD[odd])
    except InputError as error:
        assert "\n" not in str(error)
        assert built(tmp_path) is None or odd in STRICTER, "transformers takes what is refused here"
        return
    model = built(tmp_path)
    assert model is not None, "transformers refuses what is taken here"
    theirs = model.config
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads", "tie_word_embeddings"):
        assert getattr(config, name) == getattr(theirs, name)
    assert {name: tuple(parameter.shape) for name, parameter in model.named_parameters()} == tensor_shapes(config)
