"""Cross entropy of completion tokens; computes the head for these alone and makes no second copy of the logits.

The logits of C tokens over a vocabulary of V are the largest tensor of a small model's training step. They are computed
once, in the weights' dtype, and turned into their own gradient in place, a few rows at a time in fp32:

    loss = Σ_c −log p_c[y_c]        ∂loss/∂logits = p − onehot(y)

Where they would take more than `LOGITS_BYTES` (32,768 tokens over 151,936 words take 10 GB in bf16), a chunk of rows is
made at a time, and what it contributes to the gradients of hidden states and head at once, so that no logits are kept.
"""

# Shapes: N tokens of a padding-free batch, C tokens that predict a completion token, D hidden, V vocabulary.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill.students.architectures import logits_scale
from distill.training.document_attention import Documents

IGNORED = -100
"""The label of a token that is not trained on, as in transformers."""
ROWS = 64
"""Rows of logits in fp32 at once: 64 × 49,152 fit a CPU's last-level cache."""
LOGITS_BYTES = 2**30
"""Most bytes of logits at once; the largest batch of a student with 49,152 words has fewer in bf16."""


def labelled(ids: list[int], trained: list[bool]) -> dict[str, list[int]]:
    """Return an example's `input_ids`, and `labels` that equal the ids of the tokens that are trained on."""
    return {"input_ids": ids, "labels": [id if learned else IGNORED for id, learned in zip(ids, trained, strict=True)]}


def _turn_into_gradient(logits_CV: Tensor, target_C: Tensor, loss: Tensor) -> None:
    """Add the rows' cross entropy to `loss`, and replace the logits by their gradient."""
    for start in range(0, len(target_C), ROWS):
        rows, target = slice(start, start + ROWS), target_C[start : start + ROWS, None]
        log_p = torch.log_softmax(logits_CV[rows], dim=-1, dtype=torch.float32)
        log_p_target = log_p.gather(1, target)
        loss -= log_p_target.sum()
        gradient = log_p.exp_().scatter_(1, target, log_p_target.expm1())  # p − 1, exact where p is near 1
        logits_CV[rows] = gradient


class _SummedLoss(torch.autograd.Function):
    """All logits at once."""

    @staticmethod
    def forward(ctx: Any, hidden_CD: Tensor, weight_VD: Tensor, target_C: Tensor) -> Tensor:
        logits_CV = hidden_CD @ weight_VD.T
        loss = torch.zeros((), dtype=torch.float32, device=hidden_CD.device)
        _turn_into_gradient(logits_CV, target_C, loss)
        ctx.save_for_backward(hidden_CD, weight_VD, logits_CV)
        return loss

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        hidden_CD, weight_VD, d_logits_CV = ctx.saved_tensors
        scale = d_loss.to(hidden_CD.dtype)
        d_hidden_CD = (d_logits_CV @ weight_VD) * scale
        d_weight_VD = d_logits_CV.T @ (hidden_CD * scale) if ctx.needs_input_grad[1] else None
        return d_hidden_CD, d_weight_VD, None


class _ChunkedLoss(torch.autograd.Function):
    """A chunk of logits at a time; the gradients are those of the summed loss until a backward pass scales them."""

    @staticmethod
    def forward(ctx: Any, hidden_CD: Tensor, weight_VD: Tensor, target_C: Tensor, chunk: int, learns: bool) -> Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden_CD.device)
        d_hidden_CD = torch.empty_like(hidden_CD) if learns else None
        d_weight_VD = None
        if learns and ctx.needs_input_grad[1]:
            d_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)  # in bf16 a sum of chunks would lose bits
        for start in range(0, len(target_C), chunk):
            rows = slice(start, start + chunk)
            logits_CV = hidden_CD[rows] @ weight_VD.T
            _turn_into_gradient(logits_CV, target_C[rows], loss)
            if d_hidden_CD is not None:
                torch.matmul(logits_CV, weight_VD, out=d_hidden_CD[rows])
            if d_weight_VD is not None:
                d_weight_VD += logits_CV.T @ hidden_CD[rows]
            del logits_CV  # before the next chunk's are made
        ctx.gradients, ctx.dtype = (d_hidden_CD, d_weight_VD), weight_VD.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        (d_hidden_CD, d_weight_VD), ctx.gradients = ctx.gradients, None  # they are scaled in place, once
        d_hidden_CD.mul_(d_loss)
        if d_weight_VD is not None:
            d_weight_VD = d_weight_VD.mul_(d_loss).to(ctx.dtype)
        return d_hidden_CD, d_weight_VD, None, None, None


def summed_loss(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    """Sum the cross entropy over labels that are not `IGNORED`; token n predicts label n + 1."""
    target_N = labels_N[1:]
    predicting_C = (target_N != IGNORED).nonzero().squeeze(1)
    hidden_CD = hidden_ND.index_select(0, predicting_C)
    target_C = target_N.index_select(0, predicting_C)
    chunk = max(1, LOGITS_BYTES // (len(weight_VD) * hidden_CD.dtype.itemsize) // ROWS) * ROWS
    loss: Tensor
    if len(target_C) <= chunk:
        loss = _SummedLoss.apply(hidden_CD, weight_VD, target_C)  # type: ignore[no-untyped-call]
    else:
        learns = torch.is_grad_enabled()
        loss = _ChunkedLoss.apply(hidden_CD, weight_VD, target_C, chunk, learns)  # type: ignore[no-untyped-call]
    return loss


def spread_loss(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    """Sum over the same tokens the cross entropy to the uniform distribution, which label smoothing mixes in."""
    hidden_CD = hidden_ND[:-1][labels_N[1:] != IGNORED]
    spread = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
    for hidden_RD in hidden_CD.split(ROWS):
        spread = spread - torch.log_softmax(hidden_RD @ weight_VD.T, dim=-1, dtype=torch.float32).mean(dim=-1).sum()
    return spread


class LossForward:
    """The forward of a causal language model in training: returns the summed loss of a padding-free batch."""

    def __init__(self, causal_lm: Any, noise: float = 0.0, smoothing: float = 0.0) -> None:
        """`noise`: NEFTune's alpha. Neither it nor label smoothing counts while held-out examples are measured."""
        self._base: nn.Module = causal_lm.base_model
        self._head: nn.Linear = causal_lm.get_output_embeddings()
        self._scale = logits_scale(causal_lm.config)
        self._embedding: nn.Module = causal_lm.get_input_embeddings()
        self._noise, self._smoothing = noise, smoothing

    def __call__(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor, documents: Documents) -> Tensor:
        hidden_ND = self.hidden(input_ids, position_ids, documents)
        loss = summed_loss(hidden_ND, self._head.weight, labels[0])
        if self._smoothing and self._base.training:
            spread = spread_loss(hidden_ND, self._head.weight, labels[0])
            loss = (1 - self._smoothing) * loss + self._smoothing * spread
        return loss

    def hidden(self, input_ids: Tensor, position_ids: Tensor, documents: Documents) -> Tensor:
        """Return what the head turns into logits at each place of the examples, [N, D]."""
        on_cpu = {"documents": documents} if input_ids.device.type == "cpu" else {}  # elsewhere positions are enough
        inputs = {"input_ids": input_ids}
        if self._noise and self._base.training:
            inputs = {"inputs_embeds": noisy(self._embedding(input_ids), documents.lengths, self._noise)}
        hidden_1ND: Tensor = self._base(**inputs, position_ids=position_ids, use_cache=False, **on_cpu)[0]
        hidden_ND = hidden_1ND[0] if self._scale == 1.0 else hidden_1ND[0] * self._scale
        places_N = documents.token_of_place
        return hidden_ND if places_N is None else hidden_ND.index_select(0, places_N)


def noisy(embedded_1ND: Tensor, lengths: Sequence[int], alpha: float) -> Tensor:
    """Add NEFTune's noise, uniform within alpha / √(tokens · D) for each document of a row (Jain et al. 2023)."""
    spans = [torch.full((length,), alpha / math.sqrt(length * embedded_1ND.shape[-1])) for length in lengths]
    span_N = torch.cat(spans).to(embedded_1ND)
    return embedded_1ND + torch.empty_like(embedded_1ND).uniform_(-1.0, 1.0) * span_N[None, :, None]
