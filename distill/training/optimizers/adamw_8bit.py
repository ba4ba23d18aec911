"""bitsandbytes' AdamW, with fp32 masters of low-precision weights.

Its moments are quantized in blocks of 256 numbers; tensors of fewer than 4,096 keep theirs in fp32, as bitsandbytes
does by default. It updates the weights themselves, and in bf16 a relative update below 1/512 would be lost.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.optim import AdamW

MASTER = "master"


class BlockwiseAdamW(AdamW):  # type: ignore[misc]
    """A `bitsandbytes.optim.AdamW` whose state holds an fp32 `master` of each weight that is not fp32."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.non_castable_tensor_keys.add(MASTER)  # a loaded state would be rounded to the weight's dtype

    @torch.no_grad()
    def init_state(self, group: Any, p: torch.Tensor, gindex: int, pindex: int) -> None:
        """Make the state of a weight when it is updated first."""
        super().init_state(group, p, gindex, pindex)
        if p.dtype != torch.float32:
            self.state[p][MASTER] = p.detach().float()

    @torch.no_grad()
    def update_step(self, group: Any, p: torch.Tensor, gindex: int, pindex: int) -> None:
        """Update a weight, or its master and round it to the weight."""
        state = self.state[p]
        if MASTER not in state:
            super().update_step(group, p, gindex, pindex)
            return
        assert p.grad is not None
        master = state[MASTER]
        master.grad = p.grad.float()
        self.state[master] = state  # the base class finds a weight's state by the weight
        super().update_step(group, master, gindex, pindex)
        del self.state[master]
        master.grad = None
        p.copy_(master)
