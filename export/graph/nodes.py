"""Writes the nodes and initializers of an ONNX graph.

Products of codes are MatMulNBits with accuracy_level 4, or our MatMul3Bits; those of floats are FusedMatMul, which
reads a matrix as the checkpoint has it, [N, K], so that a tied embedding shares its bytes. Values in fp16 are cast to
float32, which onnxruntime folds once, when a session starts. Source: onnxruntime's contrib operators.

Shapes: B batch, T new tokens, F features, N rows and K columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.checkpoint.model_config import ModelConfig
from export.folder.weights_file import FILE_NAME, StoredTensor, StoredWeight, Weights
from toolkit.generation.generate import Floats

MICROSOFT = "com.microsoft"
OURS = "reasoning.edge"
"""The domain of our own operators; each of them is a function of the graph as well."""
INT8_ACTIVATIONS = 4
"""The accuracy_level of MatMulNBits that multiplies in int8; the others are several times slower on CPU."""
THREE_BITS = "MatMul3Bits"
"""Our operator for 3 bits (`export.graph.matmul_3bits`)."""


class Nodes:
    """A graph in the making. Its methods add nodes and return the name of what these compute."""

    def __init__(self, weights: Weights, vectors: Mapping[str, Floats]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._count = 0
        self._weights = weights
        self._vectors = vectors
        self._scales: dict[str, str] = {}
        self._written: set[str] = set()

    def node(
        self, kind: str, inputs: list[str], *, outputs: list[str] | None = None, domain: str = "", **attributes: Any
    ) -> str:
        name = f"{kind}_{self._count}"
        self._count += 1
        outputs = outputs or [name]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs[0]

    def either(
        self,
        condition: str,
        then: Callable[[list[str]], None],
        otherwise: Callable[[list[str]], None],
        *,
        outputs: Mapping[str, int],
    ) -> None:
        """Add an If of two branches; each function writes one, given its output names, whose types `outputs` has."""
        branches = {}
        for branch, write in (("then", then), ("else", otherwise)):
            names = [f"{name}.{branch}" for name in outputs]
            outer, self.nodes = self.nodes, []
            write(names)
            values = [helper.make_tensor_value_info(*pair, None) for pair in zip(names, outputs.values(), strict=True)]
            branches[f"{branch}_branch"] = helper.make_graph(self.nodes, branch, [], values)
            self.nodes = outer
        self.node("If", [condition], outputs=list(outputs), **branches)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Add an initializer; one that several nodes read is written once."""
        if name not in self._written:
            self._written.add(name)
            self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def value(self, value: Any, dtype: type[np.generic] = np.int64) -> str:
        """Add a constant within a function, which has no initializers."""
        array: NDArray[Any] = np.array(value, dtype=dtype)
        return self.node("Constant", [], value=numpy_helper.from_array(array))

    def refer(self, name: str, to: str, kind: onnx.AttributeProto.AttributeType) -> None:
        """Let an attribute of the last node refer to one of the function around it."""
        self.nodes[-1].attribute.append(onnx.AttributeProto(name=name, ref_attr_name=to, type=kind))

    def vector(self, name: str) -> str:
        """Add a norm's weights, a bias, or another of the vectors."""
        return self.constant(name, self._vectors[name])

    def norm(self, name: str, input_name: str, eps: float) -> str:
        """Norm by the name of the weight; one that has a bias subtracts the mean as well."""
        kind, parameters = self._norm(name)
        return self.node(kind, [input_name, *parameters], axis=-1, epsilon=eps, stash_type=1)

    def _norm(self, name: str) -> tuple[str, list[str]]:
        bias = f"{name.removesuffix('weight')}bias"
        if bias in self._vectors:
            return "LayerNormalization", [self.vector(name), self.vector(bias)]
        return "SimplifiedLayerNormalization", [self.vector(name)]

    def times(self, input_name: str, factor: float) -> str:
        """Multiply by a number, unless it is 1."""
        if factor == 1:
            return input_name
        return self.node("Mul", [input_name, self.constant(f"times {factor!r}", np.array(factor, dtype=np.float32))])

    def skip_norm(self, name: str, update: str, residual: str, config: ModelConfig) -> tuple[str, str]:
        """Add update + residual and its norm; returns the names of the norm and of the sum."""
        kind, parameters = self._norm(name)
        normed, total = f"{name}.normed", f"{name}.sum"
        self.node(
            f"Skip{kind}",
            [update, residual, *parameters],
            outputs=[normed, "", "", total],
            domain=MICROSOFT,
            epsilon=config.rms_norm_eps,
        )
        return normed, total

    def linear(self, name: str, input_name: str, *, output: str | None = None) -> str:
        weight = self._weights[name]
        if weight.is_float:
            return self._float_linear(name, weight, input_name, output)
        codes = self.stored(f"{name}.codes", weight.codes, weight.codes.shape)
        scales = self._stored_scales(name, weight) if weight.bits == 3 else self._cast_scales(name, weight)
        inputs = [input_name, codes, scales, self._zero_points(name, weight)]
        bias = name.removesuffix("weight") + "bias"
        if bias in self._vectors:
            inputs += ["", self.constant(bias, self._vectors[bias])]
        outputs, sizes = [output] if output else None, {"K": weight.in_features, "N": weight.out_features}
        if weight.bits == 3:
            return self.node(THREE_BITS, inputs, outputs=outputs, domain=OURS, **sizes)
        return self.node(
            "MatMulNBits",
            inputs,
            outputs=outputs,
            domain=MICROSOFT,
            bits=weight.bits,
            block_size=weight.block_size,
            accuracy_level=INT8_ACTIVATIONS,
            **sizes,
        )

    def _float_linear(self, name: str, weight: StoredWeight, input_name: str, output: str | None) -> str:
        values = self.stored(f"{name}.values", weight.values, weight.values.shape)
        matrix_NK = self._as_float32(values, weight)
        bias = name.removesuffix("weight") + "bias"
        product = [f"{name}.product"] if bias in self._vectors else [output] if output else None
        product_BTN = self.node("FusedMatMul", [input_name, matrix_NK], outputs=product, domain=MICROSOFT, transB=1)
        if bias not in self._vectors:
            return product_BTN
        addend_N = self.constant(bias, self._vectors[bias])
        return self.node("Add", [product_BTN, addend_N], outputs=[output] if output else None)

    def _as_float32(self, values: str, weight: StoredWeight) -> str:
        return values if weight.bits == 32 else self.node("Cast", [values], to=TensorProto.FLOAT)

    def gather(self, name: str, ids: str, *, output: str | None = None) -> str:
        """Look up rows of a matrix, which shares its bytes with `linear`; here its codes have a flat shape."""
        weight, outputs = self._weights[name], [output] if output else None
        if weight.bits == 32:
            values = self.stored(f"{name}.values", weight.values, weight.values.shape)
            return self.node("Gather", [values, ids], outputs=outputs, axis=0)
        if weight.is_float:
            values = self.stored(f"{name}.values", weight.values, weight.values.shape)
            return self.node(
                "Cast", [self.node("Gather", [values, ids], axis=0)], outputs=outputs, to=TensorProto.FLOAT
            )
        rows, blocks, blob_size = weight.codes.shape
        codes = self.stored(f"{name}.rows", weight.codes, (rows, blocks * blob_size))
        return self.node(
            "GatherBlockQuantized",
            [codes, ids, self._cast_scales(name, weight), self._zero_points(name, weight)],
            outputs=outputs,
            domain=MICROSOFT,
            bits=weight.bits,
            block_size=weight.block_size,
            gather_axis=0,
            quantize_axis=1,
        )

    def _cast_scales(self, name: str, weight: StoredWeight) -> str:
        if name not in self._scales:
            self._scales[name] = self.node("Cast", [self._stored_scales(name, weight)], to=TensorProto.FLOAT)
        return self._scales[name]

    def _stored_scales(self, name: str, weight: StoredWeight) -> str:
        return self.stored(f"{name}.scales", weight.scales, weight.scales.shape)

    def _zero_points(self, name: str, weight: StoredWeight) -> str:
        return self.stored(f"{name}.zero_points", weight.zero_points, weight.zero_points.shape)

    def stored(self, name: str, stored: StoredTensor, shape: tuple[int, ...]) -> str:
        """Add an initializer whose values are in the weights file; one that several nodes read is written once."""
        if name in self._written:
            return name
        self._written.add(name)
        tensor = onnx.TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(stored.dtype),
            dims=shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", FILE_NAME), ("offset", stored.offset), ("length", stored.size_bytes)):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        return name
