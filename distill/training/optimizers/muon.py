"""Muon for weight matrices and AdamW for everything else, in one optimizer that a trainer can step and save.

Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest orthogonal matrix, found by a few Newton–Schulz
iterations; scaled as in Moonlight (Liu et al. 2025, equation 4), its update has AdamW's usual size. `torch.optim.Muon`
accepts only matrices; here a stack of experts' matrices is orthogonalized expert by expert, in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.model.precision import compute_dtype

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan et al. 2024)."""
ITERATIONS = 5
MOMENTUM = 0.95
UPDATE_RMS = 0.2
"""Root mean square of an update at learning rate 1 (Moonlight)."""
EPSILON = 1e-8


class MuonAdamW(torch.optim.Optimizer):
    """Applies Muon to `matrices` and AdamW to `others`; both decay their weights."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        *,
        matrix_lr: float,
        other_lr: float,
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        shared = {"weight_decay": weight_decay, "betas": betas}
        groups = [
            {"params": list(matrices), "lr": matrix_lr, "is_matrix": True, **shared},
            {"params": list(others), "lr": other_lr, "is_matrix": False, **shared},
        ]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = self._muon(parameter) if group["is_matrix"] else self._adam(parameter, group["betas"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def _muon(self, parameter: nn.Parameter) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].mul_(MOMENTUM).add_(parameter.grad)
        nesterov = parameter.grad + MOMENTUM * state["momentum"]
        scale: float = UPDATE_RMS * max(parameter.shape[-2:]) ** 0.5
        return orthogonalized(nesterov) * scale

    def _adam(self, parameter: nn.Parameter, betas: tuple[float, float]) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state.update(mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter), count=torch.tensor(0))
        state["count"] += 1
        state["mean"].lerp_(parameter.grad, 1 - betas[0])
        state["square"].lerp_(parameter.grad.square(), 1 - betas[1])
        count = int(state["count"])
        scale = (state["square"] / (1 - betas[1] ** count)).sqrt_().add_(EPSILON)
        update: Tensor = state["mean"] / (1 - betas[0] ** count) / scale
        return update


def orthogonalized(matrices: Tensor) -> Tensor:
    """Approximate the nearest (semi-)orthogonal matrix; the last two dimensions are the matrix, others a batch."""
    x = matrices.to(compute_dtype())  # bf16 is enough: the iteration is stable in it
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if is_tall else x
    return result.to(matrices.dtype)


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Separate hidden weight matrices (and stacks) from embeddings, head, routers' gates, norms and biases."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() >= 2 and not any(part in name for part in ("embed", "lm_head", "mlp.gate.weight"))
        (matrices if is_matrix else others).append(parameter)
    return matrices, others
