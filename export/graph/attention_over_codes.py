"""AttentionOverCodes as a function of the graph, which onnxruntime runs if it does not know our operator of this name.

    a few new tokens   qkv ─ GroupQueryAttention(past codes) ─ attended, present codes
    a longer prompt    past codes ─ × steps ─ past
                       qkv ─ GroupQueryAttention(past) ─ attended, present
                       present's new positions ─ ÷ steps ─ TensorScatter ─ present codes

GroupQueryAttention rotates queries and keys. If past and present are bound to one buffer, it writes into the past, as
TensorScatter does. Over codes it is the faster branch for a single token, and takes four times as long for a hundred;
so a prompt is read over floats, one layer's at a time. Its tokens then attend to each other exactly, and in either
branch to earlier ones as the cache holds them. Our own operator reads codes in both cases
(`export/runtime/kernels/attention.h`). Source: onnxruntime's GroupQueryAttention; ONNX' TensorScatter.

Shapes: B batch, T new tokens, S attended tokens, G kv heads, A head dim.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.graph.nodes import MICROSOFT, OURS, Nodes

NAME = "AttentionOverCodes"
INPUTS = ["query", "key", "value", "past_key", "past_value", "seqlens_k", "total", "cos", "sin"]
"""The inputs of GroupQueryAttention; STEPS follow them."""
STEPS = ["key_steps", "value_steps"]
"""Each channel's step, [G·A]."""
OUTPUTS = {"attended": TensorProto.FLOAT, "present_key": TensorProto.INT8, "present_value": TensorProto.INT8}
ATTRIBUTES = dict.fromkeys(("num_heads", "kv_num_heads", "do_rotary", "local_window_size"), onnx.AttributeProto.INT)
ATTRIBUTES |= {"scale": onnx.AttributeProto.FLOAT}
K_SCALE = 12
"""The index of GroupQueryAttention's input k_scale; v_scale follows."""
FEW_TOKENS = 16
"""Up to so many new tokens, attention over codes takes no longer than converting the cache to floats."""
CODES = (-128, 127)
"""The range to which GroupQueryAttention clips."""
POSITION_AXIS = 2
"""The axis of S in a cache, [B, G, S, A]."""


def attention_over_codes(opset: int) -> onnx.FunctionProto:
    graph = Nodes({}, {})
    shape, one = graph.node("Shape", ["query"]), graph.value([1])
    rows_1, new_1 = (graph.node("Gather", [shape, graph.value([axis])], axis=0) for axis in (0, 1))
    total_1 = graph.node("Reshape", [graph.node("Cast", ["total"], to=TensorProto.INT64), one])
    is_one_row = graph.node("Equal", [rows_1, one])
    is_longer = graph.node("Greater", [new_1, graph.value([FEW_TOKENS])])
    past_1 = graph.node("Sub", [total_1, new_1])
    graph.either(
        graph.node("And", [is_one_row, is_longer]),
        lambda outputs: _over_floats(graph, past_1, outputs),
        lambda outputs: _over_codes(graph, outputs),
        outputs=OUTPUTS,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_function(OURS, NAME, [*INPUTS, *STEPS], list(OUTPUTS), graph.nodes, opsets, list(ATTRIBUTES))


def _over_codes(graph: Nodes, outputs: list[str]) -> None:
    inputs = [*INPUTS, *[""] * (K_SCALE - len(INPUTS)), *STEPS]
    channels = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
    _group_query_attention(graph, inputs, outputs, kv_cache_bit_width=8, **channels)


def _over_floats(graph: Nodes, past_1: str, outputs: list[str]) -> None:
    attended_BTD, *present = outputs
    zero, one, end, axis = (graph.value([value]) for value in (0, 1, np.iinfo(np.int64).max, POSITION_AXIS))
    smallest, largest = (graph.value(code, np.float32) for code in CODES)
    heads = graph.node("Constant", [])
    graph.refer("value_int", "kv_num_heads", onnx.AttributeProto.INT)
    heads_1 = graph.node("Reshape", [heads, one])
    shape_1G1A = graph.node("Concat", [one, heads_1, one, graph.value([-1])], axis=0)
    steps = [graph.node("Reshape", [step, shape_1G1A]) for step in STEPS]
    pasts = INPUTS[3:5]
    floats = []
    for past, step_1G1A in zip(pasts, steps, strict=True):
        codes_BGSA = graph.node("Slice", [past, zero, past_1, axis])
        floats.append(graph.node("Mul", [graph.node("Cast", [codes_BGSA], to=TensorProto.FLOAT), step_1G1A]))
    over_floats = [f"{name}.floats" for name in present]
    _group_query_attention(graph, [*INPUTS[:3], *floats, *INPUTS[5:]], [attended_BTD, *over_floats])
    for name, past, codes, step_1G1A in zip(over_floats, pasts, present, steps, strict=True):
        new_BGTA = graph.node("Slice", [name, past_1, end, axis])
        rounded = graph.node("Round", [graph.node("Div", [new_BGTA, step_1G1A])])
        new_codes = graph.node("Cast", [graph.node("Clip", [rounded, smallest, largest])], to=TensorProto.INT8)
        graph.node("TensorScatter", [past, new_codes, past_1], outputs=[codes], axis=POSITION_AXIS)


def _group_query_attention(graph: Nodes, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
    graph.node("GroupQueryAttention", inputs, outputs=outputs, domain=MICROSOFT, **attributes)
    for name, kind in ATTRIBUTES.items():
        graph.refer(name, name, kind)
