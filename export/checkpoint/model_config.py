"""Reads from `config.json`, as transformers does, the facts of a dense decoder that graph and quantizer need.

Invariant: a `ModelConfig` describes a model that the graph computes exactly; a feature that it cannot compute is
refused here by name, before any work starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from export.checkpoint.decoder_families import FAMILIES, OTHER_NAMES, Bias, DecoderFamily
from export.checkpoint.rope import ROPE_TYPES, Rope, read_ropes, rope_types
from toolkit.errors import InputError
from toolkit.field_types import check_type, fits
from toolkit.records import read_object

SLIDING, FULL = "sliding_attention", "full_attention"
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu_squared",
    "xielu": "xielu",
}
"""transformers' names of what an MLP's gate may pass through, and ours."""
MULTIPLIERS = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")
MOST = {"num_hidden_layers": 4096}
LARGEST_NUMBER = 2**31 - 1
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
OPTIONAL_SIZES = ("num_key_value_heads", "head_dim", "sliding_window", "no_rope_layer_interval")
HEAD_DIM_STEP = 16
"""onnxruntime's GroupQueryAttention rotates only heads whose size is a multiple of this."""
OTHER_EXPORTER = "--exporter optimum"
"""The option that may export what is refused here (`export.foreign`)."""
MOST_HEAD_DIM = 256
"""The limit of our own attention (export/runtime/kernels/attention.h)."""


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
    """What norms add to the mean square, or to the variance, whatever its key is."""
    tie_word_embeddings: bool
    qkv_bias: bool = False
    output_bias: bool = False
    """Whether o_proj has a bias."""
    mlp_bias: bool = False
    sliding_windows: tuple[int, ...]
    """Each layer's window; 0 if it attends to everything."""
    ropes: tuple[Rope | None, ...]
    """How each layer rotates its queries and keys by their positions; None if it does not."""
    activation: str = "silu"
    """What an MLP's gate passes through: one of `ACTIVATIONS`' values."""
    attention_multiplier: float
    """What the products of queries and keys are multiplied by."""
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    """What attention and MLP are multiplied by before they are added to the residual stream."""
    logits_scaling: float = 1.0
    """What logits are divided by."""

    @property
    def family(self) -> DecoderFamily:
        return FAMILIES[self.architecture]

    @property
    def padded_head_dim(self) -> int:
        """The channels of a head in the graph: zeros fill up what the kernels require (`export.checkpoint.heads`)."""
        added = max((2 * (len(rope.turns) - len(rope.inv_freq)) for rope in self.ropes if rope), default=0)
        return -(-(self.head_dim + added) // HEAD_DIM_STEP) * HEAD_DIM_STEP

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """The numbers of rows of q_proj, k_proj and v_proj in the graph."""
        return self._qkv_sizes(self.padded_head_dim)

    @property
    def stored_qkv_sizes(self) -> tuple[int, int, int]:
        """The numbers of rows of q_proj, k_proj and v_proj in the checkpoint."""
        return self._qkv_sizes(self.head_dim)

    def _qkv_sizes(self, head_dim: int) -> tuple[int, int, int]:
        kv_size = self.num_key_value_heads * head_dim
        return self.num_attention_heads * head_dim, kv_size, kv_size

    @property
    def qk_norm_eps(self) -> float:
        """What the norms of queries and keys in the graph add to their mean squares, which zeros make smaller."""
        return self.rms_norm_eps * self.head_dim / self.padded_head_dim


def read_model_config(folder: Path) -> ModelConfig:
    """Read and check `folder/config.json`.

    Raises `InputError` if it is missing, has values that transformers refuses, or names an architecture or a feature
    that the graph does not compute.
    """
    path = folder / "config.json"
    if not path.exists():
        raise InputError(f"{folder} is no model folder: {path} is missing; give the folder that holds one")
    values = read_object(path)
    architecture = _architecture(path, values)
    _refuse_quantized(path, values)
    _check_sizes(path, values, FAMILIES[architecture].norm_eps)
    model = _built_by_transformers(path)
    _refuse_unsupported(path, architecture, model.config)
    config = _from_transformers(architecture, model)
    _check_shape(path, config)
    return config


def _architecture(path: Path, values: Mapping[str, Any]) -> str:
    """Return the class that transformers chooses by `model_type`; `architectures` must agree."""
    names, model_type = values.get("architectures"), values.get("model_type")
    check_type(names, list[str] | None, f"architectures in {path}")
    check_type(model_type, str, f"model_type in {path}")
    by_type = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(model_type), "none")
    architecture = OTHER_NAMES.get(str(names[0]), str(names[0])) if names else by_type
    if architecture not in FAMILIES:
        raise InputError(
            f"unknown architecture {architecture} in {path}: expected one of {', '.join(FAMILIES)}; "
            f"choose such a model, or try {OTHER_EXPORTER}"
        )
    if by_type != architecture:
        raise InputError(f"model_type ({model_type}) in {path} is not that of {architecture}; get the file again")
    if architecture == "MistralForCausalLM" and "layer_types" in values:
        raise InputError(f"{path} describes Ministral (layer_types), which cannot be exported; choose another model")
    return architecture


def _refuse_quantized(path: Path, values: Mapping[str, Any]) -> None:
    quantization = values.get("quantization_config")
    check_type(quantization, dict[str, Any] | None, f"quantization_config in {path}")
    method = (quantization or {}).get("quant_method", "none")
    if method != "none":
        raise InputError(
            f"quantization_config ({method}) must be none; {path} describes a model that cannot be exported"
        )


def _built_by_transformers(path: Path) -> Any:
    """Return transformers' model, without weights."""
    logging.set_verbosity_error()
    try:
        theirs: PreTrainedConfig = AutoConfig.from_pretrained(path.parent, local_files_only=True)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(theirs)
    except Exception as error:  # each check of transformers raises its own
        why = " ".join(str(error).split())
        raise InputError(
            f"transformers cannot build the model of {path}: {type(error).__name__}: {why}; get the file again"
        ) from error


def _check_sizes(path: Path, values: Mapping[str, Any], norm_eps: str) -> None:
    """Check that a file was written whole, and that no number makes transformers take all memory."""
    for name in (*SIZES, norm_eps):
        if name not in values:
            raise InputError(f"{path} lacks '{name}'; get the file again")
    for name in (*SIZES, *OPTIONAL_SIZES):
        value = values.get(name)
        if value is not None and fits(value, int) and not 0 < value <= MOST.get(name, LARGEST_NUMBER):
            raise InputError(
                f"{name} in {path} ({value}) must be from 1 to {MOST.get(name, LARGEST_NUMBER)}; get the file again"
            )
    layers, given = values["num_hidden_layers"], values.get("no_rope_layers")
    if isinstance(given, list) and fits(layers, int) and len(given) < layers:
        raise InputError(
            f"no_rope_layers ({len(given)} entries) must name each of the {layers} layers; {path} holds it"
        )


def _refuse_unsupported(path: Path, architecture: str, theirs: Any) -> None:
    family, types = FAMILIES[architecture], set(_layer_types(architecture, theirs))
    window = getattr(theirs, "sliding_window", None)
    blocks = getattr(theirs, "layers_block_type", [])
    for name, found, supported in (
        (family.activation, getattr(theirs, family.activation), tuple(ACTIVATIONS)),
        ("is_causal", getattr(theirs, "is_causal", True), (True,)),
        ("use_bidirectional_attention", getattr(theirs, "use_bidirectional_attention", None), (None, False)),
        ("attn_logit_softcapping", getattr(theirs, "attn_logit_softcapping", None), (None,)),
        ("final_logit_softcapping", getattr(theirs, "final_logit_softcapping", None), (None,)),
        ("use_post_norm", getattr(theirs, "use_post_norm", True), (True,)),
        ("num_local_experts", getattr(theirs, "num_local_experts", 0) or 0, (0,)),
        *(("each of layers_block_type", kind, ("attention", FULL)) for kind in sorted(set(blocks))),
        *(("each of layer_types", kind, (FULL, SLIDING) if window else (FULL,)) for kind in sorted(types)),
        *(("rope_type", kind, ROPE_TYPES) for kind in sorted(rope_types(theirs))),
    ):
        if found not in supported:
            raise InputError(
                f"{name} ({found}) must be {' or '.join(map(str, supported))}; "
                f"{path} describes a model that cannot be exported so: try {OTHER_EXPORTER}"
            )


def _check_shape(path: Path, config: ModelConfig) -> None:
    """Check that attention's kernels support the shape."""
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    if heads % kv_heads:
        raise InputError(
            f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads}); {path} holds both"
        )
    if config.padded_head_dim > MOST_HEAD_DIM:
        raise InputError(
            f"head_dim ({head_dim}, in the graph {config.padded_head_dim}) must be at most {MOST_HEAD_DIM}, which "
            f"attention's kernels require; {path} describes a model that cannot be exported so: "
            f"try {OTHER_EXPORTER}"
        )


def _from_transformers(architecture: str, model: Any) -> ModelConfig:
    theirs, family = model.config, FAMILIES[architecture]
    heads, hidden = theirs.num_attention_heads, theirs.hidden_size
    head_dim = getattr(theirs, "head_dim", None) or hidden // heads
    types = _layer_types(architecture, theirs)
    window = getattr(theirs, "sliding_window", None) or 0
    slides = {"": [False], "each layer": [True], "by type": [kind == SLIDING for kind in types]}[family.windows]
    rotates = _rotates(architecture, theirs)
    rotary, layers = model.model.rotary_emb, theirs.num_hidden_layers
    ropes = read_ropes(theirs, type(rotary), types or [""] * layers) if rotary else (None,) * layers
    longest = [theirs.max_position_embeddings, *(rope.longest for rope in ropes if rope and rope.longest)]
    scale = float(getattr(theirs, family.score_size) if family.score_size else head_dim) ** -0.5
    factors = {name: float(getattr(theirs, name)) for name in MULTIPLIERS} if family.has_multipliers else {}
    if family.multiplies_logits:
        factors["logits_scaling"] **= -1
    if family.scales_embedding:
        factors = {"embedding_multiplier": float(hidden) ** 0.5}
    return ModelConfig(
        architecture=architecture,
        model_type=theirs.model_type,
        vocab_size=theirs.vocab_size,
        hidden_size=hidden,
        intermediate_size=getattr(theirs, family.intermediate_size),
        num_hidden_layers=theirs.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=theirs.num_key_value_heads,
        head_dim=head_dim,
        max_position_embeddings=min(longest),
        rms_norm_eps=getattr(theirs, family.norm_eps),
        tie_word_embeddings=theirs.tie_word_embeddings,
        qkv_bias=_has(family.qkv_bias, theirs),
        output_bias=_has(family.output_bias, theirs),
        mlp_bias=_has(family.mlp_bias, theirs),
        sliding_windows=tuple(window if slides[i % len(slides)] else 0 for i in range(theirs.num_hidden_layers)),
        ropes=tuple(rope if turns else None for rope, turns in zip(ropes, rotates, strict=True)),
        activation=ACTIVATIONS[getattr(theirs, family.activation)],
        **{"attention_multiplier": scale} | factors,
    )


def _has(bias: Bias, theirs: Any) -> bool:
    return bool(getattr(theirs, bias)) if isinstance(bias, str) else bias


def _layer_types(architecture: str, theirs: Any) -> list[str]:
    return list(theirs.layer_types) if FAMILIES[architecture].windows == "by type" else []


def _rotates(architecture: str, theirs: Any) -> list[bool]:
    layers = range(theirs.num_hidden_layers)
    if architecture == "SmolLM3ForCausalLM":
        return [bool(theirs.no_rope_layers[layer]) for layer in layers]
    if architecture == "Exaone4ForCausalLM" and theirs.sliding_window is not None:
        return [theirs.layer_types[layer] == SLIDING for layer in layers]
    return [True for _ in layers]
