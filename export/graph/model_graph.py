"""Builds the fused ONNX graph of a dense decoder from its configuration and numpy arrays.

    input_ids ─ GatherBlockQuantized ─┐
      ┌───────────────────────────────┴───────────────────────────────────────────┐
      │ SkipSimplifiedLayerNormalization ─ qkv_proj ─ GroupQueryAttention ─ o_proj │ × num_hidden_layers
      │ SkipSimplifiedLayerNormalization ─ gate_up_proj ─ SiLU·, ─ down_proj       │
      └───────────────────────────────┬───────────────────────────────────────────┘
    logits ── lm_head ── rows from ───┘
                         `logits_from` on

`export.graph.attention` writes attention, and `export.graph.nodes` products and what they read from the file. Input and
output names are those that onnxruntime-genai, optimum and transformers.js expect. `logits_from` is an initializer that
a caller may override: 0, its value, computes the logits of every new token, -1 those of the last alone. Source:
transformers' modeling files of the families in `export.checkpoint.decoder_families`; drawn are those that norm before.

Shapes: B batch, T new tokens, D hidden, F feed-forward.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.checkpoint.model_config import ModelConfig
from export.checkpoint.source import DecoderSizes
from export.checkpoint.tensors import EMBEDDING, LM_HEAD, XIELU_ALPHAS, XIELU_BUFFERS
from export.folder.weights_file import Weights
from export.graph.attention import attended_positions, attention
from export.graph.attention_over_codes import attention_over_codes
from export.graph.matmul_3bits import matmul_3bits
from export.graph.nodes import MICROSOFT, OURS, Nodes
from export.runtime.rows.cached_model import LOGITS_FROM
from toolkit.generation.generate import Floats

Shape = list[str | int | None]

OPSET = 21
INT8_CACHE_OPSET = 24
"""The first opset that has TensorScatter."""
IR_VERSION = 10


def build_graph(
    config: ModelConfig,
    weights: Weights,
    vectors: Mapping[str, Floats],
    cache_scales: Mapping[str, Floats] | None = None,
) -> onnx.ModelProto:
    """Build the whole model; `vectors` holds norm weights and biases by name, which go into the graph's own file.

    `cache_scales` makes the cache int8: each channel's step, [G·A], for each layer's `N.key` and `N.value`.
    """
    graph = Nodes(weights, vectors)
    head = LM_HEAD if LM_HEAD in weights else EMBEDDING
    positions = attended_positions(graph, config)
    stream = Stream(graph, config, graph.times(graph.gather(EMBEDDING, "input_ids"), config.embedding_multiplier))
    norms = config.family.norms
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        normed_BTD = stream.read(prefix, norms.before_attention)
        update_BTD = attention(graph, config, layer, normed_BTD, positions, cache_scales)
        stream.add(update_BTD, prefix, norms.after_attention)
        normed_BTD = stream.read(prefix, norms.before_mlp)
        stream.add(_mlp(graph, config, f"{prefix}.mlp", normed_BTD), prefix, norms.after_mlp)
    normed_BTD = graph.times(stream.read("model", "norm"), 1 / config.logits_scaling)
    graph.linear(head, wanted_rows(graph, normed_BTD), output="logits")
    has_3bits = any(weight.bits == 3 for weight in weights.values())
    return _model(graph, config, has_int8_cache=bool(cache_scales), has_3bits=has_3bits)


class Stream:
    """The residual stream: an update is added when the stream is read again, together with the norm of that."""

    def __init__(self, graph: Nodes, config: ModelConfig, embedded_BTD: str) -> None:
        self._graph, self._config = graph, config
        self._sum_BTD, self._update_BTD = embedded_BTD, ""

    def read(self, prefix: str, norm: str) -> str:
        """Return the stream, normed if there is a norm."""
        graph, update_BTD, self._update_BTD = self._graph, self._update_BTD, ""
        name = f"{prefix}.{norm}.weight"
        if norm and update_BTD:
            normed_BTD, self._sum_BTD = graph.skip_norm(name, update_BTD, self._sum_BTD, self._config)
            return normed_BTD
        if update_BTD:
            self._sum_BTD = graph.node("Add", [self._sum_BTD, update_BTD])
        return graph.norm(name, self._sum_BTD, self._config.rms_norm_eps) if norm else self._sum_BTD

    def add(self, update_BTD: str, prefix: str, norm: str) -> None:
        """Add what attention or an MLP computed, normed if there is a norm."""
        if norm:
            update_BTD = self._graph.norm(f"{prefix}.{norm}.weight", update_BTD, self._config.rms_norm_eps)
        self._update_BTD = self._graph.times(update_BTD, self._config.residual_multiplier)


def _mlp(graph: Nodes, config: ModelConfig, prefix: str, normed_BTD: str) -> str:
    gate_up = graph.linear(f"{prefix}.gate_up_proj.weight", normed_BTD)
    if not config.family.has_gate:
        return graph.linear(f"{prefix}.down_proj.weight", _activation(graph, config, prefix, gate_up))
    gate_BTF, up_BTF = f"{prefix}.gate", f"{prefix}.up"
    graph.node("Split", [gate_up], outputs=[gate_BTF, up_BTF], axis=-1, num_outputs=2)
    active_BTF = _activation(graph, config, prefix, gate_BTF)
    return graph.linear(f"{prefix}.down_proj.weight", graph.node("Mul", [active_BTF, up_BTF]))


def _activation(graph: Nodes, config: ModelConfig, prefix: str, gate_BTF: str) -> str:
    match config.activation:
        case "gelu_tanh":
            return graph.node("Gelu", [gate_BTF], approximate="tanh")
        case "relu_squared":
            positive_BTF = graph.node("Relu", [gate_BTF])
            return graph.node("Mul", [positive_BTF, positive_BTF])
        case "xielu":
            return _xielu(graph, f"{prefix}.act_fn", gate_BTF)
    sigmoid_BTF = graph.node("Sigmoid", [gate_BTF])  # onnxruntime fuses the two into its SiLU
    return graph.node("Mul", [gate_BTF, sigmoid_BTF])


def _xielu(graph: Nodes, prefix: str, gate_BTF: str) -> str:
    """Write beta x + alpha_p x² where x is positive, and beta x + alpha_n (eˣ - 1 - x) elsewhere."""
    alpha_p, alpha_n, beta, eps = (graph.vector(f"{prefix}.{name}") for name in (*XIELU_ALPHAS, *XIELU_BUFFERS))
    positive_BTF = graph.node("Mul", [graph.node("Mul", [gate_BTF, gate_BTF]), alpha_p])
    grown_BTF = graph.node("Elu", [graph.node("Min", [gate_BTF, eps])])  # eˣ - 1 below 0
    negative_BTF = graph.node("Mul", [graph.node("Sub", [grown_BTF, gate_BTF]), alpha_n])
    zero = graph.constant("zero", np.array(0, dtype=np.float32))
    is_positive = graph.node("Greater", [gate_BTF, zero])
    curved_BTF = graph.node("Where", [is_positive, positive_BTF, negative_BTF])
    return graph.node("Add", [curved_BTF, graph.node("Mul", [gate_BTF, beta])])


def wanted_rows(graph: Nodes, rows_BTX: str, output: str | None = None) -> str:
    """Slice the rows of the new tokens from `logits_from` on."""
    begin = graph.constant(LOGITS_FROM, np.array([0], dtype=np.int64))
    end = graph.constant("logits_to", np.array([np.iinfo(np.int64).max], dtype=np.int64))
    token_axis = graph.constant("token_axis", np.array([1], dtype=np.int64))
    return graph.node("Slice", [rows_BTX, begin, end, token_axis], outputs=[output] if output else None)


def decoder_inputs(sizes: DecoderSizes, cache_type: int = TensorProto.FLOAT) -> list[onnx.ValueInfoProto]:
    """Return the inputs of a graph that the runner opens."""
    return [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
        helper.make_tensor_value_info(LOGITS_FROM, TensorProto.INT64, [1]),
        *_caches(sizes, "past_key_values", cache_type, "past_sequence_length"),
    ]


def decoder_outputs(sizes: DecoderSizes, cache_type: int = TensorProto.FLOAT) -> list[onnx.ValueInfoProto]:
    """Return the outputs of a graph that the runner opens."""
    shape: Shape = ["batch_size", "logits_length", sizes.vocab_size]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
    return [logits, *_caches(sizes, "present", cache_type, "total_sequence_length")]


def _caches(sizes: DecoderSizes, prefix: str, cache_type: int, length: str) -> list[onnx.ValueInfoProto]:
    shape: Shape = ["batch_size", sizes.num_key_value_heads, length, sizes.padded_head_dim]
    names = [f"{prefix}.{layer}.{kind}" for layer in range(sizes.num_hidden_layers) for kind in ("key", "value")]
    return [helper.make_tensor_value_info(name, cache_type, shape) for name in names]


def _model(graph: Nodes, config: ModelConfig, *, has_int8_cache: bool, has_3bits: bool) -> onnx.ModelProto:
    cache_type = TensorProto.INT8 if has_int8_cache else TensorProto.FLOAT
    opset = INT8_CACHE_OPSET if has_int8_cache else OPSET
    inputs, outputs = decoder_inputs(config, cache_type), decoder_outputs(config, cache_type)
    functions = [attention_over_codes(opset)] if has_int8_cache else []
    functions += [matmul_3bits(opset)] if has_3bits else []
    domains = {"": opset, MICROSOFT: 1} | ({OURS: 1} if functions else {})
    return helper.make_model(
        helper.make_graph(graph.nodes, "decoder", inputs, outputs, graph.initializers),
        opset_imports=[helper.make_opsetid(*domain) for domain in domains.items()],
        functions=functions,
        ir_version=IR_VERSION,
        producer_name="reasoning-edge",
    )
