"""What the classes of transformers that can be exported compute, beyond the numbers in their config.json.

One decoder describes them all: attention and an MLP, each with an optional norm before and another after it, are added
to a residual stream. The graph (`export.graph`) and the calibration (`export.calibration.layer`) are written once, for
this decoder. Source: transformers' modeling file of each class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LayerNorms:
    """The names of a layer's norms; empty where there is none."""

    before_attention: str = ""
    after_attention: str = ""
    before_mlp: str = ""
    after_mlp: str = ""

    def __iter__(self) -> Iterator[str]:
        return (name for name in astuple(self) if name)


BEFORE = LayerNorms(before_attention="input_layernorm", before_mlp="post_attention_layernorm")
AFTER = LayerNorms(after_attention="post_attention_layernorm", after_mlp="post_feedforward_layernorm")

SEPARATE = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
"""The checkpoint's matrices that each stored matrix of a layer consists of: those that read the same input."""
MATRICES = tuple(SEPARATE)
"""The stored matrices of a layer."""
JOINED_MLP = SEPARATE | {"mlp.gate_up_proj": ("mlp.gate_up_proj",)}
SHARED_MLP = SEPARATE | {
    "mlp.gate_up_proj": ("shared_mlp.input_linear",),
    "mlp.down_proj": ("shared_mlp.output_linear",),
}
UP_ALONE = SEPARATE | {"mlp.gate_up_proj": ("mlp.up_proj",)}
JOINED = JOINED_MLP | {"self_attn.qkv_proj": ("self_attn.qkv_proj",)}

Bias = str | bool
"""Whether a matrix has a bias, or the key of config.json that says so."""


@dataclass(frozen=True, kw_only=True)
class DecoderFamily:
    """What a class of transformers computes."""

    norms: LayerNorms = BEFORE
    norms_add_one: bool = False
    """Whether norms multiply by 1 + weight."""
    norms_center: bool = False
    """Whether norms subtract the mean before, and add a bias behind: LayerNorm rather than RMSNorm."""
    norm_eps: str = "rms_norm_eps"
    """The key of what norms add to the mean square."""
    qk_norm: Literal["", "each head", "all heads"] = ""
    """Over what queries and keys are normed before they are rotated."""
    qkv_bias: Bias = False
    output_bias: Bias = False
    mlp_bias: Bias = False
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: SEPARATE)
    windows: Literal["", "each layer", "by type"] = ""
    """Which layers attend to a window: none, each, or those that `layer_types` says."""
    rotates_neighbours: bool = False
    """Whether channels 2r and 2r + 1 are rotated together, rather than r and r + R."""
    scales_embedding: bool = False
    """Whether embeddings are multiplied by the square root of the hidden size."""
    has_multipliers: bool = False
    """Whether config.json has factors for embeddings, attention, the residual stream and logits."""
    multiplies_logits: bool = False
    """Whether the factor for logits multiplies them; others divide by it."""
    has_gate: bool = True
    """Whether an MLP multiplies what passed through the activation by a second product."""
    intermediate_size: str = "intermediate_size"
    """The key of the MLPs' size."""
    activation: str = "hidden_act"
    """The key of what an MLP's gate passes through, or its only product."""
    score_size: str = ""
    """The key of the number by whose root scores are divided, where that is not the head size."""


_GLM = DecoderFamily(qkv_bias="attention_bias", sources=JOINED_MLP, rotates_neighbours=True)
_BIAS = "attention_bias"
_UNGATED = DecoderFamily(qkv_bias=_BIAS, output_bias=_BIAS, mlp_bias="mlp_bias", sources=UP_ALONE, has_gate=False)

FAMILIES: Mapping[str, DecoderFamily] = {
    "ApertusForCausalLM": DecoderFamily(
        norms=LayerNorms(before_attention="attention_layernorm", before_mlp="feedforward_layernorm"),
        qk_norm="each head",
        qkv_bias=_BIAS,
        output_bias=_BIAS,
        sources=UP_ALONE,
        has_gate=False,
    ),
    "ArceeForCausalLM": _UNGATED,
    "CwmForCausalLM": DecoderFamily(windows="by type"),
    "Ernie4_5ForCausalLM": DecoderFamily(
        qkv_bias="use_bias", output_bias="use_bias", mlp_bias="use_bias", rotates_neighbours=True
    ),
    "Exaone4ForCausalLM": DecoderFamily(norms=AFTER, qk_norm="each head", windows="by type"),
    "GemmaForCausalLM": DecoderFamily(norms_add_one=True, scales_embedding=True, qkv_bias=_BIAS, output_bias=_BIAS),
    "Gemma3ForCausalLM": DecoderFamily(
        norms=LayerNorms(
            before_attention="input_layernorm",
            after_attention="post_attention_layernorm",
            before_mlp="pre_feedforward_layernorm",
            after_mlp="post_feedforward_layernorm",
        ),
        norms_add_one=True,
        qk_norm="each head",
        windows="by type",
        scales_embedding=True,
        activation="hidden_activation",
        score_size="query_pre_attn_scalar",
        qkv_bias=_BIAS,
        output_bias=_BIAS,
    ),
    "GlmForCausalLM": _GLM,
    "Glm4ForCausalLM": DecoderFamily(
        norms=LayerNorms(
            before_attention="input_layernorm",
            after_attention="post_self_attn_layernorm",
            before_mlp="post_attention_layernorm",
            after_mlp="post_mlp_layernorm",
        ),
        qkv_bias=_GLM.qkv_bias,
        sources=_GLM.sources,
        rotates_neighbours=True,
    ),
    "GraniteForCausalLM": DecoderFamily(mlp_bias="mlp_bias", has_multipliers=True, qkv_bias=_BIAS, output_bias=_BIAS),
    "GraniteMoeHybridForCausalLM": DecoderFamily(
        qkv_bias=_BIAS,
        output_bias=_BIAS,
        sources=SHARED_MLP,
        has_multipliers=True,
        intermediate_size="shared_intermediate_size",
    ),
    "HeliumForCausalLM": DecoderFamily(qkv_bias=_BIAS, mlp_bias="mlp_bias", rotates_neighbours=True),
    "HyperCLOVAXForCausalLM": DecoderFamily(
        norms=LayerNorms(
            before_attention="input_layernorm",
            after_attention="post_norm1",
            before_mlp="post_attention_layernorm",
            after_mlp="post_norm2",
        ),
        mlp_bias="mlp_bias",
        has_multipliers=True,
        multiplies_logits=True,
        qkv_bias=_BIAS,
        output_bias=_BIAS,
    ),
    "Jais2ForCausalLM": replace(_UNGATED, norms_center=True, norm_eps="layer_norm_eps"),
    "LlamaForCausalLM": DecoderFamily(mlp_bias="mlp_bias", qkv_bias=_BIAS, output_bias=_BIAS),
    "MinistralForCausalLM": DecoderFamily(windows="by type"),
    "Ministral3ForCausalLM": DecoderFamily(windows="each layer"),
    "MistralForCausalLM": DecoderFamily(windows="each layer"),
    "NemotronForCausalLM": replace(_UNGATED, norms_center=True, norms_add_one=True, norm_eps="norm_eps"),
    "Olmo2ForCausalLM": DecoderFamily(norms=AFTER, qk_norm="all heads", qkv_bias=_BIAS, output_bias=_BIAS),
    "Olmo3ForCausalLM": DecoderFamily(
        norms=AFTER, qk_norm="all heads", windows="by type", qkv_bias=_BIAS, output_bias=_BIAS
    ),
    "Phi3ForCausalLM": DecoderFamily(sources=JOINED, windows="each layer"),
    "Qwen2ForCausalLM": DecoderFamily(qkv_bias=True, windows="by type"),
    "Qwen3ForCausalLM": DecoderFamily(qk_norm="each head", windows="by type", qkv_bias=_BIAS, output_bias=_BIAS),
    "SeedOssForCausalLM": DecoderFamily(
        qkv_bias="attention_bias", output_bias="attention_out_bias", mlp_bias="mlp_bias"
    ),
    "SmolLM3ForCausalLM": DecoderFamily(mlp_bias="mlp_bias", windows="by type", qkv_bias=_BIAS, output_bias=_BIAS),
    "Starcoder2ForCausalLM": DecoderFamily(
        norms_center=True,
        norm_eps="norm_epsilon",
        qkv_bias="use_bias",
        output_bias="use_bias",
        mlp_bias="use_bias",
        sources=SEPARATE | {"mlp.gate_up_proj": ("mlp.c_fc",), "mlp.down_proj": ("mlp.c_proj",)},
        has_gate=False,
        windows="each layer",
    ),
}
"""By the name of the class."""
OTHER_NAMES: Mapping[str, str] = {
    "IQuestCoderForCausalLM": "LlamaForCausalLM",
    "InternLM3ForCausalLM": "LlamaForCausalLM",
}
"""Classes that published configurations name, and those by which transformers computes them."""
