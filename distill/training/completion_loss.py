"""Cross entropy of completion tokens; computes the head for these alone and makes no second copy of the logits.

The logits of C tokens over a vocabulary of V are the largest tensor of a small model's training step. They are computed
once, in the weights' dtype, and turned into their own gradient in place, a few rows at a time in fp32:

    loss = Σ_c −log p_c[y_c]        ∂loss/∂logits = p − onehot(y)
"""

# Shapes: N tokens of a padding-free batch, C tokens that predict a completion token, D hidden, V vocabulary.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""The label of a token that is not trained on, as in transformers."""
ROWS = 64
"""Rows of logits in fp32 at once: 64 × 49,152 fit a CPU's last-level cache."""


def labelled(ids: list[int], trained: list[bool]) -> dict[str, list[int]]:
    """Return an example's `input_ids`, and `labels` that equal the ids of the tokens that are trained on."""
    return {"input_ids": ids, "labels": [id if learned else IGNORED for id, learned in zip(ids, trained, strict=True)]}


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_CD: Tensor, weight_VD: Tensor, target_C: Tensor) -> Tensor:
        logits_CV = hidden_CD @ weight_VD.T
        loss = torch.zeros((), dtype=torch.float32, device=hidden_CD.device)
        for start in range(0, len(target_C), ROWS):
            rows, target = slice(start, start + ROWS), target_C[start : start + ROWS, None]
            log_p = torch.log_softmax(logits_CV[rows], dim=-1, dtype=torch.float32)
            log_p_target = log_p.gather(1, target)
            loss -= log_p_target.sum()
            gradient = log_p.exp_().scatter_(1, target, log_p_target.expm1())  # p − 1, exact where p is near 1
            logits_CV[rows] = gradient
        ctx.save_for_backward(hidden_CD, weight_VD, logits_CV)
        return loss

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        hidden_CD, weight_VD, d_logits_CV = ctx.saved_tensors
        scale = d_loss.to(hidden_CD.dtype)
        d_hidden_CD = (d_logits_CV @ weight_VD) * scale
        d_weight_VD = d_logits_CV.T @ (hidden_CD * scale) if ctx.needs_input_grad[1] else None
        return d_hidden_CD, d_weight_VD, None


def summed_loss(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    """Sum the cross entropy over labels that are not `IGNORED`; token n predicts label n + 1."""
    target_N = labels_N[1:]
    predicting_C = (target_N != IGNORED).nonzero().squeeze(1)
    hidden_CD = hidden_ND.index_select(0, predicting_C)
    target_C = target_N.index_select(0, predicting_C)
    loss: Tensor = _SummedLoss.apply(hidden_CD, weight_VD, target_C)  # type: ignore[no-untyped-call]
    return loss


def spread_loss(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    """Sum over the same tokens the cross entropy to the uniform distribution, which label smoothing mixes in."""
    hidden_CD = hidden_ND[:-1][labels_N[1:] != IGNORED]
    spread = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
    for hidden_RD in hidden_CD.split(ROWS):
        spread = spread - torch.log_softmax(hidden_RD @ weight_VD.T, dim=-1, dtype=torch.float32).mean(dim=-1).sum()
    return spread
