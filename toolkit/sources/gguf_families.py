"""What the architectures of GGUF files are called and how they are stored, beside transformers' classes.

Source: the GGUF specification and llama.cpp's converter of each architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
    "qwen2": GgufFamily(architecture="Qwen2ForCausalLM", model_type="qwen2", biases=("attn_q", "attn_k", "attn_v")),
    "qwen3": GgufFamily(architecture="Qwen3ForCausalLM", model_type="qwen3", layer=LLAMA_LAYER | QK_NORMS),
}
"""By `general.architecture`."""
