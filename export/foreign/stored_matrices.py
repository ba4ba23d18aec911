"""Finds the matrices of optimum's graph, and stores them as an export stores its own.

    MatMul, Gemm with a constant matrix → a product
    Gather from the whole vocabulary    → the embedding

Each matrix is rounded by itself, since nothing says what its inputs are. One that chooses experts stays in floats: with
four bits, others might be chosen. A head that is the embedding shares its bytes.

Shapes: N output features, K input features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx
import torch

from export.checkpoint.tensors import LARGEST
from export.folder.weights_file import StoredWeight, WeightsFile
from export.foreign.foreign_graph import ForeignGraph, attributes
from export.quantization.codes import LARGEST_CODE_BITS, Weight, round_nearest
from export.quantization.layout import BLOCK_SIZES, Layout
from export.quantization.search import quantize_by_importance
from toolkit.errors import InputError
from toolkit.generation.generate import Floats

Rounding = Literal["searched", "nearest"]
"""searched: each block's scale and zero point with the smallest squared error; nearest: those of its whole range."""
FLOATS = Layout(bits=32, block_size=0)
WEIGHTS_AT_ONCE = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix of a graph, as [N, K]."""

    name: str
    """The name that it is stored by."""
    tensor: str
    """The initializer that holds it."""
    is_turned: bool
    """Whether the initializer is [K, N]."""
    role: Literal["product", "head", "embedding", "router"]

    def values(self, foreign: ForeignGraph) -> Floats:
        """Return weight_NK, which may be mapped and turned."""
        values: Floats = foreign.array(self.tensor)
        return values.T if self.is_turned else values


Matrices = Mapping[str, Matrix]
"""By what the node that reads it computes."""


def found_matrices(foreign: ForeignGraph, vocab_size: int) -> dict[str, Matrix]:
    """Find the matrices to store; a head that is equal to the embedding gets its name."""
    routers = _routers(foreign)
    found: dict[str, Matrix] = {}
    embedding: Matrix | None = None
    for node in foreign.nodes:
        place = _place(foreign, node, vocab_size)
        if place is None:
            continue
        output, (tensor, is_turned) = node.output[0], place
        rows = foreign.initializers[tensor].dims[1 if is_turned else 0]
        if node.op_type == "Gather":
            embedding = Matrix(name=tensor, tensor=tensor, is_turned=False, role="embedding")
            found[output] = embedding
            continue
        role: Literal["head", "router", "product"] = "router" if output in routers else "product"
        matrix = Matrix(name=f"{_module(output)}.weight", tensor=tensor, is_turned=is_turned, role=role)
        if rows == vocab_size and role == "product":
            is_tied = embedding is not None and np.array_equal(matrix.values(foreign), embedding.values(foreign))
            matrix = replace(embedding if embedding and is_tied else matrix, role="head")
        found[output] = matrix
    return found


def write_matrices(
    foreign: ForeignGraph,
    matrices: Matrices,
    layouts: Mapping[str, Layout],
    rounding: Rounding,
    file: WeightsFile,
    advance: Callable[[int], object],
) -> dict[str, StoredWeight]:
    """Write each matrix in its layout; `advance` is called with the number of bytes that were read.

    Raises `InputError` if one holds NaN, an infinity or a huge value.
    """
    stored: dict[str, StoredWeight] = {}
    for matrix in matrices.values():
        if matrix.name not in stored:
            weight_NK = np.array(matrix.values(foreign), order="C")
            _check_values(matrix.name, weight_NK)
            stored[matrix.name] = file.append(_rounded(weight_NK, layouts[matrix.name], rounding), len(weight_NK))
            advance(weight_NK.nbytes)
    return stored


def matrix_layouts(
    foreign: ForeignGraph, matrices: Matrices, *, bits: int, block_size: int, head_bits: int
) -> dict[str, Layout]:
    """Assign a layout to each matrix: `head_bits` to the head, even if it is the embedding, and `bits` to the others.

    Routers, and matrices whose rows are no whole blocks, stay in float32.
    """
    heads = {matrix.name for matrix in matrices.values() if matrix.role == "head"}
    chosen: dict[str, Layout] = {}
    for matrix in matrices.values():
        columns = matrix.values(foreign).shape[1]
        wanted = head_bits if matrix.name in heads else bits
        sizes = [size for size in BLOCK_SIZES if size <= block_size and columns % size == 0]
        if wanted > LARGEST_CODE_BITS:
            chosen[matrix.name] = Layout(bits=wanted, block_size=0)
        elif matrix.role == "router" or not sizes:
            chosen[matrix.name] = FLOATS
        else:
            chosen[matrix.name] = Layout(bits=wanted, block_size=sizes[0])
    return chosen


def _place(foreign: ForeignGraph, node: onnx.NodeProto, vocab_size: int) -> tuple[str, bool] | None:
    """Return the initializer of the matrix that a node reads, and whether it is [K, N]; None for other nodes."""
    if node.op_type == "Gather" and attributes(node).get("axis", 0) == 0 and not foreign.is_constant(node.input[1]):
        found = foreign.matrix(node.input[0])
        is_embedding = found and not found[1] and foreign.initializers[found[0]].dims[0] == vocab_size
        return found if is_embedding else None
    if node.op_type not in ("MatMul", "Gemm") or foreign.is_constant(node.input[0]):
        return None
    settings = attributes(node)
    if node.op_type == "Gemm" and not _is_linear(foreign, node):
        return None
    found = foreign.matrix(node.input[1])
    return (found[0], found[1] == bool(settings.get("transB", 0))) if found else None


def _is_linear(foreign: ForeignGraph, node: onnx.NodeProto) -> bool:
    """Whether a Gemm multiplies by a matrix and adds a bias, and nothing else."""
    settings = attributes(node)
    is_plain = settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1 and not settings.get("transA", 0)
    bias = node.input[2] if len(node.input) > 2 else ""
    return is_plain and (not bias or (bias in foreign.initializers and len(foreign.initializers[bias].dims) == 1))


def _routers(foreign: ForeignGraph) -> set[str]:
    """Return the products among whose results the largest are chosen."""
    routers: set[str] = set()
    seen: set[str] = set()
    names = [node.input[0] for node in foreign.nodes if node.op_type == "TopK"]
    while names:
        name = names.pop()
        node = None if name in seen else foreign.producer(name)
        seen.add(name)
        if node is not None and node.op_type in ("MatMul", "Gemm"):
            routers.add(name)
        elif node is not None:
            names += node.input
    return routers


def _module(output: str) -> str:
    """Return the name of the module that computes a value, as torch's exporter writes it."""
    return output.removesuffix("_output_0").strip("/").replace("/", ".")


def _rounded(weight_NK: Floats, layout: Layout, rounding: Rounding) -> Iterator[Weight]:
    step = max(1, WEIGHTS_AT_ONCE // weight_NK.shape[1])
    for begin in range(0, len(weight_NK), step):
        rows_NK = weight_NK[begin : begin + step]
        if rounding == "nearest" or layout.bits > LARGEST_CODE_BITS:
            yield round_nearest(rows_NK, bits=layout.bits, block_size=layout.block_size)
        else:
            weights_NK, importance_K = torch.from_numpy(rows_NK), torch.ones(weight_NK.shape[1])
            yield quantize_by_importance(weights_NK, importance_K, bits=layout.bits, block_size=layout.block_size)


def _check_values(name: str, weight_NK: Floats) -> None:
    largest = np.abs(weight_NK).max()
    if not largest <= LARGEST:  # also where it is NaN
        raise InputError(f"{name} holds {largest:g}, but fp16 can store at most {LARGEST:g}; choose another checkpoint")
