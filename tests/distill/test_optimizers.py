"""bitsandbytes' optimizers under low-precision weights, and which of them a machine has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distill.training.optimizers.choice import STATE_BYTES, check_optimizer, make_adamw
from toolkit.cli.options.scale import OPTIMIZERS
from toolkit.errors import InputError

SHAPE = (64, 128)
"""More than the 4,096 numbers from which on moments are kept in 8 bits."""


def made(name: str, weight: torch.Tensor, **more: Any) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {"learning_rate": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1} | more
    return make_adamw(name, [{"params": [weight]}], **settings)


def gradients(count: int) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_in_8_bits_update_nearly_as_fp32_ones(dtype: torch.dtype) -> None:
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)
    moved = []
    for name in ("adamw", "adamw_8bit"):
        weight = torch.nn.Parameter(start.clone())
        optimizer = made(name, weight)
        for gradient in gradients(20):
            weight.grad = gradient.to(dtype)
            optimizer.step()
        moved.append((weight.detach() - start).float())
    exact, found = moved
    assert torch.corrcoef(torch.stack([exact.ravel(), found.ravel()]))[0, 1] > 0.995
    assert found.norm() == pytest.approx(float(exact.norm()), rel=0.02)


def test_updates_below_a_weights_precision_add_up() -> None:
    weight = torch.nn.Parameter(torch.ones(SHAPE, dtype=torch.bfloat16))
    optimizer = made("adamw_8bit", weight, learning_rate=1e-4, weight_decay=0.0)
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert weight.detach().float().unique().tolist() == [torch.tensor(0.99).bfloat16().item()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimizer_goes_on_from_its_checkpoint(dtype: torch.dtype) -> None:
    weights = [torch.nn.Parameter(torch.ones(SHAPE, dtype=dtype)) for _ in range(2)]
    whole, broken = (made("adamw_8bit", weight) for weight in weights)
    for step, gradient in enumerate(gradients(6)):
        if step == 3:
            state, broken = broken.state_dict(), made("adamw_8bit", weights[1])
            broken.load_state_dict(state)
        for weight, optimizer in zip(weights, (whole, broken), strict=True):
            weight.grad = gradient.to(dtype)
            optimizer.step()
    assert torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_a_weight_takes_the_bytes_that_are_counted(name: str) -> None:
    weight = torch.nn.Parameter(torch.ones(512, 512, dtype=torch.bfloat16))
    optimizer = made(name, weight)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    state = [value for key, value in optimizer.state[weight].items() if torch.is_tensor(value) and "qmap" not in key]
    bytes_of_a_weight = sum(value.numel() * value.element_size() for value in state) / weight.numel()
    assert bytes_of_a_weight == pytest.approx(STATE_BYTES[name], rel=0.02)


def test_what_needs_a_gpu_is_refused_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"paged_adamw_8bit pages its state .* no GPU; use adamw_8bit"):
        check_optimizer("paged_adamw_8bit")
    with pytest.raises(InputError, match="no GPU; use adamw"):
        check_optimizer("paged_adamw_32bit")
    with pytest.raises(InputError, match="'sgd' must be one of adamw, adamw_8bit"):
        check_optimizer("sgd")
    for name in ("adamw", "adamw_8bit"):
        check_optimizer(name)


def test_the_command_offers_what_can_be_made() -> None:
    assert tuple(STATE_BYTES) == OPTIMIZERS
