"""Log-probabilities of chosen tokens, and entropies, without keeping the logits.

    logits z = h·Wᵀ / T      log p[y] = z[y] − log Σ exp z      ∂ log p[y] / ∂z = onehot(y) − p

The logits of C tokens over a vocabulary of V would be the largest tensors of a step. A chunk of rows is made at a time,
in the forward pass and again in the backward pass, where it is turned into its own gradient in place.
"""

# Shapes: C tokens that are drawn, D hidden, V vocabulary.

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from distill.training.completion_loss import LOGITS_BYTES, ROWS


def token_probabilities(
    hidden_CD: Tensor, weight_VD: Tensor, target_C: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return each target's log-probability, and the entropy of its distribution, which has no gradient; in fp32."""
    found: tuple[Tensor, Tensor] = _TokenProbabilities.apply(hidden_CD, weight_VD, target_C, temperature)  # type: ignore[no-untyped-call]
    return found


class _TokenProbabilities(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_CD: Tensor, weight_VD: Tensor, target_C: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        log_p_C, entropy_C = (torch.empty(len(target_C), device=hidden_CD.device) for _ in range(2))
        for chunk, logits_CV in _chunks(hidden_CD, weight_VD):
            for rows in _rows(len(logits_CV)):
                place = slice(chunk.start + rows.start, chunk.start + rows.stop)
                log_p_RV = _log_softmax(logits_CV[rows], temperature)
                log_p_C[place] = log_p_RV.gather(1, target_C[place, None])[:, 0]
                entropy_C[place] = -(log_p_RV.exp() * log_p_RV).sum(1)
        ctx.save_for_backward(hidden_CD, weight_VD, target_C)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_C)
        return log_p_C, entropy_C

    @staticmethod
    def backward(ctx: Any, d_log_p_C: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_CD, weight_VD, target_C = ctx.saved_tensors
        d_hidden_CD = torch.empty_like(hidden_CD)
        d_weight_VD = None
        if ctx.needs_input_grad[1]:
            d_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)  # in bf16 a sum of chunks would lose bits
        for chunk, logits_CV in _chunks(hidden_CD, weight_VD):
            for rows in _rows(len(logits_CV)):
                place = slice(chunk.start + rows.start, chunk.start + rows.stop)
                log_p_RV = _log_softmax(logits_CV[rows], ctx.temperature)
                target_R1 = target_C[place, None]
                log_p_R1 = log_p_RV.gather(1, target_R1)
                gradient_RV = log_p_RV.exp_().neg_().scatter_(1, target_R1, -log_p_R1.expm1())  # 1 − p, exact near 1
                logits_CV[rows] = gradient_RV.mul_(d_log_p_C[place, None] / ctx.temperature)
            torch.matmul(logits_CV, weight_VD, out=d_hidden_CD[chunk])
            if d_weight_VD is not None:
                d_weight_VD += logits_CV.T @ hidden_CD[chunk]
        return d_hidden_CD, None if d_weight_VD is None else d_weight_VD.to(weight_VD.dtype), None, None


def _chunks(hidden_CD: Tensor, weight_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the logits of some rows at a time, and which rows these are."""
    chunk = max(1, LOGITS_BYTES // (len(weight_VD) * hidden_CD.dtype.itemsize) // ROWS) * ROWS
    for start in range(0, len(hidden_CD), chunk):
        rows = slice(start, min(start + chunk, len(hidden_CD)))
        yield rows, hidden_CD[rows] @ weight_VD.T


def _rows(count: int) -> Iterator[slice]:
    for start in range(0, count, ROWS):
        yield slice(start, min(start + ROWS, count))


def _log_softmax(logits_RV: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(logits_RV.float() / temperature, dim=-1)
