"""Writes attention over a cache of floats (GroupQueryAttention) or of int8 (`export.graph.attention_over_codes`).

Source: onnxruntime's GroupQueryAttention.

Shapes: B batch, T new tokens, S attended tokens, P positions, D hidden, H query heads, G kv heads, A head dim, R
rotated pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from export.checkpoint.model_config import ModelConfig
from export.checkpoint.rope import Rope
from export.graph.attention_over_codes import NAME as OVER_CODES
from export.graph.nodes import MICROSOFT, OURS, Nodes
from toolkit.generation.generate import Floats


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Names of the values by which every layer's attention knows positions."""

    seqlens_k_B: str
    total: str
    tables: Mapping[Rope, tuple[str, str]]
    """Each rope's cosines and sines, [P, R]."""


def attention(
    graph: Nodes,
    config: ModelConfig,
    layer: int,
    normed_BTD: str,
    positions: Positions,
    cache_scales: Mapping[str, Floats] | None,
) -> str:
    """Write a layer's attention; returns the name of its update of the residual stream, [B, T, D].

    `cache_scales`: each channel's step, [G·A], for each layer's `N.key` and `N.value`; None for a cache of floats.
    """
    prefix = f"model.layers.{layer}.self_attn"
    qkv = graph.linear(f"{prefix}.qkv_proj.weight", normed_BTD)
    query, key, value = _split_and_norm(graph, config, prefix, qkv) if config.family.qk_norm else (qkv, "", "")
    past, present = ([f"{name}.{layer}.{kind}" for kind in ("key", "value")] for name in ("past_key_values", "present"))
    rope = config.ropes[layer]
    rotary_table = positions.tables[rope] if rope else ("", "")
    inputs = [query, key, value, *past, positions.seqlens_k_B, positions.total, *rotary_table]
    if cache_scales:
        inputs += [graph.constant(f"{name}.steps", cache_scales[name.partition(".")[2]]) for name in past]
    attended_BTD = graph.node(
        OVER_CODES if cache_scales else "GroupQueryAttention",
        inputs,
        outputs=[f"{prefix}.attended", *present],
        domain=OURS if cache_scales else MICROSOFT,
        num_heads=config.num_attention_heads,
        kv_num_heads=config.num_key_value_heads,
        do_rotary=int(rope is not None),
        scale=config.attention_multiplier,
        local_window_size=config.sliding_windows[layer] or -1,
    )
    return graph.linear(f"{prefix}.o_proj.weight", attended_BTD)


def attended_positions(graph: Nodes, config: ModelConfig) -> Positions:
    """Write the values that all layers share; onnxruntime computes the rotary table once, when a session starts."""
    one = graph.constant("one", np.array([1], dtype=np.int64))
    lengths_B = graph.node("ReduceSum", ["attention_mask", one], keepdims=0)
    seqlens_k_B = graph.node("Cast", [graph.node("Sub", [lengths_B, one])], to=TensorProto.INT32)
    mask_shape = graph.node("Shape", ["attention_mask"])
    total = graph.node("Gather", [mask_shape, graph.constant("axis", np.array(1, dtype=np.int64))], axis=0)
    total = graph.node("Cast", [total], to=TensorProto.INT32)

    bounds = [
        graph.constant(f"rotary.{name}", np.array(value, dtype=np.float32))
        for name, value in (("start", 0), ("limit", config.max_position_embeddings), ("step", 1))
    ]
    positions_P1 = graph.node("Unsqueeze", [graph.node("Range", bounds), one])
    ropes = dict.fromkeys(rope for rope in config.ropes if rope)
    tables = {rope: _table(graph, rope, i, positions_P1) for i, rope in enumerate(ropes)}
    return Positions(seqlens_k_B=seqlens_k_B, total=total, tables=tables)


def _table(graph: Nodes, rope: Rope, index: int, positions_P1: str) -> tuple[str, str]:
    """Write one rope's cosines and sines."""
    name = "rotary.inv_freq" + (f".{index}" if index else "")
    turns_1R = graph.constant(name, np.array([rope.turns], dtype=np.float32))
    angles_PR = graph.node("Mul", [positions_P1, turns_1R])
    cos_PR, sin_PR = (graph.times(graph.node(kind, [angles_PR]), rope.length) for kind in ("Cos", "Sin"))
    return cos_PR, sin_PR


def _split_and_norm(graph: Nodes, config: ModelConfig, prefix: str, qkv: str) -> tuple[str, str, str]:
    """Norm q and k, each head or all together; GroupQueryAttention on CPU ignores its own inputs for that."""
    sizes = graph.constant(f"{prefix}.sizes", np.array(config.qkv_sizes, dtype=np.int64))
    names = [f"{prefix}.{letter}" for letter in "qkv"]
    graph.node("Split", [qkv, sizes], outputs=names, axis=-1)
    normed = []
    for name, size in zip(names[:2], config.qkv_sizes, strict=False):
        if config.family.qk_norm == "all heads":
            normed.append(graph.norm(f"{name}_norm.weight", name, config.qk_norm_eps))
            continue
        heads_shape = graph.constant(f"{name}.heads", np.array([0, 0, -1, config.padded_head_dim], dtype=np.int64))
        flat_shape = graph.constant(f"{name}.flat", np.array([0, 0, size], dtype=np.int64))
        heads_BTHA = graph.node("Reshape", [name, heads_shape])
        heads_BTHA = graph.norm(f"{name}_norm.weight", heads_BTHA, config.qk_norm_eps)
        normed.append(graph.node("Reshape", [heads_BTHA, flat_shape]))
    return normed[0], normed[1], names[2]
