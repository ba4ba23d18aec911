"""Reads a graph that another program wrote, its weights left where they are on disk.

Names are one graph's own: a value that a node computes, an initializer or an input. A node's subgraphs may read any of
them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper


class UnfitGraph(Exception):
    """A graph cannot be turned into one that our runner opens; the message says what of it."""


class ForeignGraph:
    """The nodes of a graph, by what they compute, and its weights."""

    def __init__(self, path: Path) -> None:
        self.model = onnx.load(path, load_external_data=False)
        self._folder = path.parent
        self.nodes = list(self.model.graph.node)
        self.initializers = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self._producers = {output: node for node in self.nodes for output in node.output}

    def producer(self, name: str) -> onnx.NodeProto | None:
        """Return the node that computes a value; None for an input or an initializer."""
        return self._producers.get(name)

    def origin(self, name: str) -> str:
        """Follow a float32 value back through nodes that pass it on unchanged."""
        while (node := self.producer(name)) is not None and node.op_type in ("Identity", "Cast"):
            if attributes(node).get("to", onnx.TensorProto.FLOAT) != onnx.TensorProto.FLOAT:
                break
            name = node.input[0]
        return name

    def is_constant(self, name: str) -> bool:
        """Whether a value is the same in each run."""
        node = self.producer(name)
        return name in self.initializers if node is None else node.op_type == "Constant"

    def array(self, name: str) -> NDArray[Any]:
        """Return an initializer; what is in a file of its own is mapped."""
        tensor = self.initializers[name]
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        facts = {entry.key: entry.value for entry in tensor.external_data}
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        offset, shape = int(facts.get("offset", 0)), tuple(tensor.dims)
        return np.memmap(self._folder / facts["location"], dtype, "r", offset=offset, shape=shape)

    def matrix(self, name: str) -> tuple[str, bool] | None:
        """Return the initializer of a value that is a matrix of floats, and whether it is turned on the way."""
        is_turned = False
        while (node := self.producer(name)) is not None:
            if node.op_type == "Transpose" and list(node.attribute[0].ints if node.attribute else (1, 0)) == [1, 0]:
                is_turned = not is_turned
            elif node.op_type != "Identity":
                return None
            name = node.input[0]
        tensor = self.initializers.get(name)
        if tensor is None or len(tensor.dims) != 2 or tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        return name, is_turned


def attributes(node: onnx.NodeProto) -> Mapping[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def names_read(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node and its subgraphs read."""
    return set(node.input) | {name for graph in _subgraphs(node) for inner in graph.node for name in names_read(inner)}


def rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Let a node and its subgraphs read other values in place of those that they name."""
    for place, name in enumerate(node.input):
        node.input[place] = names.get(name, name)
    for graph in _subgraphs(node):
        for inner in graph.node:
            rename(inner, names)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
