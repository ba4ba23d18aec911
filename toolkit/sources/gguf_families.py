"""What the architectures of GGUF files are called and how they are stored, beside transformers' classes.

Source: the GGUF specification and llama.cpp's converter of each architecture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toolkit.errors import InputError
from toolkit.sources.gguf_header import Facts

LLAMA_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""The parameters of a Llama's layer in both formats."""
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
GEMMA_LAYER = LLAMA_LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
PHI3_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors of LongRoPE's factors, which config.json holds as lists; they are read as if they were facts."""
GEMMA_LOCAL_THETA = 10_000.0
GEMMA_PATTERN = 6
"""Each sixth of Gemma 3's layers attends to everything; llama.cpp knows that, and no fact says it."""
GEMMA_27B_LAYERS = 62
"""The layers of the only size whose scores are not divided by the root of its head size."""


@dataclass(frozen=True, kw_only=True)
class GgufFamily:
    """An architecture of GGUF files."""

    architecture: str
    """The class of transformers."""
    model_type: str
    layer: Mapping[str, str] = field(default_factory=lambda: LLAMA_LAYER)
    biases: tuple[str, ...] = ()
    """The parameters of a layer that have biases."""
    permutes: bool = False
    """Whether rows of queries and keys are in the order of llama.cpp's rotation."""
    norms_hold_one_more: bool = False
    """Whether norms are stored as what they multiply by, where transformers adds one."""
    own_settings: Callable[[Facts, str], dict[str, Any]] = lambda facts, prefix: {}
    """Returns what config.json has besides a Llama's. Takes the facts and the prefix of their names."""
    own_facts: tuple[str, ...] = ()
    """The facts that `own_settings` reads, behind the prefix."""
    own_lists: tuple[str, ...] = ()
    """The tensors that `own_settings` reads as lists of numbers, if the file has them."""


def _gemma3(facts: Facts, prefix: str) -> dict[str, Any]:
    layers, head_dim = facts.count(f"{prefix}block_count"), facts.count(f"{prefix}attention.key_length")
    scaling: dict[str, Any] = {"rope_type": "default"}
    if facts.get(f"{prefix}rope.scaling.type", "none") == "linear":
        scaling = {"rope_type": "linear", "factor": facts.positive(f"{prefix}rope.scaling.factor")}
    elif facts.get(f"{prefix}rope.scaling.type", "none") != "none":
        raise InputError(f"{prefix}rope.scaling.type must be linear or none; take the model's safetensors instead")
    score_size = head_dim
    if layers == GEMMA_27B_LAYERS:
        score_size = facts.count(f"{prefix}embedding_length") // facts.count(f"{prefix}attention.head_count")
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": score_size,
        "sliding_window": facts.count(f"{prefix}attention.sliding_window"),
        "layer_types": [
            "full_attention" if (i + 1) % GEMMA_PATTERN == 0 else "sliding_attention" for i in range(layers)
        ],
        "rope_parameters": {
            "full_attention": scaling | {"rope_theta": facts.positive(f"{prefix}rope.freq_base")},
            "sliding_attention": {"rope_type": "default", "rope_theta": GEMMA_LOCAL_THETA},
        },
    }


def _granite(facts: Facts, prefix: str) -> dict[str, Any]:
    return {
        "attention_multiplier": facts.positive(f"{prefix}attention.scale"),
        "embedding_multiplier": facts.positive(f"{prefix}embedding_scale"),
        "residual_multiplier": facts.positive(f"{prefix}residual_scale"),
        "logits_scaling": facts.positive(f"{prefix}logit_scale"),
    }


def _phi3(facts: Facts, prefix: str) -> dict[str, Any]:
    head_dim = facts.count(f"{prefix}embedding_length") // facts.count(f"{prefix}attention.head_count")
    rotated = facts.count(f"{prefix}rope.dimension_count")
    if rotated % 2 or rotated > head_dim:
        raise InputError(
            f"{prefix}rope.dimension_count ({rotated}) must be even and at most the head's {head_dim}; "
            "get the file again"
        )
    share = rotated / head_dim
    if int(head_dim * share) < rotated:  # as transformers computes the number again
        share = math.nextafter(share, 1)
    padding, end = "tokenizer.ggml.padding_token_id", "tokenizer.ggml.eos_token_id"
    original = f"{prefix}rope.scaling.original_context_length"
    rope = {
        "rope_type": "default",
        "rope_theta": facts.positive(f"{prefix}rope.freq_base"),
        "partial_rotary_factor": share,
    }
    return {
        "pad_token_id": facts.token_id(padding if padding in facts else end),  # transformers has a default of 32,000
        "sliding_window": facts.get(f"{prefix}attention.sliding_window") or None,  # the converter writes 0 for none
        "original_max_position_embeddings": facts.count(original if original in facts else f"{prefix}context_length"),
        "rope_parameters": rope | _longrope(facts, f"{prefix}rope.scaling.attn_factor", rotated // 2),
    }


def _longrope(facts: Facts, length: str, pairs: int) -> dict[str, Any]:
    """Return what the factors of each pair add to the rotation; nothing if the file has none. `length`: the fact by
    which cosines and sines are multiplied."""
    found = [name for name in ROPE_FACTORS if name in facts]
    if not found:
        if facts.get(length, 1.0) != 1.0:
            raise InputError(f"{length} ({facts[length]}) must be 1 without {ROPE_FACTORS[0]}; get the file again")
        return {}
    long, short = (facts.numbers(name, pairs) for name in ROPE_FACTORS)
    return {
        "rope_type": "longrope",
        "long_factor": long,
        "short_factor": short,
        "attention_factor": shortest(facts.positive(length)),
    }


def shortest(value: float) -> float:
    """Return the shortest decimal of a number that was stored in float32."""
    return float(str(np.float32(value)))


GGUF_FAMILIES: Mapping[str, GgufFamily] = {
    "gemma3": GgufFamily(
        architecture="Gemma3ForCausalLM",
        model_type="gemma3_text",
        layer=GEMMA_LAYER | QK_NORMS,
        norms_hold_one_more=True,
        own_settings=_gemma3,
        own_facts=("attention.sliding_window", "rope.scaling.type", "rope.scaling.factor"),
    ),
    "granite": GgufFamily(
        architecture="GraniteForCausalLM",
        model_type="granite",
        permutes=True,
        own_settings=_granite,
        own_facts=("attention.scale", "embedding_scale", "residual_scale", "logit_scale"),
    ),
    "llama": GgufFamily(architecture="LlamaForCausalLM", model_type="llama", permutes=True),
    "phi3": GgufFamily(
        architecture="Phi3ForCausalLM",
        model_type="phi3",
        layer=PHI3_LAYER,
        own_settings=_phi3,
        own_facts=("attention.sliding_window", "rope.dimension_count", "rope.scaling.attn_factor"),
        own_lists=ROPE_FACTORS,
    ),
    "qwen2": GgufFamily(architecture="Qwen2ForCausalLM", model_type="qwen2", biases=("attn_q", "attn_k", "attn_v")),
    "qwen3": GgufFamily(architecture="Qwen3ForCausalLM", model_type="qwen3", layer=LLAMA_LAYER | QK_NORMS),
}
"""By `general.architecture`."""
