"""What a config.json says about layers, as transformers understands it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from export.model_config import ModelConfig, read_model_config
from export.rotary import inverse_frequencies
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
    ],
)
def test_frequencies_are_the_bits_of_transformers(family: str, values: dict[str, Any], tmp_path: Path) -> None:
    config = read(tmp_path, family, **values)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    module = getattr(transformers.models, family.lower())
    embedding = getattr(getattr(module, f"modeling_{family.lower()}"), f"{family}RotaryEmbedding")(theirs)
    np.testing.assert_array_equal(inverse_frequencies(config), embedding.inv_freq.numpy())


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
    assert list(config.rotates) == [bool(x) for x in getattr(theirs, "no_rope_layers", [1] * len(windows))]


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("Mistral", {"attention_bias": True}, r"attention_bias \(True\) must be False"),
        ("Llama", {"rope_scaling": {"type": "linear"}}, r"rope_type \(linear\) must be default or llama3"),
        ("Llama", {"rope_scaling": {"rope_type": "llama3"}}, r"must hold 'factor'; it is missing"),
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
