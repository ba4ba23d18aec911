"""Reads from `config.json` the facts of a dense decoder that the graph, the quantizer and the session need.

Invariant: a `ModelConfig` describes a model that the graph computes exactly; a feature that it cannot compute is
refused here by name, before any work starts. Imports neither torch nor onnx, because the chat imports it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import InputError
from toolkit.field_types import check_type, fits
from toolkit.records import read_object

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
)
OPTIONAL_ATTENTION_BIAS = ("LlamaForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM")
"""Architectures whose classes read `attention_bias`; Qwen2 always has biases on q, k and v."""
LAYER_TYPES = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM")
"""Architectures whose classes read `layer_types`."""
SLIDING, FULL = "sliding_attention", "full_attention"
MODEL_TYPES = {name.removesuffix("ForCausalLM").lower(): name for name in ARCHITECTURES}
"""Architectures by `model_type`, by which transformers chooses a class."""
READ_BY = {
    "mlp_bias": ("LlamaForCausalLM", "SmolLM3ForCausalLM"),
    "use_sliding_window": LAYER_TYPES,
    "sliding_window": (*LAYER_TYPES, "MistralForCausalLM"),
    "max_window_layers": ("Qwen2ForCausalLM", "Qwen3ForCausalLM"),
    "no_rope_layers": ("SmolLM3ForCausalLM",),
    "no_rope_layer_interval": ("SmolLM3ForCausalLM",),
}
"""Keys that only some classes read; the others ignore them."""
WHOLE_NUMBERS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "sliding_window",
    "no_rope_layer_interval",
)
TYPES = dict.fromkeys(WHOLE_NUMBERS, int) | {
    "num_key_value_heads": int | None,
    "head_dim": int | None,
    "sliding_window": int | None,
    "max_window_layers": int,
    "rms_norm_eps": float,
    "hidden_act": str,
    "tie_word_embeddings": bool,
    "mlp_bias": bool,
    "use_sliding_window": bool,
    "layer_types": list[str] | None,
    "no_rope_layers": list[int] | None,
    "rope_parameters": dict[str, Any] | None,
    "rope_scaling": dict[str, Any] | None,
    "quantization_config": dict[str, Any] | None,
}
NULL_IS_DEFAULT = {
    "num_key_value_heads": ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM"),
    "head_dim": ("LlamaForCausalLM", "MistralForCausalLM"),
}
"""Keys for which some classes take null as the default that follows from other keys."""
MOST = {"num_hidden_layers": 4096}
LARGEST_NUMBER = 2**31 - 1
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
HEAD_DIM_STEP = 16
"""onnxruntime's GroupQueryAttention rotates only multiples of this."""
MOST_HEAD_DIM = 256
"""The limit of our own attention (export/runtime/kernels/attention.h)."""

# What transformers assumes if a config.json has no such key.
DEFAULT_ROPE_THETA = {"SmolLM3ForCausalLM": 2e6}
DEFAULT_HEAD_DIM = {"Qwen3ForCausalLM": 128}
DEFAULT_KV_HEADS = {"MistralForCausalLM": 8, "Qwen2ForCausalLM": 32, "Qwen3ForCausalLM": 32, "SmolLM3ForCausalLM": 4}
DEFAULT_WINDOW = {"SmolLM3ForCausalLM": None}
DEFAULT_MAX_WINDOW_LAYERS = 28
DEFAULT_NO_ROPE_LAYER_INTERVAL = 4


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """`rope_parameters` of `rope_type` llama3; `export.graph.rotary` applies them."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


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
    rope_scaling: Llama3Scaling | None
    tie_word_embeddings: bool
    attention_bias: bool
    """Whether q, k, v and o have biases."""
    sliding_windows: tuple[int, ...]
    """Each layer's window; 0 if it attends to everything."""
    rotates: tuple[bool, ...]
    """Whether each layer rotates its queries and keys by their positions."""

    @property
    def has_qkv_bias(self) -> bool:
        return self.attention_bias or self.architecture == "Qwen2ForCausalLM"

    @property
    def has_qk_norm(self) -> bool:
        return self.architecture == "Qwen3ForCausalLM"

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """The numbers of rows of q_proj, k_proj and v_proj."""
        kv_size = self.num_key_value_heads * self.head_dim
        return self.num_attention_heads * self.head_dim, kv_size, kv_size


def read_model_config(folder: Path) -> ModelConfig:
    """Read and check `folder/config.json`.

    Raises `InputError` if it is missing, has values that transformers would refuse, or names an architecture or a
    feature that the graph does not compute.
    """
    path = folder / "config.json"
    if not path.exists():
        raise InputError(f"{folder} is no model folder: {path} is missing; give the folder that holds one")
    values = read_object(path)
    architecture = _architecture(path, values)
    values = {name: value for name, value in values.items() if architecture in READ_BY.get(name, ARCHITECTURES)}
    _check_types(path, architecture, values)
    _refuse_unsupported(path, architecture, values)
    try:
        config = _from_values(architecture, values)
    except KeyError as error:
        raise InputError(f"{path} lacks {error}; get the file again") from error
    _check_shape(path, config)
    return config


def _architecture(path: Path, values: Mapping[str, Any]) -> str:
    """Return the class that transformers chooses by `model_type`; `architectures` must agree."""
    names, model_type = values.get("architectures"), values.get("model_type")
    check_type(names, list[str] | None, f"architectures in {path}")
    check_type(model_type, str, f"model_type in {path}")
    architecture = names[0] if names else MODEL_TYPES.get(str(model_type), "none")
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"unknown architecture {architecture} in {path}: expected one of {', '.join(ARCHITECTURES)}; choose "
            "such a model"
        )
    if MODEL_TYPES.get(str(model_type)) != architecture:
        raise InputError(f"model_type ({model_type}) in {path} is not that of {architecture}; get the file again")
    if architecture == "MistralForCausalLM" and "layer_types" in values:
        raise InputError(f"{path} describes Ministral (layer_types), which cannot be exported; choose another model")
    return architecture


def _check_types(path: Path, architecture: str, values: Mapping[str, Any]) -> None:
    for name, kind in (TYPES | ({"attention_bias": bool} if architecture in OPTIONAL_ATTENTION_BIAS else {})).items():
        if name in values:
            check_type(values[name], kind, f"{name} in {path}")
    if isinstance(values.get("rms_norm_eps"), int):
        raise InputError(
            f"rms_norm_eps in {path} ({values['rms_norm_eps']}) must have a decimal point, as transformers requires; "
            f"write {float(values['rms_norm_eps'])}"
        )
    for name in WHOLE_NUMBERS:
        value = values.get(name)
        if value is None and name in values and architecture not in NULL_IS_DEFAULT.get(name, ARCHITECTURES):
            raise InputError(f"{name} in {path} (null) must be a whole number; give one or remove the line")
        if value is not None and not 0 < value <= MOST.get(name, LARGEST_NUMBER):
            raise InputError(
                f"{name} in {path} ({value}) must be from 1 to {MOST.get(name, LARGEST_NUMBER)}; get the file again"
            )
    rope = _rope(values)
    theta = rope.get("rope_theta", values.get("rope_theta", 1.0))
    scaling = {name: values.get(name, rope.get(name, 1.0)) for name in SCALING} if _rope_type(rope) == "llama3" else {}
    for name, value in ({"rope_theta": theta} | scaling).items():
        if not fits(value, float) or not 0 < value < math.inf:
            raise InputError(f"{name} in {path} ({value!r}) must be a number above 0; give one or remove the line")
    if any(isinstance(value, dict) for value in rope.values()):
        raise InputError(
            f"rope_parameters in {path} differ between layers, which cannot be exported; choose another model"
        )


def _check_shape(path: Path, config: ModelConfig) -> None:
    """Check that attention's kernels support the shape."""
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    if heads % kv_heads:
        raise InputError(
            f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads}); {path} holds both"
        )
    if head_dim % HEAD_DIM_STEP or not 0 < head_dim <= MOST_HEAD_DIM:
        raise InputError(
            f"head_dim ({head_dim}) must be a multiple of {HEAD_DIM_STEP} up to {MOST_HEAD_DIM}, which attention's "
            f"kernels require; {path} describes a model that cannot be exported"
        )
    if config.architecture == "LlamaForCausalLM" and config.hidden_size % heads:
        raise InputError(
            f"hidden_size ({config.hidden_size}) must be a multiple of num_attention_heads ({heads}), as transformers "
            f"requires; {path} holds both"
        )


def _from_values(architecture: str, values: Mapping[str, Any]) -> ModelConfig:
    heads = values["num_attention_heads"]
    rope = _rope(values)
    return ModelConfig(
        architecture=architecture,
        model_type=values["model_type"],
        vocab_size=values["vocab_size"],
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        num_hidden_layers=values["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=values.get("num_key_value_heads", DEFAULT_KV_HEADS.get(architecture)) or heads,
        head_dim=values.get("head_dim", DEFAULT_HEAD_DIM.get(architecture)) or values["hidden_size"] // heads,
        max_position_embeddings=values["max_position_embeddings"],
        rms_norm_eps=values["rms_norm_eps"],
        rope_theta=rope.get("rope_theta", values.get("rope_theta", DEFAULT_ROPE_THETA.get(architecture, 10000.0))),
        rope_scaling=_llama3_scaling(rope, values) if _rope_type(rope) == "llama3" else None,
        tie_word_embeddings=values.get("tie_word_embeddings", architecture == "SmolLM3ForCausalLM"),
        attention_bias=architecture in OPTIONAL_ATTENTION_BIAS and values.get("attention_bias", False),
        sliding_windows=_sliding_windows(architecture, values),
        rotates=_rotates(architecture, values),
    )


def _rope(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the rotary settings: transformers 5 writes rope_parameters; 4 wrote rope_scaling, and rope_theta apart."""
    rope: Mapping[str, Any] = values.get("rope_scaling") or values.get("rope_parameters") or {}
    return rope


def _rope_type(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type", rope.get("type", "default")))


def _llama3_scaling(rope: Mapping[str, Any], values: Mapping[str, Any]) -> Llama3Scaling:
    trained = rope.get("original_max_position_embeddings", values["max_position_embeddings"])
    return Llama3Scaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_position_embeddings=values.get("original_max_position_embeddings", trained),
    )


def _rotates(architecture: str, values: Mapping[str, Any]) -> tuple[bool, ...]:
    layers: int = values["num_hidden_layers"]
    if architecture != "SmolLM3ForCausalLM":
        return (True,) * layers
    interval = values.get("no_rope_layer_interval", DEFAULT_NO_ROPE_LAYER_INTERVAL)
    given = values.get("no_rope_layers")
    if given is None:
        given = [(layer + 1) % interval for layer in range(layers)]
    return tuple(bool(value) for value in given[:layers])


def _sliding_windows(architecture: str, values: Mapping[str, Any]) -> tuple[int, ...]:
    layers: int = values["num_hidden_layers"]
    window: int = values.get("sliding_window", DEFAULT_WINDOW.get(architecture, 4096)) or 0
    if architecture == "MistralForCausalLM":
        return (window,) * layers
    if architecture not in LAYER_TYPES:
        return (0,) * layers
    slides = window if values.get("use_sliding_window", False) else 0
    types = values.get("layer_types")
    if types is not None:
        return tuple(window if kind == SLIDING else 0 for kind in types[:layers])
    if architecture == "SmolLM3ForCausalLM":
        return tuple(0 if rotates else slides for rotates in _rotates(architecture, values))
    first = values.get("max_window_layers", DEFAULT_MAX_WINDOW_LAYERS)
    return tuple(slides if layer >= first else 0 for layer in range(layers))


def _refuse_unsupported(path: Path, architecture: str, values: Mapping[str, Any]) -> None:
    rope, layers = _rope(values), values.get("num_hidden_layers", 0)
    types = values.get("layer_types") or []
    window = values.get("sliding_window", DEFAULT_WINDOW.get(architecture, 4096))
    # Qwen drops a window that is not in use; its layers then cannot slide
    has_window = bool(window) and (architecture == "SmolLM3ForCausalLM" or values.get("use_sliding_window", False))
    known_types = {FULL, SLIDING} if has_window else {FULL}
    one_type = architecture not in LAYER_TYPES and len(set(types)) <= 1
    for name, found, supported in (
        ("hidden_act", values.get("hidden_act", "silu"), ("silu", "swish")),
        ("rope_type", _rope_type(rope), ("default", "llama3")),
        ("partial_rotary_factor", _partial_rotary_factor(rope, values), (1.0,)),
        ("mlp_bias", values.get("mlp_bias", False), (False,)),
        ("is_causal", values.get("is_causal", True), (True,)),
        ("attention_bias", values.get("attention_bias", False), _attention_biases(architecture)),
        ("quantization_config", (values.get("quantization_config") or {}).get("quant_method", "none"), ("none",)),
        *(("each of layer_types", kind, tuple(sorted(known_types))) for kind in types if not one_type),
    ):
        if found not in supported:
            raise InputError(
                f"{name} ({found}) must be {' or '.join(map(str, supported))}; "
                f"{path} describes a model that cannot be exported"
            )
    for name in ("layer_types", "no_rope_layers"):
        given = values.get(name)
        if given is not None and (len(given) < layers or (name == "layer_types" and len(given) > layers)):
            raise InputError(f"{name} ({len(given)} entries) must name each of the {layers} layers; {path} holds it")


def _attention_biases(architecture: str) -> tuple[bool | None, ...]:
    return (False, True) if architecture in OPTIONAL_ATTENTION_BIAS else (False, None)


def _partial_rotary_factor(rope: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    given = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    return 1.0 if given is None else given
