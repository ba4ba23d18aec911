"""Makes random models in DeepSeek's shapes, with few layers, to measure the cost of latent attention.

Feed-forward layers are dense, with the width that a token activates in the mixture, so that a layer computes as much as
there; the head is small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    PreTrainedModel,
)

DENSE = {"n_routed_experts": 1, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 1, "vocab_size": 1024}
"""Settings of models without experts (`first_k_dense_replace`)."""
DEEPSEEK_LATENTS = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
"""The same in V2, V2-Lite and V3."""
LONGEST = 65536


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A shape, with the number of layers to measure."""

    name: str
    layers: int
    make: Callable[[int], PreTrainedModel]


def v2_lite(layers: int) -> PreTrainedModel:
    """DeepSeek-V2-Lite (its config.json): no low rank for queries; 6 + 2 experts of 1,408 act for a token."""
    return DeepseekV2ForCausalLM(
        DeepseekV2Config(
            **DENSE,
            **DEEPSEEK_LATENTS,
            num_hidden_layers=layers,
            first_k_dense_replace=layers,
            hidden_size=2048,
            intermediate_size=8 * 1408,
            num_attention_heads=16,
            num_key_value_heads=16,
            q_lora_rank=None,
            max_position_embeddings=LONGEST,
        )
    )


def v3(layers: int) -> PreTrainedModel:
    """DeepSeek-V3 (its config.json): 8 + 1 experts of 2,048 act for a token."""
    return _v3(layers, hidden_size=7168, intermediate_size=9 * 2048, heads=128, q_lora_rank=1536, **DEEPSEEK_LATENTS)


def nano(layers: int) -> PreTrainedModel:
    """The built-in teacher: 4 + 1 experts of 96 act for a token."""
    latents = {"kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 32}
    return _v3(layers, hidden_size=192, intermediate_size=5 * 96, heads=6, q_lora_rank=96, **latents)


def _v3(layers: int, *, heads: int, **shape: int) -> PreTrainedModel:
    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **DENSE,
            **shape,
            num_hidden_layers=layers,
            first_k_dense_replace=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=LONGEST,
        )
    )


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(name="nano", layers=4, make=nano),
        Shape(name="V2-Lite", layers=2, make=v2_lite),
        Shape(name="V3", layers=1, make=v3),
    )
}
