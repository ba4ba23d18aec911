"""Builds our graph from optimum's: its own nodes, but for the cache, the wanted logits and the stored matrices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.checkpoint.source import DecoderSizes
from export.folder.weights_file import StoredWeight, WeightsFile
from export.foreign.cache_interface import CacheInterface
from export.foreign.foreign_graph import ForeignGraph, names_read
from export.foreign.stored_matrices import Matrices
from export.graph.model_graph import decoder_inputs, decoder_outputs
from export.graph.nodes import MICROSOFT, Nodes
from export.quantization.codes import FloatWeight
from toolkit.generation.generate import Floats

LARGE_BYTES = 1 << 16
"""A tensor of floats that takes more is stored beside the matrices, not in the graph's own file."""


def turned_graph(
    foreign: ForeignGraph,
    sizes: DecoderSizes,
    matrices: Matrices,
    weights: Mapping[str, StoredWeight],
    file: WeightsFile,
) -> onnx.ModelProto:
    """Build the model; `file` takes the large tensors that are no matrices, such as tables of positions.

    Raises `UnfitGraph` if optimum's graph is of a kind that cannot be turned into ours.
    """
    stored = dict(weights)
    graph = Nodes(stored, _biases(foreign, matrices))
    interface = CacheInterface(graph, foreign, sizes)
    for node in foreign.nodes:
        adapted = interface.adapted(node)
        matrix = matrices.get(node.output[0])
        if adapted is None:
            continue
        if matrix is None:
            graph.nodes.append(adapted)
        elif node.op_type == "Gather":
            graph.gather(matrix.name, adapted.input[1], output=adapted.output[0])
        else:
            graph.linear(matrix.name, adapted.input[0], output=adapted.output[0])
    interface.finish()
    outputs = decoder_outputs(sizes)
    nodes = _needed(graph.nodes, [value.name for value in outputs])
    _add_tensors(graph, foreign, nodes, stored, file)
    domains = {"": max(o.version for o in foreign.model.opset_import if o.domain in ("", "ai.onnx")), MICROSOFT: 1}
    return helper.make_model(
        helper.make_graph(nodes, "decoder", decoder_inputs(sizes), outputs, graph.initializers),
        opset_imports=[helper.make_opsetid(*domain) for domain in domains.items()],
        ir_version=foreign.model.ir_version,
        producer_name="reasoning-edge",
    )


def _biases(foreign: ForeignGraph, matrices: Matrices) -> dict[str, Floats]:
    """Return what Gemm adds, by the names under which `Nodes.linear` looks for it."""
    return {
        matrices[node.output[0]].name.removesuffix("weight") + "bias": foreign.array(node.input[2])
        for node in foreign.nodes
        if node.op_type == "Gemm" and node.output[0] in matrices and len(node.input) > 2 and node.input[2]
    }


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the outputs depend on; others only turned a matrix that is stored otherwise."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= names_read(node)
            kept.append(node)
    return kept[::-1]


def _add_tensors(
    graph: Nodes,
    foreign: ForeignGraph,
    nodes: Iterable[onnx.NodeProto],
    stored: dict[str, StoredWeight],
    file: WeightsFile,
) -> None:
    """Add the tensors that optimum's own nodes read."""
    read = {name for node in nodes for name in names_read(node)}
    for name in sorted(read & foreign.initializers.keys()):
        values = foreign.array(name)
        if values.dtype == np.float32 and values.ndim and values.nbytes > LARGE_BYTES:
            rows_XY = np.ascontiguousarray(values).reshape(-1, values.shape[-1])
            stored[name] = file.append([FloatWeight(values=rows_XY)], len(rows_XY))
            graph.stored(name, stored[name].values, values.shape)
        else:
            graph.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
