"""Computes the routed experts of a mixture on a CPU: tokens sorted by expert, one product for each expert.

    hidden_ND ─ sort by expert ─> x_PD ─ gate, up ─> h_PF ─ down ─> y_PD ─ sum by token ─> y_ND

transformers' `eager` indexes the stacked weights, whose gradient is then a stack of zeros for each expert and product;
its `grouped_mm` multiplies transposed weights, which is slow in bf16 on a CPU, and gathers and sums in separate steps.
Here forward and backward pass are written out, and only the activation is computed twice. The result is the same up to
rounding; `python -m benchmarks.training.experts_cost` measures the difference.

N tokens, K experts a token, P = N·K pairs of both, E experts, D hidden, F feed-forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag, silu
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = "sorted"
"""The name to pass to `model.set_experts_implementation`."""


class _SortedExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, chosen_NK: Tensor, weights_NK: Tensor
    ) -> Tensor:
        experts = gate_up_E2FD.shape[0]
        order_P = chosen_NK.flatten().argsort(stable=True)
        place_NK = torch.empty_like(order_P)
        place_NK[order_P] = torch.arange(order_P.numel(), device=order_P.device)
        place_NK = place_NK.view_as(chosen_NK)
        token_P = order_P.div(chosen_NK.shape[1], rounding_mode="floor")
        ends = torch.bincount(chosen_NK.flatten(), minlength=experts).cumsum(0).tolist()
        spans = [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]

        x_PD = hidden_ND.index_select(0, token_P)
        weight_P1 = weights_NK.flatten()[order_P][:, None].to(x_PD.dtype)
        gate_up_P2F = x_PD.new_empty(x_PD.shape[0], gate_up_E2FD.shape[1])
        for expert, span in enumerate(spans):
            torch.mm(x_PD[span], gate_up_E2FD[expert].t(), out=gate_up_P2F[span])
        gate_PF, up_PF = (half.contiguous() for half in gate_up_P2F.chunk(2, dim=-1))  # strided rows are slow below
        y_PD = torch.empty_like(x_PD)
        act_PF = silu(gate_PF).mul_(up_PF).mul_(weight_P1)  # weighted before the product, which is narrower
        for expert, span in enumerate(spans):
            torch.mm(act_PF[span], down_EDF[expert].t(), out=y_PD[span])

        ctx.save_for_backward(x_PD, gate_up_E2FD, down_EDF, gate_PF, up_PF, weight_P1, token_P, place_NK)
        ctx.spans = spans
        return embedding_bag(place_NK, y_PD, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor, Tensor, Tensor, None, Tensor]:
        x_PD, gate_up_E2FD, down_EDF, gate_PF, up_PF, weight_P1, token_P, place_NK = ctx.saved_tensors
        dy_PD = dy_ND.index_select(0, token_P)
        silu_PF = silu(gate_PF)
        unweighted_PF = silu_PF * up_PF
        act_PF = unweighted_PF * weight_P1
        dact_PF = torch.empty_like(act_PF)
        ddown_EDF = torch.empty_like(down_EDF)
        for expert, span in enumerate(ctx.spans):
            torch.mm(dy_PD[span], down_EDF[expert], out=dact_PF[span])
            torch.mm(dy_PD[span].t(), act_PF[span], out=ddown_EDF[expert])

        dweight_P = (dact_PF * unweighted_PF).sum(-1)
        dact_PF.mul_(weight_P1)
        dgate_PF = torch.ops.aten.silu_backward(dact_PF * up_PF, gate_PF)
        dgate_up_P2F = torch.cat([dgate_PF, dact_PF.mul_(silu_PF)], dim=-1)
        dx_PD = torch.empty_like(x_PD)
        dgate_up_E2FD = torch.empty_like(gate_up_E2FD)
        for expert, span in enumerate(ctx.spans):
            torch.mm(dgate_up_P2F[span], gate_up_E2FD[expert], out=dx_PD[span])
            torch.mm(dgate_up_P2F[span].t(), x_PD[span], out=dgate_up_E2FD[expert])
        dhidden_ND = embedding_bag(place_NK, dx_PD, mode="sum")
        return dhidden_ND, dgate_up_E2FD, ddown_EDF, None, dweight_P[place_NK]


def sorted_experts(experts: Any, hidden_ND: Tensor, chosen_NK: Tensor, weights_NK: Tensor) -> Tensor:
    """Compute a layer's experts for transformers: Σ w · down(silu(gate(x)) · up(x)) over each token's K."""
    assert experts.config.hidden_act in ("silu", "swish"), f"{experts.config.hidden_act} must be silu"
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
    with torch.autocast(device, enabled=False):
        summed_ND: Tensor = _SortedExperts.apply(  # type: ignore[no-untyped-call]
            hidden_ND.to(dtype), experts.gate_up_proj.to(dtype), experts.down_proj.to(dtype), chosen_NK, weights_NK
        )
    return summed_ND.to(hidden_ND.dtype)


def compute_experts(model: PreTrainedModel) -> None:
    """Choose the fastest way to compute a model's routed experts: transformers' own on a GPU, this one on a CPU."""
    if not torch.cuda.is_available():
        model.set_experts_implementation(NAME)


ALL_EXPERTS_FUNCTIONS.register(NAME, sorted_experts)
