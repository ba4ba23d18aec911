"""The facts of a dense decoder that the graph, the quantizer and the session need, read from its `config.json`.

Invariant: a `ModelConfig` describes a model that the graph computes exactly; whatever it cannot is refused here by name,
before any work starts. Imports neither torch nor onnx, because the chat reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import InputError

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Names and meanings are those of the Hugging Face `config.json`."""

    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    sliding_window: int
    """0 where every layer attends to everything."""

    @property
    def has_qkv_bias(self) -> bool:
        return self.architecture == "Qwen2ForCausalLM"

    @property
    def has_qk_norm(self) -> bool:
        return self.architecture == "Qwen3ForCausalLM"

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Rows of q_proj, k_proj and v_proj."""
        kv_size = self.num_key_value_heads * self.head_dim
        return self.num_attention_heads * self.head_dim, kv_size, kv_size


def read_model_config(folder: Path) -> ModelConfig:
    """Read and check `folder/config.json`.

    Raises `InputError` where it is missing, or names an architecture or a feature that the graph does not compute.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{path} must exist; {folder} is no model folder")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} must be readable JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a JSON object, not {type(values).__name__}")
    architectures = values.get("architectures") or ["none"]
    if architectures[0] not in ARCHITECTURES:
        raise InputError(f"architecture {architectures[0]} must be one of {', '.join(ARCHITECTURES)}; {path} names it")
    _refuse_unsupported(path, values)
    try:
        return _from_values(architectures[0], values)
    except KeyError as error:
        raise InputError(f"{path} must hold {error}; it is missing") from error


def _from_values(architecture: str, values: Mapping[str, Any]) -> ModelConfig:
    heads = values["num_attention_heads"]
    rope = values.get("rope_parameters") or {}  # transformers 5; version 4 keeps rope_theta at the top
    uses_window = architecture == "MistralForCausalLM" or values.get("use_sliding_window", False)
    return ModelConfig(
        architecture=architecture,
        model_type=values["model_type"],
        vocab_size=values["vocab_size"],
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        num_hidden_layers=values["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or values["hidden_size"] // heads,
        max_position_embeddings=values["max_position_embeddings"],
        rms_norm_eps=values["rms_norm_eps"],
        rope_theta=rope.get("rope_theta", values.get("rope_theta", 10000.0)),
        tie_word_embeddings=values.get("tie_word_embeddings", False),
        sliding_window=(values.get("sliding_window") or 0) if uses_window else 0,
    )


def _refuse_unsupported(path: Path, values: Mapping[str, Any]) -> None:
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    layer_types = set(values.get("layer_types") or [])
    for name, found, supported in (
        ("hidden_act", values.get("hidden_act", "silu"), "silu"),
        ("rope_type", rope.get("rope_type", rope.get("type", "default")), "default"),
        ("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), 1.0),
        ("mlp_bias", values.get("mlp_bias", False), False),
        ("attention_bias", values.get("attention_bias", False), False),
        ("number of layer_types", max(1, len(layer_types)), 1),
    ):
        if found != supported:
            raise InputError(f"{name} ({found}) must be {supported}; {path} describes a model that cannot be exported")
