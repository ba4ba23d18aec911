"""Makes the optimizer of a recipe, and refuses before training what this machine does not have.

    adamw               an fp32 master of each weight and two moments in fp32: 12 bytes a weight
    adamw_8bit          moments in 8 bits in blocks of 256 (Dettmers et al. 2022): 6 bytes
    paged_adamw_32bit   as adamw, in memory that a GPU moves to the machine's when it needs the room
    paged_adamw_8bit    both

Weights in fp32 are their own masters: 4 bytes less each.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import torch

from distill.training.optimizers.master_adamw import MasterAdamW
from distill.training.optimizers.not_adam import NOT_ADAM, make_not_adam
from toolkit.errors import InputError

STATE_BYTES: Mapping[str, int] = MappingProxyType(
    {
        "adamw": 12,
        "adamw_8bit": 6,
        "paged_adamw_32bit": 12,
        "paged_adamw_8bit": 6,
        "adafactor": 4,
        "muon": 8,
        "sgd": 8,  # of `not_adam`
    }
)
"""The state of a bf16 weight, by optimizer."""


def check_optimizer(name: str) -> None:
    """Raise `InputError` if there is no such optimizer, or if this machine cannot run it."""
    if name not in STATE_BYTES:
        raise InputError(f"the optimizer {name!r} must be one of {', '.join(STATE_BYTES)}")
    if "adamw_" not in name:
        return
    if find_spec("bitsandbytes") is None:
        raise InputError(
            f"the optimizer {name} needs bitsandbytes, which is not installed; pip install 'reasoning-edge[scale]'"
        )
    if name.startswith("paged_") and not torch.cuda.is_available():
        here = name.removeprefix("paged_").removesuffix("_32bit")
        raise InputError(
            f"the optimizer {name} pages its state between a GPU's memory and the machine's, and this machine has no "
            f"GPU; use {here}"
        )


def make_adamw(
    name: str,
    groups: list[dict[str, Any]],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    epsilon: float = 1e-8,
) -> torch.optim.Optimizer:
    """Make an optimizer that `check_optimizer` accepts."""
    shared: dict[str, Any] = {"lr": learning_rate, "betas": betas, "eps": epsilon, "weight_decay": weight_decay}
    if name == "adamw":
        return MasterAdamW(groups, **shared)
    from distill.training.optimizers.adamw_8bit import BlockwiseAdamW  # imports bitsandbytes

    bits = 8 if name.endswith("_8bit") else 32
    return BlockwiseAdamW(groups, optim_bits=bits, is_paged=name.startswith("paged_"), **shared)


def make_optimizer(
    model: Any, name: str, *, learning_rate: float, betas: tuple[float, float], weight_decay: float, epsilon: float
) -> torch.optim.Optimizer:
    """Make an optimizer that `check_optimizer` accepts over the trained weights; those of norms do not decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if parameter.dim() >= 2]},
        {"params": [parameter for parameter in trained if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    shared: dict[str, Any] = {"learning_rate": learning_rate, "betas": betas, "weight_decay": weight_decay}
    if name in NOT_ADAM:
        return make_not_adam(name, model, groups, **shared)
    return make_adamw(name, groups, epsilon=epsilon, **shared)
