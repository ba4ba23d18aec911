"""Gives optimum's graph the inputs and outputs of ours, so that the runner needs no second way.

    optimum's   past [B, G, P, A] grows by a copy, rows are padded on the left, position_ids are an input, all logits
    ours        past and present are one buffer [B, G, room, A], rows begin at 0, positions follow from the mask, and
                `logits_from` says which logits

A step writes new keys and values into the buffer where their row ends. Attention then reads the rows moved to the
right, so that all end in one column: there its mask, its windows and its biases by distance mean what transformers
means.

    buffer      k0 k1 k2 ·  ·         attended    ·  k0 k1 k2        mask   0 1 1 1
                k0 k1 k2 k3 ·                     k0 k1 k2 k3               1 1 1 1

Shapes: B rows, T new tokens, S attended tokens, P past ones, G kv heads, A head dim, X all rows of
a buffer.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from export.checkpoint.source import DecoderSizes
from export.foreign.foreign_graph import ForeignGraph, UnfitGraph, attributes, names_read, rename
from export.graph.model_graph import wanted_rows
from export.graph.nodes import Nodes
from export.runtime.session import ROTARY_LIMIT

KINDS = ("key", "value")
TOKEN_INPUTS = {"input_ids", "attention_mask", "position_ids"}
BY_DISTANCE = ("bloom", "mpt")
"""Models that know only how far apart two tokens are, which is the same in any column."""
ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Tanh", "Cast", "Identity")
"""What may stand between the head's product and the logits without mixing tokens."""
ALL_LOGITS = "ours.logits"


def cache_sizes(foreign: ForeignGraph) -> tuple[int, int, int]:
    """Return num_hidden_layers, num_key_value_heads and head_dim of a graph's cache; raises `UnfitGraph` if it is not
    keys and values of one shape."""
    pasts = {value.name: value for value in foreign.model.graph.input if value.name.startswith("past_key_values")}
    layers = len(pasts) // 2
    wanted = [f"past_key_values.{layer}.{kind}" for layer in range(layers) for kind in KINDS]
    shapes = {_heads_and_size(value) for value in pasts.values()}
    if not layers or sorted(pasts) != sorted(wanted) or len(shapes) != 1 or (0, 0) in shapes:
        raise UnfitGraph(
            f"its cache must be a key and a value of one shape for each layer, in float32, but is {_shown(pasts)}"
        )
    [(heads, head_dim)] = shapes
    return layers, heads, head_dim


def _heads_and_size(value: onnx.ValueInfoProto) -> tuple[int, int]:
    """Return num_key_value_heads and head_dim of keys or values; zeros if they are no floats [B, G, P, A]."""
    kind = value.type.tensor_type
    sizes = [axis.dim_value for axis in kind.shape.dim]
    is_cache = kind.elem_type == TensorProto.FLOAT and len(sizes) == 4 and sizes[1] and sizes[3]
    return (sizes[1], sizes[3]) if is_cache else (0, 0)


def _shown(pasts: dict[str, onnx.ValueInfoProto]) -> str:
    texts = [
        f"{name} {[axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim]}"
        for name, value in list(pasts.items())[:2]
    ]
    return ", ".join(texts) or "none"


class CacheInterface:
    """Adds to a graph in the making what stands between our inputs and optimum's nodes."""

    def __init__(self, graph: Nodes, foreign: ForeignGraph, sizes: DecoderSizes) -> None:
        """Write what all layers share; raises `UnfitGraph` if the graph's inputs or its cache are of another kind."""
        self._graph, self._foreign, self._sizes = graph, foreign, sizes
        self._pasts = {
            f"past_key_values.{n}.{kind}": f"present.{n}.{kind}"
            for n in range(sizes.num_hidden_layers)
            for kind in KINDS
        }
        self._head = self._found_head()
        self._writers = self._found_writers()
        self._renamed = self._write_positions()
        graph.constant(ROTARY_LIMIT, np.array(sizes.max_position_embeddings, dtype=np.float32))

    def adapted(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return a node as it stands in our graph; None if others were written in its place."""
        output = node.output[0]
        if output in self._writers:
            self._write_present(node)
            return None
        if output in self._pasts.values():  # it passes on what was appended, which is written already
            self._renamed[output] = self._renamed[self._foreign.origin(output)]
            return None
        read = sorted(names_read(node) & self._pasts.keys())
        if read and node.op_type == "Shape":
            self._write_past_shape(node)
            return None
        if read:
            raise UnfitGraph(f"its graph reads {read[0]} by {node.op_type}, but must only append to it")
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        rename(copy, self._renamed)
        if output == self._head:
            copy.input[0] = wanted_rows(self._graph, copy.input[0])
        elif output == "logits" and not self._head:
            copy.output[0] = ALL_LOGITS
        return copy

    def finish(self) -> None:
        """Write what comes after optimum's nodes."""
        if not self._head:
            wanted_rows(self._graph, ALL_LOGITS, output="logits")

    def _found_head(self) -> str:
        """Return what the head's product computes, if only elementwise nodes follow it; else nothing."""
        name = self._foreign.origin("logits")
        while (node := self._foreign.producer(name)) is not None:
            if node.op_type == "MatMul" and self._foreign.matrix(node.input[1]):
                return name
            moving = [each for each in node.input if not self._foreign.is_constant(each)]
            if node.op_type not in ELEMENTWISE or len(moving) != 1:
                return ""
            [name] = moving
        return ""

    def _found_writers(self) -> dict[str, str]:
        """Return the past that is appended to by what the appending computes."""
        inputs = {value.name for value in self._foreign.model.graph.input}
        if "position_ids" not in inputs and self._sizes.model_type not in BY_DISTANCE:
            raise UnfitGraph(
                "its graph takes no position_ids, without which rows of several lengths would be misplaced"
            )
        others = inputs - self._pasts.keys() - TOKEN_INPUTS
        if others:
            raise UnfitGraph(f"its graph has an input {min(others)}, which our runner does not give")
        writers = {}
        for past, present in self._pasts.items():
            name = self._foreign.origin(present)
            node = self._foreign.producer(name)
            if node is None or node.op_type != "Concat" or list(node.input[:1]) != [past] or len(node.input) != 2:
                kind = node.op_type if node else "nothing"
                raise UnfitGraph(f"its graph must append new keys and values to {past}, but makes {present} by {kind}")
            if attributes(node)["axis"] not in (2, -2):
                raise UnfitGraph(f"its graph must append to {past} in axis 2, not {attributes(node)['axis']}")
            writers[name] = past
        return writers

    def _write_positions(self) -> dict[str, str]:
        """Write what all layers share; returns what stands in place of optimum's inputs."""
        rows_1, new_1 = self._axis("input_ids", 0), self._axis("input_ids", 1)
        total_1, room_1 = self._axis("attention_mask", 1), self._axis(next(iter(self._pasts)), 2)
        heads, zero = self._sizes.num_key_value_heads, self._number(0)
        lengths_B1 = self._graph.node("ReduceSum", ["attention_mask", self._numbers(1)], keepdims=1)
        positions_BT = self._node("Add", self._node("Sub", lengths_B1, new_1), self._range(new_1))
        columns_BS = self._node("Sub", self._range(total_1), self._node("Sub", total_1, lengths_B1))
        is_token_BS = self._node("GreaterOrEqual", columns_BS, zero)
        mask_BS = self._graph.node("Cast", [is_token_BS], to=TensorProto.INT64)

        rows_B111 = self._node("Unsqueeze", self._range(rows_1), self._numbers(1, 2, 3))
        heads_1G11 = self._graph.constant("ours.heads", np.arange(heads).reshape(1, heads, 1, 1))
        positions_B1T1 = self._node("Unsqueeze", positions_BT, self._numbers(1, 3))
        places_shape = self._graph.node("Concat", [rows_1, self._numbers(heads), new_1, self._numbers(1)], axis=0)
        places = [self._node("Expand", each, places_shape) for each in (rows_B111, heads_1G11, positions_B1T1)]
        self._written_BGT3 = self._graph.node("Concat", places, axis=3)

        rows_of_heads = self._node("Add", self._node("Mul", rows_B111, self._number(heads)), heads_1G11)
        first_BG1 = self._node("Squeeze", self._node("Mul", rows_of_heads, room_1), self._numbers(3))
        read_B1S = self._node("Unsqueeze", self._node("Max", columns_BS, zero), self._numbers(1))
        self._read_BGS = self._node("Add", first_BG1, read_B1S)
        past = [
            rows_1,
            self._numbers(heads),
            self._node("Sub", total_1, new_1),
            self._numbers(self._sizes.padded_head_dim),
        ]
        self._past_shape = self._graph.node("Concat", past, axis=0)
        return {"attention_mask": mask_BS, "position_ids": positions_BT}

    def _write_present(self, node: onnx.NodeProto) -> None:
        """Write new keys or values into the buffer, and read the rows that attention sees from it."""
        name = node.output[0]
        past = self._writers[name]
        new_BGTA = self._renamed.get(node.input[1], node.input[1])
        present = self._graph.node("ScatterND", [past, self._written_BGT3, new_BGTA], outputs=[self._pasts[past]])
        positions_XA = self._node("Reshape", present, self._numbers(-1, self._sizes.padded_head_dim))
        self._renamed[name] = self._graph.node("Gather", [positions_XA, self._read_BGS], axis=0)

    def _write_past_shape(self, node: onnx.NodeProto) -> None:
        """Write the shape that optimum's past would have; the buffer's has room for more."""
        bounds = attributes(node)
        inputs = [self._past_shape, self._numbers(bounds.get("start", 0)), self._numbers(bounds.get("end", 4))]
        self._graph.node("Slice", inputs, outputs=[node.output[0]])

    def _node(self, kind: str, *inputs: str) -> str:
        return self._graph.node(kind, list(inputs))

    def _axis(self, name: str, axis: int) -> str:
        return self._graph.node("Shape", [name], start=axis, end=axis + 1)

    def _range(self, end_1: str) -> str:
        return self._node("Range", self._number(0), self._node("Squeeze", end_1), self._number(1))

    def _number(self, value: int) -> str:
        return self._graph.constant(f"ours.{value}", np.array(value))

    def _numbers(self, *values: int) -> str:
        return self._graph.constant(f"ours.{list(values)}", np.array(values))
