"""AdamW for low-precision weights: it updates an fp32 master of each weight and rounds it to the weight.

A bf16 weight has 8 significant bits, so a relative update below 1/512 would be lost if it were added to the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.adamw import adamw

STATE_BYTES = 12
"""The optimizer's state of a weight: its fp32 master and two moments."""


class MasterAdamW(torch.optim.AdamW):
    """A `torch.optim.AdamW` whose state holds an fp32 `master` of each parameter, in checkpoints too."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update one parameter at a time, so that its fp32 gradient is still in the cache when it is used."""
        assert closure is None
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter] or self._begin(parameter)
                adamw(
                    [state["master"]],
                    [parameter.grad.float()],
                    [state["exp_avg"]],
                    [state["exp_avg_sq"]],
                    [],
                    [state["step"]],
                    fused=True,
                    amsgrad=False,
                    beta1=beta1,
                    beta2=beta2,
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                )
                parameter.copy_(state["master"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state unrounded; the base class would round it to the parameters' dtype."""
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for i, state in state_dict["state"].items():
            parameter = parameters[i]
            self.state[parameter] = {name: value.to(parameter.device) for name, value in state.items()}

    def _begin(self, parameter: torch.Tensor) -> dict[str, Any]:
        master = parameter.detach().float()  # an fp32 parameter is its own master
        self.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "master": master,
            "exp_avg": torch.zeros_like(master),
            "exp_avg_sq": torch.zeros_like(master),
        }
        state: dict[str, Any] = self.state[parameter]
        return state
