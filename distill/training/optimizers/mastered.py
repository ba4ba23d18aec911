"""Lets any optimizer of torch update fp32 masters of low-precision weights, which it rounds to the weights.

As `MasterAdamW` does for AdamW: a bf16 weight has 8 significant bits, so a relative update below 1/512 would be lost if
it were added to the weight itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Groups = list[dict[str, Any]]


class Mastered(torch.optim.Optimizer):
    """Steps an inner optimizer over fp32 copies of the parameters; an fp32 parameter is its own master."""

    def __init__(self, groups: Sequence[dict[str, Any]], make: Callable[[Groups], torch.optim.Optimizer]) -> None:
        """`make`: makes the inner optimizer of groups whose parameters are the masters."""
        super().__init__([dict(group) for group in groups], {})
        self._masters = [
            [parameter.detach().float().requires_grad_() for parameter in group["params"]]
            for group in self.param_groups
        ]
        self.inner = make(
            [group | {"params": masters} for group, masters in zip(self.param_groups, self._masters, strict=True)]
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group, inner, masters in zip(self.param_groups, self.inner.param_groups, self._masters, strict=True):
            inner["lr"] = group["lr"]
            for parameter, master in zip(group["params"], masters, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
        self.inner.step()
        for parameter, master in self._pairs():
            parameter.copy_(master)
            master.grad = None

    def state_dict(self) -> dict[str, Any]:
        masters = {i: {"master": master.detach()} for i, (_, master) in enumerate(self._pairs())}
        return super().state_dict() | {"state": masters, "inner": self.inner.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the masters, unrounded, and the inner optimizer's state."""
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        for i, (_, master) in enumerate(self._pairs()):
            master.copy_(state_dict["state"][i]["master"])
        self.inner.load_state_dict(state_dict["inner"])

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        return [
            pair
            for group, masters in zip(self.param_groups, self._masters, strict=True)
            for pair in zip(group["params"], masters, strict=True)
        ]
