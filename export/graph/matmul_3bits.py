"""MatMul3Bits as a function of the graph, which onnxruntime runs if it does not know our operator of this name.

    codes of 3 bits ─ widened ─ codes of 4 bits ─┐
    scales of fp16 ─ Cast ───────────────────────┤
    x, zero points, bias ────────────────────────┴─ MatMulNBits

Codes and scales depend on constants alone, so onnxruntime computes them once, when a session starts, and then runs as
with 4 bits. Our own operator multiplies the codes as they are in the file (`export/runtime/kernels/products.h`);
`export.quantization.codes.QuantizedWeight` draws their layout.

Source: onnxruntime's MatMulNBits.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from export.graph.nodes import INT8_ACTIVATIONS, MICROSOFT, OURS, THREE_BITS, Nodes
from export.quantization.codes import LOWS, THIRDS, THREE_BITS_BLOCK

INPUTS = ["x", "codes", "scales", "zero_points", "group_index", "bias"]
"""The inputs of MatMulNBits, except that scales are in fp16 as in the file."""
ATTRIBUTES = ["K", "N"]
LOW_BYTES = THREE_BITS_BLOCK // 4
"""Bytes of a block that hold two bits of each code; the others hold the third bits."""


def matmul_3bits(opset: int) -> onnx.FunctionProto:
    graph = Nodes({}, {})

    def shifted(name: str, bits: int) -> str:
        if not bits:
            return name
        direction = "LEFT" if bits > 0 else "RIGHT"
        return graph.node("BitShift", [name, graph.value(abs(bits), np.uint8)], direction=direction)

    sizes = graph.node("Constant", [], value_ints=[LOW_BYTES, LOW_BYTES // 2])
    graph.node("Split", ["codes", sizes], outputs=["low", "high"], axis=-1)
    lows = graph.node("Concat", [shifted("low", bits) for bits in (1, -1)], axis=-1)
    thirds = graph.node("Concat", [shifted("high", bits) for bits in (3, 2, 1, 0)], axis=-1)
    lows = graph.node("BitwiseAnd", [lows, graph.value(LOWS, np.uint8)])
    thirds = graph.node("BitwiseAnd", [thirds, graph.value(THIRDS, np.uint8)])
    codes = graph.node("BitwiseOr", [lows, thirds])
    scales = graph.node("Cast", ["scales"], to=onnx.TensorProto.FLOAT)
    graph.node(
        "MatMulNBits",
        ["x", codes, scales, *INPUTS[3:]],
        outputs=["y"],
        domain=MICROSOFT,
        bits=4,
        block_size=THREE_BITS_BLOCK,
        accuracy_level=INT8_ACTIVATIONS,
    )
    for name in ATTRIBUTES:
        graph.refer(name, name, onnx.AttributeProto.INT)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_function(OURS, THREE_BITS, INPUTS, ["y"], graph.nodes, opsets, ATTRIBUTES)
