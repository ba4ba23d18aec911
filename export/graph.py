"""The fused ONNX graph of a dense decoder, from its configuration and numpy arrays.

    input_ids ─ GatherBlockQuantized ─┐
      ┌───────────────────────────────┴───────────────────────────────────────────┐
      │ SkipSimplifiedLayerNormalization ─ qkv_proj ─ GroupQueryAttention ─ o_proj │ × num_hidden_layers
      │ SkipSimplifiedLayerNormalization ─ gate_up_proj ─ SiLU·, ─ down_proj       │
      └───────────────────────────────┬───────────────────────────────────────────┘
    logits ── lm_head ── rows from ───┘
                         `logits_from` on

Every product is MatMulNBits with accuracy_level 4, or of floats FusedMatMul, which reads a matrix as the checkpoint has
it: [N, K], so that a tied embedding shares its bytes. Attention rotates inside and writes its new keys and values into the
past it was given where past and present are bound to one buffer. What lies in the file as fp16 is cast to float32, and the rotary table is computed from its frequencies: onnxruntime folds both once, when a session starts.
Input and output names are those that onnxruntime-genai, optimum and transformers.js expect. `logits_from` is an
initializer that a caller may override: 0, its value, computes the logits of every new token, -1 those of the last alone.
Source: onnxruntime's contrib operators; transformers' modeling_llama, mistral, qwen2, qwen3, smollm3.

Shapes: B batch, T new tokens, S attended tokens, P positions, D hidden, H query heads, G kv heads, A head dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.checkpoint import EMBEDDING, LM_HEAD
from export.model_config import ModelConfig
from export.rotary import inverse_frequencies
from export.session import LOGITS_FROM
from export.weights_file import FILE_NAME, StoredTensor, StoredWeight, Weights

Floats = NDArray[np.float32]
Shape = list[str | int | None]

OPSET = 21
IR_VERSION = 10
MICROSOFT = "com.microsoft"
GROUP_QUERY_K_SCALE = 12
"""Place of GroupQueryAttention's k_scale among its inputs; v_scale follows."""
INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy_level that multiplies in int8; the others are several times slower on CPU."""


def build_graph(
    config: ModelConfig,
    weights: Weights,
    vectors: Mapping[str, Floats],
    cache_scales: Mapping[str, Floats] | None = None,
) -> onnx.ModelProto:
    """The whole model; `vectors` holds norm weights and biases by name, which are kept inside the graph's own file.

    With `cache_scales` the cache is int8: for each layer's `N.key` and `N.value` a step of every channel, [G·A].
    """
    graph = _Graph(weights, vectors)
    head = EMBEDDING if config.tie_word_embeddings else LM_HEAD
    positions = _positions(graph, config)
    residual_BTD = graph.gather(EMBEDDING, "input_ids")
    normed_BTD = graph.norm("model.layers.0.input_layernorm.weight", residual_BTD, config)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        update_BTD = _attention(graph, config, layer, normed_BTD, positions, cache_scales)
        normed_BTD, residual_BTD = graph.skip_norm(
            f"{prefix}.post_attention_layernorm.weight", update_BTD, residual_BTD, config
        )
        update_BTD = _mlp(graph, f"{prefix}.mlp", normed_BTD)
        last = layer == config.num_hidden_layers - 1
        following = "model.norm.weight" if last else f"model.layers.{layer + 1}.input_layernorm.weight"
        normed_BTD, residual_BTD = graph.skip_norm(following, update_BTD, residual_BTD, config)
    graph.linear(head, _wanted_rows(graph, normed_BTD), output="logits")
    return _model(graph, config, TensorProto.INT8 if cache_scales else TensorProto.FLOAT)


def _attention(
    graph: _Graph,
    config: ModelConfig,
    layer: int,
    normed_BTD: str,
    positions: tuple[str, str, str, str],
    cache_scales: Mapping[str, Floats] | None,
) -> str:
    prefix = f"model.layers.{layer}.self_attn"
    qkv = graph.linear(f"{prefix}.qkv_proj.weight", normed_BTD)
    query, key, value = _split_and_norm(graph, config, prefix, qkv) if config.has_qk_norm else (qkv, "", "")
    past = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
    rotates = config.rotates[layer]
    inputs = [query, key, value, *past, *(positions if rotates else positions[:2])]
    quantization: dict[str, Any] = {}
    if cache_scales:
        scales = [
            graph.constant(f"{prefix}.{kind}_scale", cache_scales[f"{layer}.{kind}"]) for kind in ("key", "value")
        ]
        inputs = inputs + [""] * (GROUP_QUERY_K_SCALE - len(inputs)) + scales
        quantization = {"kv_cache_bit_width": 8, "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
    attended = graph.node(
        "GroupQueryAttention",
        inputs,
        outputs=[f"{prefix}.attended", f"present.{layer}.key", f"present.{layer}.value"],
        domain=MICROSOFT,
        num_heads=config.num_attention_heads,
        kv_num_heads=config.num_key_value_heads,
        do_rotary=int(rotates),
        scale=float(config.head_dim**-0.5),
        local_window_size=config.sliding_windows[layer] or -1,
        **quantization,
    )
    return graph.linear(f"{prefix}.o_proj.weight", attended)


def _split_and_norm(graph: _Graph, config: ModelConfig, prefix: str, qkv: str) -> tuple[str, str, str]:
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


def _mlp(graph: _Graph, prefix: str, normed_BTD: str) -> str:
    gate_BTF, up_BTF = f"{prefix}.gate", f"{prefix}.up"
    gate_up = graph.linear(f"{prefix}.gate_up_proj.weight", normed_BTD)
    graph.node("Split", [gate_up], outputs=[gate_BTF, up_BTF], axis=-1, num_outputs=2)
    sigmoid_BTF = graph.node("Sigmoid", [gate_BTF])  # onnxruntime fuses the two into its SiLU
    silu_BTF = graph.node("Mul", [gate_BTF, sigmoid_BTF])
    return graph.linear(f"{prefix}.down_proj.weight", graph.node("Mul", [silu_BTF, up_BTF]))


def _wanted_rows(graph: _Graph, normed_BTD: str) -> str:
    """The last norm's rows from `logits_from` on."""
    begin = graph.constant(LOGITS_FROM, np.array([0], dtype=np.int64))
    end = graph.constant("logits_to", np.array([np.iinfo(np.int64).max], dtype=np.int64))
    token_axis = graph.constant("token_axis", np.array([1], dtype=np.int64))
    return graph.node("Slice", [normed_BTD, begin, end, token_axis])


def _positions(graph: _Graph, config: ModelConfig) -> tuple[str, str, str, str]:
    """GroupQueryAttention's inputs 5 to 8: seqlens_k_B, total_sequence_length, cos_PR, sin_PR."""
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
    return seqlens_k_B, total, graph.node("Cos", [angles_PR]), graph.node("Sin", [angles_PR])


class _Graph:
    """Nodes and initializers while they are being written; every method returns the name of what it computes."""

    def __init__(self, weights: Weights, vectors: Mapping[str, Floats]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._weights = weights
        self._vectors = vectors
        self._scales: dict[str, str] = {}
        self._stored_names: set[str] = set()

    def node(
        self, kind: str, inputs: list[str], *, outputs: list[str] | None = None, domain: str = "", **attributes: Any
    ) -> str:
        outputs = outputs or [f"{kind}_{len(self.nodes)}"]
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs[0]

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def norm(self, name: str, input_name: str, config: ModelConfig) -> str:
        weight = self.constant(name, self._vectors[name])
        return self.node(
            "SimplifiedLayerNormalization", [input_name, weight], axis=-1, epsilon=config.rms_norm_eps, stash_type=1
        )

    def skip_norm(self, name: str, update: str, residual: str, config: ModelConfig) -> tuple[str, str]:
        """(norm(update + residual), update + residual)"""
        weight = self.constant(name, self._vectors[name])
        normed, total = f"{name}.normed", f"{name}.sum"
        self.node(
            "SkipSimplifiedLayerNormalization",
            [update, residual, weight],
            outputs=[normed, "", "", total],
            domain=MICROSOFT,
            epsilon=config.rms_norm_eps,
        )
        return normed, total

    def linear(self, name: str, input_name: str, *, output: str | None = None) -> str:
        weight = self._weights[name]
        if weight.is_float:
            return self._float_linear(name, weight, input_name, output)
        codes = self._stored(f"{name}.codes", weight.codes, weight.codes.shape)
        inputs = [input_name, codes, self._cast_scales(name, weight), self._zero_points(name, weight)]
        bias = name.removesuffix("weight") + "bias"
        if bias in self._vectors:
            inputs += ["", self.constant(bias, self._vectors[bias])]
        return self.node(
            "MatMulNBits",
            inputs,
            outputs=[output] if output else None,
            domain=MICROSOFT,
            K=weight.in_features,
            N=weight.out_features,
            bits=weight.bits,
            block_size=weight.block_size,
            accuracy_level=INT8_ACTIVATIONS,
        )

    def _float_linear(self, name: str, weight: StoredWeight, input_name: str, output: str | None) -> str:
        values = self._stored(f"{name}.values", weight.values, weight.values.shape)
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

    def gather(self, name: str, ids: str) -> str:
        """Rows of a matrix, whose bytes are those that `linear` reads; its codes have a flat shape here."""
        weight = self._weights[name]
        if weight.is_float:
            values = self._stored(f"{name}.values", weight.values, weight.values.shape)
            return self._as_float32(self.node("Gather", [values, ids], axis=0), weight)
        rows, blocks, blob_size = weight.codes.shape
        codes = self._stored(f"{name}.rows", weight.codes, (rows, blocks * blob_size))
        return self.node(
            "GatherBlockQuantized",
            [codes, ids, self._cast_scales(name, weight), self._zero_points(name, weight)],
            domain=MICROSOFT,
            bits=weight.bits,
            block_size=weight.block_size,
            gather_axis=0,
            quantize_axis=1,
        )

    def _cast_scales(self, name: str, weight: StoredWeight) -> str:
        if name not in self._scales:
            scales = self._stored(f"{name}.scales", weight.scales, weight.scales.shape)
            self._scales[name] = self.node("Cast", [scales], to=TensorProto.FLOAT)
        return self._scales[name]

    def _zero_points(self, name: str, weight: StoredWeight) -> str:
        return self._stored(f"{name}.zero_points", weight.zero_points, weight.zero_points.shape)

    def _stored(self, name: str, stored: StoredTensor, shape: tuple[int, ...]) -> str:
        if name in self._stored_names:
            return name
        self._stored_names.add(name)
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


def _model(graph: _Graph, config: ModelConfig, cache_type: int) -> onnx.ModelProto:
    heads, size = config.num_key_value_heads, config.head_dim
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
    ]
    inputs.append(helper.make_tensor_value_info(LOGITS_FROM, TensorProto.INT64, [1]))
    logits_shape: Shape = ["batch_size", "logits_length", config.vocab_size]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits_shape)]
    for layer in range(config.num_hidden_layers):
        for kind in ("key", "value"):
            past_shape: Shape = ["batch_size", heads, "past_sequence_length", size]
            present_shape: Shape = ["batch_size", heads, "total_sequence_length", size]
            inputs.append(helper.make_tensor_value_info(f"past_key_values.{layer}.{kind}", cache_type, past_shape))
            outputs.append(helper.make_tensor_value_info(f"present.{layer}.{kind}", cache_type, present_shape))
    return helper.make_model(
        helper.make_graph(graph.nodes, "decoder", inputs, outputs, graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
        ir_version=IR_VERSION,
        producer_name="reasoning-edge",
    )
