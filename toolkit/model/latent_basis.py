"""Fits a basis of lower rank to each layer's latents, from calibration tokens.

A cached latent c becomes z = c·E of P < C numbers, and attention reads ĉ = z·D. Since c is used only through
`kv_b_proj` (W, whose rows are the keys and values of all heads), D folds into it: W·Dᵀ takes its place, and ĉ is never
computed.

E and D minimize the error of keys and values over the calibration tokens, E|W·c − W·ĉ|² (the objective of SVD-LLM, Wang
et al. 2024, section 3.1). With M = WᵀW that is E|M^½·(c − ĉ)|², and by Eckart and Young the best M^½·ĉ of rank P is the
projection of M^½·c on its principal axes: with U the leading eigenvectors of M^½ E[c cᵀ] M^½,

    E = M^½ U Q        D = Qᵀ Uᵀ M^-½

Q may be any rotation; a random one spreads the numbers evenly, so int8 needs a smaller step (QuaRot, Ashkboos et al.
2024, section 4). With P = C only rounding loses anything.

Alternatives tried on the built-in teacher: M = 1 (PCA of the latents) has 1.3 to 2.3 times the KL divergence of its
next tokens; an M that weights keys by the queries' second moment, values by `o_proj` and both by the spread of the
values does no better.
"""

# Shapes: B batch, S tokens, H heads, X nope + value of a head, C kv rank, P rank kept of it.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

from toolkit.errors import InputError
from toolkit.figures.ledger import PROBLEMS, TRACES
from toolkit.formats.chat_format import ChatFormat
from toolkit.records import Problem, Trace, read_records

LatentAttention: TypeAlias = DeepseekV2Attention | DeepseekV3Attention
MOST_TOKENS = 16384
"""Tokens that are enough to calibrate on: 32 for each of 512 dimensions."""
DAMPING = 1e-6
"""The share of M's mean eigenvalue that is added to each eigenvalue, so that M can be inverted."""


@dataclass(frozen=True)
class Basis:
    """One layer's basis: `encode` [C, P], `decode` [P, C], and `folded` [H, N + U, P], `kv_b_proj` after `decode`."""

    encode: Tensor
    decode: Tensor
    folded: Tensor

    def project(self, latent: Tensor) -> Tensor:
        """Project in fp32, since a latent is written once and read many times."""
        return (latent.float() @ self.encode).to(latent.dtype)

    def lift(self, latent: Tensor) -> Tensor:
        return (latent.float() @ self.decode).to(latent.dtype)


def latent_layers(model: nn.Module) -> list[LatentAttention]:
    return [module for module in model.modules() if isinstance(module, LatentAttention)]


@torch.no_grad()
def calibrate(model: PreTrainedModel, rows: Sequence[Sequence[int]], rank: int) -> list[Basis]:
    """Fit a basis for each layer to the token rows' latents (up to `MOST_TOKENS` tokens).

    Raises `InputError` if the rank is larger than the model's, or than the number of tokens.
    """
    layers = latent_layers(model)
    full = layers[0].kv_lora_rank
    if not 1 <= rank <= full:
        raise InputError(f"the cache's rank ({rank}) must be from 1 to the model's kv_lora_rank ({full})")
    moments = [layer.kv_b_proj.weight.new_zeros(full, full, dtype=torch.float64) for layer in layers]
    hooks = [
        layer.kv_a_layernorm.register_forward_hook(partial(_add_latents, moment))
        for layer, moment in zip(layers, moments, strict=True)
    ]
    seen = 0
    for row in rows:
        row = row[: model.config.max_position_embeddings]
        model(input_ids=torch.tensor([row], device=model.device), use_cache=False, logits_to_keep=1)
        seen += len(row)
        if seen >= MOST_TOKENS:
            break
    for hook in hooks:
        hook.remove()
    if seen < rank:
        raise InputError(f"calibration tokens ({seen}) must be at least the cache's rank ({rank}); give more traces")
    return [_basis(layer, moment, rank) for layer, moment in zip(layers, moments, strict=True)]


def trace_rows(folder: Path, chat_format: ChatFormat) -> list[tuple[list[int], list[bool]]]:
    """Read the token rows of a folder of traces (problems.jsonl, traces.jsonl), each with True on its completion.

    Raises `InputError` if the problem of a trace is missing.
    """
    asked = {problem.id: problem.messages for problem in read_records(folder / PROBLEMS, Problem)}
    rows = []
    for trace in read_records(folder / TRACES, Trace):
        if trace.problem_id not in asked:
            raise InputError(
                f"problem {trace.problem_id} of {folder / TRACES} must be in {folder / PROBLEMS}; copy the folder again"
            )
        rows.append(chat_format.training_ids(asked[trace.problem_id], trace.reasoning, trace.answer))
    return rows


def _add_latents(moment_CC: Tensor, module: nn.Module, args: object, latent_BSC: Tensor) -> None:
    latent_SC = latent_BSC.flatten(0, -2).double()  # sums over thousands, whose small eigenvalues matter
    moment_CC += latent_SC.T @ latent_SC


def _basis(layer: LatentAttention, moment_CC: Tensor, rank: int) -> Basis:
    weight = layer.kv_b_proj.weight.double()
    root_CC, inverse_CC = _roots(weight.T @ weight)
    axes_CC = torch.linalg.eigh(root_CC @ moment_CC @ root_CC).eigenvectors  # ascending
    axes_CP = axes_CC[:, -rank:] @ _rotation(rank).to(axes_CC)
    encode_CP, decode_PC = root_CC @ axes_CP, axes_CP.T @ inverse_CC
    folded_HXP = (weight @ decode_PC.T).unflatten(0, (layer.num_heads, -1))
    return Basis(encode_CP.float(), decode_PC.float(), folded_HXP.to(layer.kv_b_proj.weight.dtype))


def _roots(metric_CC: Tensor) -> tuple[Tensor, Tensor]:
    """Return M^½ and M^-½."""
    values_C, vectors_CC = torch.linalg.eigh(metric_CC)
    values_C = values_C.clamp(min=0) + DAMPING * values_C.mean()
    root_C = values_C.sqrt()
    return (vectors_CC * root_C) @ vectors_CC.T, (vectors_CC / root_C) @ vectors_CC.T


def _rotation(rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rotation_PP: Tensor = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64)).Q
    return rotation_PP
