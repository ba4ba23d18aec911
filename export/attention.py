"""Attention as nodes, over a cache of floats or of int8.

    floats   qkv ─ GroupQueryAttention(past) ─ attended, present

    int8     a few new tokens   qkv ─ AttentionOverCodes(past codes) ─ attended, present codes
             a longer prompt    past codes ─ × steps ─ past
                                qkv ─ GroupQueryAttention(past) ─ attended, present
                                present's new positions ─ ÷ steps ─ TensorScatter ─ present codes

GroupQueryAttention rotates queries and keys, and writes into the past it was given where past and present are bound to one
buffer, as TensorScatter does. Over codes it is the faster one for a single token, and takes four times as long for a
hundred. So a prompt is read over floats, of which one layer has them at a time. Its tokens see each other exactly then,
and in either branch see what came before them as the cache holds it.

AttentionOverCodes is our own operator (`export.kernels`), and at the same time a function of the graph: a session that
does not know the operator runs the function's body, which is GroupQueryAttention over codes.
Source: onnxruntime's GroupQueryAttention; ONNX' TensorScatter.

Shapes: B batch, T new tokens, S attended tokens, P positions, D hidden, H query heads, G kv heads, A head dim, R rotated pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.model_config import ModelConfig
from export.nodes import MICROSOFT, Floats, Nodes
from export.rotary import inverse_frequencies

OURS = "reasoning.edge"
"""The domain of our own operators."""
OVER_CODES = "AttentionOverCodes"
ATTENTION_INPUTS = 9
"""Of GroupQueryAttention up to the rotary table, which OVER_CODES has too; the steps of keys and values follow there."""
K_SCALE = 12
"""Place of GroupQueryAttention's k_scale among its inputs; v_scale follows."""
FEW_TOKENS = 16
"""New tokens for which attention over codes takes no longer than making floats of them."""
CODES = {"smallest": -128, "largest": 127}
"""Where GroupQueryAttention clips."""
POSITION_AXIS = 2
"""Of a cache, [B, G, S, A]."""


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Names of what every layer's attention is told of positions."""

    seqlens_k_B: str
    total: str
    cos_PR: str
    sin_PR: str


@dataclass(frozen=True, kw_only=True)
class Int8Cache:
    """A cache of codes, and names of what decides how it is read."""

    steps: Mapping[str, Floats]
    """For each layer's `N.key` and `N.value` a step of every channel, [G·A]."""
    past_1: str
    """How many positions it holds before the new ones."""
    is_prompt: str
    """Whether one row has more than a few new tokens."""


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """Names and numbers of one layer's attention."""

    prefix: str
    query: str
    """[B, T, (H + 2G)·A] where key and value are empty, else [B, T, H·A]."""
    key: str
    value: str
    past: list[str]
    present: list[str]
    rotates: bool
    local_window_size: int


def attention(
    graph: Nodes, config: ModelConfig, layer: int, normed_BTD: str, positions: Positions, cache: Int8Cache | None
) -> str:
    """A layer's update of the stream, [B, T, D]; without an int8 cache over one of floats."""
    prefix = f"model.layers.{layer}.self_attn"
    qkv = graph.linear(f"{prefix}.qkv_proj.weight", normed_BTD)
    query, key, value = _split_and_norm(graph, config, prefix, qkv) if config.has_qk_norm else (qkv, "", "")
    names = _Layer(
        prefix=prefix,
        query=query,
        key=key,
        value=value,
        past=[f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"],
        present=[f"present.{layer}.key", f"present.{layer}.value"],
        rotates=config.rotates[layer],
        local_window_size=config.sliding_windows[layer] or -1,
    )
    attended_BTD = f"{prefix}.attended"
    if cache is None:
        _group_query_attention(graph, config, names, positions, [attended_BTD, *names.present])
    else:
        steps = [cache.steps[f"{layer}.key"], cache.steps[f"{layer}.value"]]
        graph.either(
            cache.is_prompt,
            lambda outputs: _over_floats(graph, config, names, positions, cache.past_1, steps, outputs),
            lambda outputs: _over_codes(graph, config, names, positions, steps, outputs),
            outputs={attended_BTD: TensorProto.FLOAT} | dict.fromkeys(names.present, TensorProto.INT8),
        )
    return graph.linear(f"{prefix}.o_proj.weight", attended_BTD)


def attended_positions(graph: Nodes, config: ModelConfig) -> Positions:
    """What is the same in every layer; onnxruntime computes the rotary table once, when a session starts."""
    one = graph.constant("one", np.array([1], dtype=np.int64))
    lengths_B = graph.node("ReduceSum", ["attention_mask", one], keepdims=0)
    seqlens_k_B = graph.node("Cast", [graph.node("Sub", [lengths_B, one])], to=TensorProto.INT32)
    mask_shape = graph.node("Shape", ["attention_mask"])
    total = graph.node("Gather", [mask_shape, graph.constant("axis", np.array(1, dtype=np.int64))], axis=0)
    total = graph.node("Cast", [total], to=TensorProto.INT32)

    inv_freq = graph.constant("rotary.inv_freq", inverse_frequencies(config)[None])
    bounds = [
        graph.constant(f"rotary.{name}", np.array(value, dtype=np.float32))
        for name, value in (("start", 0), ("limit", config.max_position_embeddings), ("step", 1))
    ]
    positions_P1 = graph.node("Unsqueeze", [graph.node("Range", bounds), one])
    angles_PR = graph.node("Mul", [positions_P1, inv_freq])
    return Positions(
        seqlens_k_B=seqlens_k_B,
        total=total,
        cos_PR=graph.node("Cos", [angles_PR]),
        sin_PR=graph.node("Sin", [angles_PR]),
    )


def int8_cache(graph: Nodes, steps: Mapping[str, Floats]) -> Int8Cache:
    """A cache of codes with these steps."""
    zero, one = (graph.constant(name, np.array([i], dtype=np.int64)) for i, name in enumerate(("zero", "one")))
    few_tokens = graph.constant("cache.few_tokens", np.array([FEW_TOKENS], dtype=np.int64))
    ids_shape, mask_shape = (graph.node("Shape", [name]) for name in ("input_ids", "attention_mask"))
    rows_1, new_1 = (graph.node("Gather", [ids_shape, axis], axis=0) for axis in (zero, one))
    attended_1 = graph.node("Gather", [mask_shape, one], axis=0)
    is_one_row = graph.node("Equal", [rows_1, one])
    is_longer = graph.node("Greater", [new_1, few_tokens])
    return Int8Cache(
        steps=steps,
        past_1=graph.node("Sub", [attended_1, new_1]),
        is_prompt=graph.node("And", [is_one_row, is_longer]),
    )


def over_codes_function(opset: int) -> onnx.FunctionProto:
    """What AttentionOverCodes is where onnxruntime has no operator of this name."""
    inputs = ["query", "key", "value", "past_key", "past_value", "seqlens_k", "total", "cos", "sin"]
    steps = ["key_steps", "value_steps"]
    outputs = ["attended", "present_key", "present_value"]
    attributes = ["num_heads", "kv_num_heads", "do_rotary", "scale", "local_window_size"]
    node = helper.make_node(
        "GroupQueryAttention",
        [*inputs, *[""] * (K_SCALE - ATTENTION_INPUTS), *steps],
        outputs,
        domain=MICROSOFT,
        kv_cache_bit_width=8,
        k_quant_type="PER_CHANNEL",
        v_quant_type="PER_CHANNEL",
    )
    for name in attributes:
        kind = onnx.AttributeProto.FLOAT if name == "scale" else onnx.AttributeProto.INT
        node.attribute.append(onnx.AttributeProto(name=name, ref_attr_name=name, type=kind))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_function(OURS, OVER_CODES, [*inputs, *steps], outputs, [node], opsets, attributes)


def _over_codes(
    graph: Nodes, config: ModelConfig, names: _Layer, positions: Positions, steps: list[Floats], outputs: list[str]
) -> None:
    scales = [graph.constant(f"{past}.steps", step) for past, step in zip(names.past, steps, strict=True)]
    inputs = _attention_inputs(names, positions)
    inputs += [""] * (ATTENTION_INPUTS - len(inputs)) + scales
    graph.node(OVER_CODES, inputs, outputs=outputs, domain=OURS, **_attention_attributes(config, names))


def _over_floats(
    graph: Nodes,
    config: ModelConfig,
    names: _Layer,
    positions: Positions,
    past_1: str,
    steps: list[Floats],
    outputs: list[str],
) -> None:
    attended_BTD, *present = outputs
    shape = (1, config.num_key_value_heads, 1, config.head_dim)
    zero, end, axis = (
        graph.constant(name, np.array([value], dtype=np.int64))
        for name, value in (("zero", 0), ("end", np.iinfo(np.int64).max), ("position_axis", POSITION_AXIS))
    )
    bounds = [graph.constant(f"codes.{name}", np.array(code, dtype=np.float32)) for name, code in CODES.items()]
    floats = []
    for past, step in zip(names.past, steps, strict=True):
        codes_BGSA = graph.node("Slice", [past, zero, past_1, axis])
        step_G1A = graph.constant(f"{past}.step", step.reshape(shape))
        floats.append(graph.node("Mul", [graph.node("Cast", [codes_BGSA], to=TensorProto.FLOAT), step_G1A]))
    over_floats = [f"{name}.floats" for name in present]
    _group_query_attention(graph, config, replace(names, past=floats), positions, [attended_BTD, *over_floats])
    for name, past, codes, step in zip(over_floats, names.past, present, steps, strict=True):
        new_BGTA = graph.node("Slice", [name, past_1, end, axis])
        inverse = graph.constant(f"{past}.inverse_step", 1 / step.reshape(shape))
        rounded = graph.node("Round", [graph.node("Mul", [new_BGTA, inverse])])
        new_codes = graph.node("Cast", [graph.node("Clip", [rounded, *bounds])], to=TensorProto.INT8)
        graph.node("TensorScatter", [past, new_codes, past_1], outputs=[codes], axis=POSITION_AXIS)


def _group_query_attention(
    graph: Nodes, config: ModelConfig, names: _Layer, positions: Positions, outputs: list[str]
) -> None:
    inputs, attributes = _attention_inputs(names, positions), _attention_attributes(config, names)
    graph.node("GroupQueryAttention", inputs, outputs=outputs, domain=MICROSOFT, **attributes)


def _attention_inputs(names: _Layer, positions: Positions) -> list[str]:
    rotary_table = [positions.cos_PR, positions.sin_PR] if names.rotates else []
    return [names.query, names.key, names.value, *names.past, positions.seqlens_k_B, positions.total, *rotary_table]


def _attention_attributes(config: ModelConfig, names: _Layer) -> dict[str, Any]:
    return {
        "num_heads": config.num_attention_heads,
        "kv_num_heads": config.num_key_value_heads,
        "do_rotary": int(names.rotates),
        "scale": float(config.head_dim**-0.5),
        "local_window_size": names.local_window_size,
    }


def _split_and_norm(graph: Nodes, config: ModelConfig, prefix: str, qkv: str) -> tuple[str, str, str]:
    """Qwen3 norms each head of q and k; GroupQueryAttention on CPU ignores its inputs for that."""
    sizes = graph.constant(f"{prefix}.sizes", np.array(config.qkv_sizes, dtype=np.int64))
    names = [f"{prefix}.{letter}" for letter in "qkv"]
    graph.node("Split", [qkv, sizes], outputs=names, axis=-1)
    normed = []
    for name, size in zip(names[:2], config.qkv_sizes, strict=False):
        heads_shape = graph.constant(f"{name}.heads", np.array([0, 0, -1, config.head_dim], dtype=np.int64))
        flat_shape = graph.constant(f"{name}.flat", np.array([0, 0, size], dtype=np.int64))
        heads_BTHA = graph.node("Reshape", [name, heads_shape])
        heads_BTHA = graph.norm(f"{name}_norm.weight", heads_BTHA, config)
        normed.append(graph.node("Reshape", [heads_BTHA, flat_shape]))
    return normed[0], normed[1], names[2]
