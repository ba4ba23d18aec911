"""From a model and calibration tokens to a basis of lower rank for each layer's latents.

A cached latent c becomes z = c·E of P < C numbers, and attention reads ĉ = z·D. Since c is used only through
`kv_b_proj`, D folds into that (W·D takes the place of W), and ĉ itself is never made.

E and D minimize the error of the attention's output to first order, with e = c − ĉ independent from token to token.
Of a head with weights a, scores q̃·c·scaling (q̃ = q_nope·W_UK) and outputs through O, the part of `o_proj`:

    δout = Σ_s a_s · (scaling · q̃·e_s) · O·W_UV·(c_s − c̄)  +  Σ_s a_s · O·W_UV·e_s
    E|δout|² ∝ E[eᵀ M e]       M = Σ_heads  scaling² · ν · W_UKᵀ E[q qᵀ] W_UK  +  V
                                V = W_UVᵀ OᵀO W_UV        ν = trace(V · Cov c)

The best ĉ of rank P under the metric M are the first P principal axes of M^½·c: with U the leading eigenvectors of
M^½ E[c cᵀ] M^½,

    E = M^½ U Q        D = Qᵀ Uᵀ M^-½

(M alone would be the value of a direction, E[c cᵀ] alone plain PCA; whitening by both is SVD-LLM's step, Wang et al.
2024, section 3.1, with activations only). Q is any rotation: a random one spreads the numbers evenly, for which int8
wants a smaller step (QuaRot, Ashkboos et al. 2024, section 4). With P = C nothing is lost but by rounding.
"""

# Shapes: B batch, S tokens, D hidden, H heads, N nope, U value, X nope + value, C kv rank, P rank kept of it.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

from toolkit.chat_format import ChatFormat
from toolkit.errors import InputError
from toolkit.ledger import PROBLEMS, TRACES
from toolkit.records import Problem, Trace, read_records

LatentAttention: TypeAlias = DeepseekV2Attention | DeepseekV3Attention
MOST_TOKENS = 16384
"""Tokens after which calibration has seen enough: 32 for each of 512 dimensions."""
DAMPING = 1e-6
"""Part of M's mean eigenvalue that each direction is worth at least, so that M can be inverted."""


@dataclass(frozen=True)
class Basis:
    """One layer's: `encode` [C, P], `decode` [P, C], and `folded` [H, N + U, P], `kv_b_proj` after `decode`."""

    encode: Tensor
    decode: Tensor
    folded: Tensor

    def project(self, latent: Tensor) -> Tensor:
        """In fp32, since it is read many times and written once."""
        return (latent.float() @ self.encode).to(latent.dtype)

    def lift(self, latent: Tensor) -> Tensor:
        return (latent.float() @ self.decode).to(latent.dtype)


def latent_layers(model: nn.Module) -> list[LatentAttention]:
    return [module for module in model.modules() if isinstance(module, LatentAttention)]


@torch.inference_mode()
def calibrate(model: PreTrainedModel, rows: Sequence[Sequence[int]], rank: int) -> list[Basis]:
    """A basis for each layer, from the token rows' latents and queries (up to `MOST_TOKENS` tokens).

    Raises `InputError` where the rank is not within the model's, or is more than the tokens.
    """
    layers = latent_layers(model)
    full = layers[0].kv_lora_rank
    if not 1 <= rank <= full:
        raise InputError(f"the cache's rank ({rank}) must be from 1 to the model's kv_lora_rank ({full})")
    moments = [_Moments(layer) for layer in layers]
    seen = 0
    for row in rows:
        model(input_ids=torch.tensor([row], device=model.device), use_cache=False, logits_to_keep=1)
        seen += len(row)
        if seen >= MOST_TOKENS:
            break
    for moment in moments:
        moment.close()
    if seen < rank:
        raise InputError(f"calibration tokens ({seen}) must be at least the cache's rank ({rank}); give more traces")
    return [_basis(moment, rank) for moment in moments]


def trace_rows(folder: Path, chat_format: ChatFormat) -> list[list[int]]:
    """The token rows of a folder of traces (problems.jsonl, traces.jsonl): questions with their answers."""
    questions = {problem.id: problem.question for problem in read_records(folder / PROBLEMS, Problem)}
    return [
        chat_format.training_ids(questions[trace.problem_id], trace.reasoning, trace.answer)[0]
        for trace in read_records(folder / TRACES, Trace)
    ]


class _Moments:
    """Watches a layer compute, and sums its latents' and queries' products."""

    def __init__(self, layer: LatentAttention) -> None:
        self.layer = layer
        self.tokens = 0
        weight = layer.kv_b_proj.weight
        self.latent = weight.new_zeros(layer.kv_lora_rank, dtype=torch.float64)
        self.latents = weight.new_zeros(layer.kv_lora_rank, layer.kv_lora_rank, dtype=torch.float64)
        heads, nope = layer.num_heads, layer.qk_nope_head_dim
        self.queries = weight.new_zeros(heads, nope, nope, dtype=torch.float64)
        query = layer.q_proj if layer.q_lora_rank is None else layer.q_b_proj
        self._hooks = [
            layer.kv_a_layernorm.register_forward_hook(lambda module, args, output: self._add_latents(output)),
            query.register_forward_hook(lambda module, args, output: self._add_queries(output)),
        ]

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _add_latents(self, latent_BSC: Tensor) -> None:
        latent_SC = latent_BSC.flatten(0, -2).double()
        self.latent += latent_SC.sum(0)
        self.latents += latent_SC.T @ latent_SC
        self.tokens += len(latent_SC)

    def _add_queries(self, query: Tensor) -> None:
        query_SHX = query.flatten(0, -2).unflatten(-1, (self.layer.num_heads, -1))
        query_HSN = query_SHX[..., : self.layer.qk_nope_head_dim].transpose(0, 1).double()
        self.queries += query_HSN.mT @ query_HSN


def _basis(moments: _Moments, rank: int) -> Basis:
    layer = moments.layer
    weight_HXC = layer.kv_b_proj.weight.view(layer.num_heads, -1, layer.kv_lora_rank)
    second_CC = moments.latents / moments.tokens
    root_CC, inverse_CC = _roots(_metric(moments, weight_HXC.double()))
    axes_CC = torch.linalg.eigh(root_CC @ second_CC @ root_CC).eigenvectors  # ascending
    axes_CP = axes_CC[:, -rank:] @ _rotation(rank).to(axes_CC)
    encode_CP, decode_PC = root_CC @ axes_CP, axes_CP.T @ inverse_CC
    folded_HXP = weight_HXC.double() @ decode_PC.T
    return Basis(encode_CP.float(), decode_PC.float(), folded_HXP.to(weight_HXC.dtype))


def _metric(moments: _Moments, weight_HXC: Tensor) -> Tensor:
    """M: how much an error of the latent moves the attention's output."""
    layer = moments.layer
    mean_C = moments.latent / moments.tokens
    covariance_CC = moments.latents / moments.tokens - mean_C.outer(mean_C)
    output_HDU = layer.o_proj.weight.double().unflatten(1, (layer.num_heads, -1)).transpose(0, 1)
    metric_CC = torch.zeros_like(covariance_CC)
    for weight_XC, query_NN, output_DU in zip(weight_HXC, moments.queries / moments.tokens, output_HDU, strict=True):
        key_NC, value_UC = weight_XC.split([layer.qk_nope_head_dim, layer.v_head_dim])
        output_UU = output_DU.T @ output_DU
        value_CC = value_UC.T @ output_UU @ value_UC
        spread = (value_CC * covariance_CC).sum()
        metric_CC += layer.scaling**2 * spread * (key_NC.T @ query_NN @ key_NC) + value_CC
    return metric_CC


def _roots(metric_CC: Tensor) -> tuple[Tensor, Tensor]:
    """M^½ and M^-½."""
    values_C, vectors_CC = torch.linalg.eigh(metric_CC)
    values_C = values_C.clamp(min=0) + DAMPING * values_C.mean()
    root_C = values_C.sqrt()
    return (vectors_CC * root_C) @ vectors_CC.T, (vectors_CC / root_C) @ vectors_CC.T


def _rotation(rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rotation_PP: Tensor = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64)).Q
    return rotation_PP
