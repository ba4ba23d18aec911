"""How much latent attention saves: bytes of cache a token, and time to decode one, absorbed against expanded.

    python -m toolkit.model.benchmark [--rounds 5]

For each shape a random model of few layers decodes one token after another behind a cache that is filled at random,
once with transformers' own attention and once absorbed, on the same weights and the same kind of cache; the two take
turns, and the table shows medians. Feed-forward layers are dense with the width that a token activates in the mixture,
so that a layer computes what it would there. In fp32.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicCache

from toolkit.allocator import keep_freed_memory
from toolkit.model.cache import growing_cache
from toolkit.model.mla import absorb

CONTEXTS = (512, 2048, 8192)
STEPS = 4
"""Tokens that are timed together."""
DENSE = {"n_routed_experts": 1, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 1, "vocab_size": 1024}
"""No layer has experts (`first_k_dense_replace`), and a small head: the attention is what is compared."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model of that shape with `layers` layers."""

    name: str
    layers: int
    make: Callable[[int], PreTrainedModel]


def _v2_lite(layers: int) -> PreTrainedModel:
    """DeepSeek-V2-Lite (its config.json): no low rank for queries; 6 + 2 experts of 1,408 act for a token."""
    return DeepseekV2ForCausalLM(
        DeepseekV2Config(
            **DENSE,
            num_hidden_layers=layers,
            first_k_dense_replace=layers,
            hidden_size=2048,
            intermediate_size=8 * 1408,
            num_attention_heads=16,
            num_key_value_heads=16,
            q_lora_rank=None,
            kv_lora_rank=512,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            v_head_dim=128,
            max_position_embeddings=2 * CONTEXTS[-1],
        )
    )


def _v3(layers: int, **changes: int) -> PreTrainedModel:
    """DeepSeek-V3 (its config.json): 8 + 1 experts of 2,048 act for a token."""
    shape = {
        "hidden_size": 7168,
        "intermediate_size": 9 * 2048,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    }
    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **DENSE,
            **(shape | changes),
            num_hidden_layers=layers,
            first_k_dense_replace=layers,
            max_position_embeddings=2 * CONTEXTS[-1],
        )
    )


def _nano(layers: int) -> PreTrainedModel:
    """The built-in teacher: 4 + 1 experts of 96 act for a token."""
    return _v3(
        layers,
        hidden_size=192,
        intermediate_size=5 * 96,
        num_attention_heads=6,
        num_key_value_heads=6,
        q_lora_rank=96,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=32,
    )


SHAPES = (
    Shape(name="nano", layers=4, make=_nano),
    Shape(name="V2-Lite", layers=2, make=_v2_lite),
    Shape(name="V3", layers=1, make=_v3),
)


def filled_cache(model: PreTrainedModel, context: int) -> DynamicCache:
    """Random latents and rotated keys for `context` tokens of one sequence."""
    config, cache = model.config, growing_cache(model.config.num_hidden_layers)
    for layer in range(config.num_hidden_layers):
        cache.update(
            torch.randn(1, 1, context, config.kv_lora_rank), torch.randn(1, 1, context, config.qk_rope_head_dim), layer
        )
    return cache


@torch.inference_mode()
def decode_ms(model: PreTrainedModel, cache: DynamicCache, context: int) -> float:
    """Milliseconds a token, over `STEPS` tokens behind `context` cached ones."""
    begun = time.perf_counter()
    for step in range(STEPS):
        model(
            torch.tensor([[7]]),
            position_ids=torch.tensor([[context + step]]),
            past_key_values=cache,
            use_cache=True,
        )
    return (time.perf_counter() - begun) / STEPS * 1e3


def cached_values(model: PreTrainedModel) -> tuple[int, int]:
    """Values a token and layer: of latent attention, and of multi-head attention with the same heads."""
    config = model.config
    heads = config.num_attention_heads * (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim)
    return config.kv_lora_rank + config.qk_rope_head_dim, heads


def measure(shape: Shape, rounds: int) -> list[str]:
    """One row of the table for each context."""
    torch.manual_seed(0)
    expanded = shape.make(shape.layers).eval()
    absorbed = copy.deepcopy(expanded, {id(weight): weight for weight in expanded.parameters()})
    absorb(absorbed)
    latent, heads = cached_values(expanded)
    rows = []
    for context in CONTEXTS:
        times: dict[str, list[float]] = {"expanded": [], "absorbed": []}
        caches = {name: filled_cache(expanded, context) for name in times}
        for turn in range(1 + rounds):  # the first is not timed
            for name, model in (("expanded", expanded), ("absorbed", absorbed)):
                took = decode_ms(model, caches[name], context + turn * STEPS)
                if turn:
                    times[name].append(took)
        before, after = (statistics.median(times[name]) for name in ("expanded", "absorbed"))
        rows.append(
            f"| {shape.name}, {shape.layers} layers | {2 * latent:,} of {2 * heads:,} ({latent / heads:.1%}) "
            f"| {context:,} | {before:.1f} | {after:.1f} | {before / after:.1f} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="latent attention, absorbed against expanded")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    keep_freed_memory()
    print("| shape | bf16 bytes a token and layer | context | expanded, ms a token | absorbed | × |")
    print("|---|---:|---:|---:|---:|---:|")
    for shape in SHAPES:
        for row in measure(shape, options.rounds):
            print(row, flush=True)


if __name__ == "__main__":
    main()
