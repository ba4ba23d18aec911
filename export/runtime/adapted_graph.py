"""Adds low-rank adapters to an exported graph in memory; the folder stays as it is.

    x_BTK ─┬─ product ──────────────── y_BTN ─ + ─ y_BTN      at each product that an adapter changes
           └─ A[row] ─ h_BTR ─ B[row] ─ d_BTN ─┘

    A [adapters, R, K]    R: L ranks for each matrix of the checkpoint that the product joins (q, k and v; gate, up)
    B [adapters, L, N]    its columns of q use q's ranks, and so on; for onnxruntime's products [adapters, R, N]

Each row of a batch names its adapter by an input of the graph, from 1 on; 0 is for none, for which onnxruntime's
products get an adapter of zeros. So rows of different adapters step together. Ranks are padded to the largest.

onnxruntime's own `LoraAdapter` needs a graph that was exported with the factors as inputs, and a run takes one set of
them for all its rows.

Shapes: B rows of the batch, T tokens, N output and K input features, L the rank of an adapter, R of all parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.checkpoint.decoder_families import FAMILIES, OTHER_NAMES, DecoderFamily
from export.runtime.external_data import (
    MOST_GRAPH_BYTES,
    NAME,
    RAW_DATA,
    held_fields,
    read_varint,
    wire_fields,
    written,
    written_pair,
)
from export.runtime.kernels.library import kernels_library
from export.runtime.model_shape import ModelShape
from export.runtime.rows.cached_model import ADAPTERS
from toolkit.errors import InputError
from toolkit.field_types import fits
from toolkit.json_files import read_bytes
from toolkit.records import read_object
from toolkit.sources.adapter_folder import Adapter, Floats, NeedsPeft

MODEL_GRAPH, MODEL_OPSET = 7, 8
GRAPH_NODE, GRAPH_TENSOR, GRAPH_INPUT = 1, 5, 11
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_KIND, NODE_ATTRIBUTE, NODE_DOMAIN, ATTRIBUTE_NUMBER = 1, 2, 3, 4, 5, 7, 3
TENSOR_DIMS, TENSOR_TYPE, TENSOR_LOCATION = 1, 2, 14
FLOAT, INT64, EXTERNAL = 1, 7, 1
"""Field numbers and values of onnx.proto."""
PRODUCTS = ("MatMulNBits", "MatMul3Bits", "FusedMatMul")
"""The operators that multiply by a stored matrix, their second input."""
ROTATED = re.compile(r"self_attn\.[qk]_proj\.")
HEAD, EMBEDDING = "lm_head", "model.embed_tokens"
ROTARY = "rotary.inv_freq"
"""The graph's constants [1, R] of the frequencies by which pairs of a head's channels rotate."""
TRANSPOSED = written(NODE_ATTRIBUTE, written(1, "transB") + written(ATTRIBUTE_NUMBER, 1) + written(20, 2))
"""The attribute that is 1, a whole number (2)."""
MICROSOFT, OURS, LOW_RANK = "com.microsoft", "reasoning.edge", "AddLowRank"
"""Our operator that computes a whole change in place of onnxruntime's five."""


@dataclass(frozen=True, kw_only=True)
class AdaptedGraph:
    """An edited graph, whose factors are not in it."""

    content: bytes
    factors: Mapping[str, Floats]
    """By the names under which the graph reads them."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the graph's file."""

    kind: str
    inputs: list[str]
    outputs: list[str]
    numbers: dict[str, int]
    """Its attributes that are whole numbers."""


@dataclass(frozen=True, kw_only=True)
class CheckpointMatrix:
    """A matrix of the checkpoint: rows of one that the graph stores."""

    product: str
    """The output of the product that multiplies by it."""
    name: str
    begin: int
    end: int
    columns: int


def add_adapters(
    model_path: Path, adapters: Sequence[Path], shape: ModelShape, *, own_kernels: bool = True
) -> AdaptedGraph:
    """Read a folder's graph and PEFT's folders; adapter i is number i + 1 of the input `ADAPTERS`.

    `own_kernels`: let our operator compute the changes, where this processor runs it.

    Raises `InputError` if an adapter changes what the graph does not have, or in a way that only a merge can.
    """
    opened = [_opened(folder) for folder in adapters]
    config = read_object(model_path.with_name("config.json"))
    family = _family(config, model_path.parent)
    content = memoryview(read_bytes(model_path, MOST_GRAPH_BYTES))
    try:
        [graph] = [payload for number, payload in held_fields(content) if number == MODEL_GRAPH]
        sizes = dict(_sizes(graph))
        parts = {part.name: part for part in _parts(graph, sizes, shape, family)}
    except (ValueError, IndexError) as error:
        raise InputError(f"{model_path} is not a whole ONNX file; export again") from error
    filled_up = _filled_up(config, shape, model_path.parent)
    for adapter in opened:
        if filled_up and any(".self_attn." in name for name in adapter.targets):
            raise _only_merged(adapter.folder, f"{adapter.folder} changes attention, {filled_up}")
        _check(adapter, parts, model_path.parent)
    pairs = max((size[1] for name, size in sizes.items() if name.startswith(ROTARY)), default=0)
    order_A = _halves(pairs, shape.head_size) if family.rotates_neighbours else np.arange(shape.head_size)
    products: dict[str, list[CheckpointMatrix]] = {}
    for part in parts.values():
        products.setdefault(part.product, []).append(part)
    changed = {
        product: of_product
        for product, of_product in products.items()
        if any(part.name in adapter.targets for adapter in opened for part in of_product)
    }
    computes = own_kernels and kernels_library() is not None
    factors: dict[str, Floats] = {}
    for product, of_product in changed.items():
        stacked = _stacked(opened, of_product, order_A, computes=computes)
        factors |= dict(zip(_factor_names(product), stacked, strict=True))
    edited = b"".join(_edited(graph, changed, factors, computes=computes))
    whole = [bytes(field) for number, _, field in wire_fields(content) if number != MODEL_GRAPH]
    if computes and not any(OURS.encode() in field for field in whole):
        whole.append(written(MODEL_OPSET, written(1, OURS) + written(2, 1)))
    return AdaptedGraph(content=b"".join([*whole, written(MODEL_GRAPH, edited)]), factors=factors)


def _opened(folder: Path) -> Adapter:
    try:
        return Adapter(folder)
    except NeedsPeft as error:
        raise _only_merged(folder, error.reason) from error


def _only_merged(folder: Path, reason: str) -> InputError:
    return InputError(f"{reason}, which only a merge can add; merge it: toolkit export {folder} --int4 --out DIR")


def _family(config: Mapping[str, Any], folder: Path) -> DecoderFamily:
    names = config.get("architectures")
    name = names[0] if fits(names, list[str]) and names else "none is named"
    family = FAMILIES.get(OTHER_NAMES.get(name, name))
    if family is None:
        raise InputError(
            f"adapters cannot be added to {folder}, whose architecture ({name}) our graphs don't have; "
            "merge one with PEFT, then export the merged folder"
        )
    return family


def _filled_up(config: Mapping[str, Any], shape: ModelShape, folder: Path) -> str:
    """Say how the export filled up the checkpoint's heads; empty if it did not."""
    head_dim = config.get("head_dim") or config.get("hidden_size", 0) // (config.get("num_attention_heads") or 1)
    if head_dim in (0, shape.head_size):
        return ""
    return f"whose heads of {head_dim} channels {folder} has in {shape.head_size}"


def _check(adapter: Adapter, parts: Mapping[str, CheckpointMatrix], folder: Path) -> None:
    for name in sorted(adapter.targets):
        if name not in parts:
            raise InputError(
                f"the adapter {adapter.folder} changes {name}, which is no matrix of {folder}; give the exported "
                "folder of its own base"
            )
        part = parts[name]
        adapter.check_shape(name, (part.end - part.begin, part.columns))
    try:
        adapter.check_targets(parts)
    except NeedsPeft as error:
        raise _only_merged(adapter.folder, error.reason) from error


def _sizes(graph: memoryview) -> Iterator[tuple[str, list[int]]]:
    """Yield the name and the dimensions of each initializer."""
    for number, tensor in held_fields(graph):
        if number == GRAPH_TENSOR:
            name, dims = "", []
            for field, payload, whole in wire_fields(tensor):
                if field == NAME and payload is not None:
                    name = bytes(payload).decode()
                elif field == TENSOR_DIMS and payload is None:
                    dims.append(read_varint(whole, 1)[0])
            yield name, dims


def _node(message: memoryview) -> Node:
    texts: dict[int, list[str]] = {NODE_INPUT: [], NODE_OUTPUT: [], NODE_KIND: []}
    numbers = {}
    for number, payload in held_fields(message):
        if number in texts:
            texts[number].append(bytes(payload).decode())
        elif number == NODE_ATTRIBUTE:
            values = {field: held if held is not None else whole for field, held, whole in wire_fields(payload)}
            if ATTRIBUTE_NUMBER in values:
                numbers[bytes(values[1]).decode()] = read_varint(values[ATTRIBUTE_NUMBER], 1)[0]
    [kind] = texts[NODE_KIND]
    return Node(kind=kind, inputs=texts[NODE_INPUT], outputs=texts[NODE_OUTPUT], numbers=numbers)


def _parts(
    graph: memoryview, sizes: Mapping[str, list[int]], shape: ModelShape, family: DecoderFamily
) -> Iterator[CheckpointMatrix]:
    """Yield the checkpoint's matrices that the graph multiplies by."""
    nodes = [_node(payload) for number, payload in held_fields(graph) if number == GRAPH_NODE]
    cast = {node.outputs[0]: node.inputs[0] for node in nodes if node.kind == "Cast"}
    for node in nodes:
        stored = cast.get(node.inputs[1], node.inputs[1]) if node.kind in PRODUCTS else ""
        if stored not in sizes:
            continue
        module = stored.rpartition(".")[0].removesuffix(".weight")
        rows, columns = sizes[stored][0], node.numbers.get("K") or sizes[stored][1]
        names = _checkpoint_names(module, family)
        ends = np.cumsum(_rows_of_parts(rows, len(names), shape)).tolist()
        for name, begin, end in zip(names, [0, *ends], ends, strict=False):
            yield CheckpointMatrix(
                product=node.outputs[0], name=f"{name}.weight", begin=begin, end=end, columns=columns
            )


def _checkpoint_names(module: str, family: DecoderFamily) -> list[str]:
    """Name the checkpoint's modules whose rows, one after another, form a stored matrix."""
    for stored, sources in family.sources.items():
        if module.endswith(f".{stored}"):
            return [module.removesuffix(stored) + source for source in sources]
    return [HEAD if module == EMBEDDING else module]


def _rows_of_parts(rows: int, count: int, shape: ModelShape) -> list[int]:
    kept = shape.num_key_value_heads * shape.head_size
    return [rows - 2 * kept, kept, kept] if count == 3 else [rows // count] * count


def _halves(pairs: int, head_dim: int) -> NDArray[np.int64]:
    """Return the order in which the graph has a head's channels where the checkpoint rotates neighbours together."""
    rotated = np.arange(2 * pairs).reshape(pairs, 2).T.flatten()
    return np.concatenate([rotated, np.arange(2 * pairs, head_dim)])


def _stacked(
    adapters: Sequence[Adapter], parts: Sequence[CheckpointMatrix], order_A: NDArray[np.int64], *, computes: bool
) -> tuple[Floats, Floats]:
    """Return the factors of all adapters at one product, [adapters, R, K] and [adapters, L or R, N].

    `computes`: our operator computes the changes, and needs no zeros: no adapter 0, no rows of B for other parts.
    """
    found = [
        [adapter.factors(part.name) if part.name in adapter.targets else None for part in parts] for adapter in adapters
    ]
    rank = max(len(down_LK) for of_adapter in found for down_LK, _ in filter(None, of_adapter))
    all_ranks = rank * len(parts)
    before = 0 if computes else 1
    down = np.zeros((before + len(adapters), all_ranks, parts[0].columns), dtype=np.float32)
    up = np.zeros((before + len(adapters), rank if computes else all_ranks, parts[-1].end), dtype=np.float32)
    for number, of_adapter in enumerate(found, start=before):
        for place, (part, factors) in enumerate(zip(parts, of_adapter, strict=True)):
            if factors:
                down_LK, up_NL = factors
                if ROTATED.search(part.name):
                    up_NL = up_NL.reshape(-1, len(order_A), up_NL.shape[1])[:, order_A].reshape(up_NL.shape)
                first, above = place * rank, 0 if computes else place * rank
                down[number, first : first + len(down_LK)] = down_LK
                up[number, above : above + len(down_LK), part.begin : part.end] = up_NL.T
    return down, up


def _factor_names(product: str) -> tuple[str, str]:
    return f"{product}.lora_A", f"{product}.lora_B"


def _edited(
    graph: memoryview,
    changed: Mapping[str, Sequence[CheckpointMatrix]],
    factors: Mapping[str, Floats],
    *,
    computes: bool,
) -> Iterator[bytes]:
    """Yield the fields of the edited graph; `computes`: our operator computes the changes."""
    for number, payload, whole in wire_fields(graph):
        node = _node(payload) if number == GRAPH_NODE and payload is not None else None
        if node and payload is not None and node.kind in PRODUCTS and node.outputs[0] in changed:
            yield written(GRAPH_NODE, _renamed(payload, f"{node.outputs[0]}.unchanged"))
            yield from _change(node.inputs[0], node.outputs[0], computes=computes)
        else:
            yield bytes(whole)
    for name, stack in factors.items():
        dims = b"".join(written(TENSOR_DIMS, size) for size in stack.shape)
        kind = written(TENSOR_TYPE, FLOAT) + written(TENSOR_LOCATION, EXTERNAL)
        yield written(GRAPH_TENSOR, dims + kind + written(NAME, name) + written_pair("location", name))
    for product, parts in changed.items() if computes else ():
        ends = np.array([part.end for part in parts], dtype="<i8")
        dims_and_type = written(TENSOR_DIMS, len(ends)) + written(TENSOR_TYPE, INT64)
        yield written(
            GRAPH_TENSOR, dims_and_type + written(NAME, f"{product}.ends") + written(RAW_DATA, ends.tobytes())
        )
    shape_B = written(1, written(2, "batch_size"))
    tensor_type = written(1, written(1, INT64) + written(2, shape_B))
    yield written(GRAPH_INPUT, written(1, ADAPTERS) + written(2, tensor_type))


def _renamed(node: memoryview, output: str) -> bytes:
    """Return a product with another name for what it computes."""
    fields = (
        written(NODE_OUTPUT, output) if number == NODE_OUTPUT else bytes(whole)
        for number, _, whole in wire_fields(node)
    )
    return b"".join(fields)


def _change(x_BTK: str, y_BTN: str, *, computes: bool) -> Iterator[bytes]:
    """Yield the nodes that add the change to a product."""
    unchanged, (down, up) = f"{y_BTN}.unchanged", _factor_names(y_BTN)
    if computes:
        yield _written_node(LOW_RANK, [unchanged, x_BTK, down, up, ADAPTERS, f"{y_BTN}.ends"], y_BTN, domain=OURS)
        return
    a_BRK, b_BRN, h_BTR, d_BTN = (f"{y_BTN}.{letter}" for letter in "abhd")
    yield _written_node("Gather", [down, ADAPTERS], a_BRK)
    yield _written_node("Gather", [up, ADAPTERS], b_BRN)
    yield _written_node("FusedMatMul", [x_BTK, a_BRK], h_BTR, domain=MICROSOFT, attribute=TRANSPOSED)
    yield _written_node("MatMul", [h_BTR, b_BRN], d_BTN)
    yield _written_node("Add", [unchanged, d_BTN], y_BTN)


def _written_node(kind: str, inputs: Sequence[str], output: str, *, domain: str = "", attribute: bytes = b"") -> bytes:
    names = b"".join(written(NODE_INPUT, name) for name in inputs)
    rest = written(NODE_OUTPUT, output) + written(NODE_NAME, f"{output}.{kind}") + written(NODE_KIND, kind)
    rest += attribute + (written(NODE_DOMAIN, domain) if domain else b"")
    return written(GRAPH_NODE, names + rest)
