"""int8 latents against float64."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from toolkit.model import latents
from toolkit.model.latents import FloatLatents, Int8Latents, product, quantize


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_row_is_rounded_to_half_a_step_of_its_own(dtype: torch.dtype) -> None:
    rows = (random(50, 64) * torch.logspace(-30, 4, 50)[:, None]).to(dtype)
    values, steps = quantize(rows)
    assert values.dtype == torch.int8
    assert steps.dtype == dtype
    assert set(values.abs().amax(-1).tolist()) <= {126, 127}  # bf16 steps are rounded up
    assert ((values.double() * steps.double() - rows.double()).abs() <= steps.double() * 0.50001).all()


def test_a_row_of_zeros_stays_zero() -> None:
    values, steps = quantize(torch.zeros(2, 8))
    assert (values * steps == 0).all()


@pytest.mark.parametrize("shape", [(1, 1, 64, 1), (3, 6, 48, 17), (1, 32, 512, 300)])
@pytest.mark.parametrize("with_instructions", [True, False])
def test_product_with_int8_values_is_the_exact_one(
    shape: tuple[int, int, int, int], with_instructions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_instructions:
        monkeypatch.setattr(latents, "multiplies_int8", lambda: False)
    batch, rows, summed, columns = shape
    rows_BYK = random(batch, rows, summed)
    values_BKS = torch.randint(-127, 128, (batch, summed, columns), dtype=torch.int8)
    expected = np.einsum("byk,bks->bys", rows_BYK.double().numpy(), values_BKS.double().numpy())
    found = product(rows_BYK, values_BKS).double().numpy()
    # the second digit is at most half a unit off: a 64,516th of the row's largest number
    largest = rows_BYK.abs().amax(-1, keepdim=True).double().numpy()
    bound = largest / 64516 * np.abs(values_BKS.double().numpy()).sum(1, keepdims=True)
    assert (np.abs(found - expected) <= 1.01 * bound).all()


def test_instructions_that_lose_digits_are_not_taken() -> None:
    """Those of AVX2 add two products in 16 bits; where there is no oneDNN the variable says nothing."""
    program = (
        "import torch; from toolkit.model.latents import product; largest = torch.full((1, 40, 40), 127.0);"
        "print(product(largest, largest.to(torch.int8)).unique().tolist())"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = [sys.executable, "-c", program]
    said = subprocess.run(run, env=environment, check=True, capture_output=True, text=True).stdout
    assert [float(value) for value in said.strip()[1:-1].split(",")] == [pytest.approx(40 * 127**2)]


def test_sums_that_could_pass_an_int32_are_made_in_parts() -> None:
    rows_BYK = torch.full((1, 2, 2**18), 0.5)
    values_BKS = torch.full((1, 2**18, 1), 127, dtype=torch.int8)
    found = product(rows_BYK, values_BKS).flatten().tolist()
    assert found == pytest.approx([0.5 * 127 * 2**18] * 2, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_latents_answer_as_the_float_latents_that_they_stand_for(dtype: torch.dtype) -> None:
    rotated_BSR = random(2, 70, 32, seed=2).to(dtype)
    kept = Int8Latents(*quantize(random(2, 70, 48, seed=1).to(dtype)), rotated_BSR)
    exact = FloatLatents(kept.latent.double() * kept.step.double(), rotated_BSR.double())
    rows = (random(2, 6, 48, seed=3).to(dtype), random(2, 6, 32, seed=4).to(dtype))
    expected = exact.scores(rows[0].double(), rows[1].double(), 0.3)
    tolerance = 5e-4 if dtype == torch.float32 else 2e-2  # in bf16 the rotated key's part and the mixture are
    torch.testing.assert_close(kept.scores(*rows, 0.3).double(), expected, atol=tolerance, rtol=tolerance)
    weights_BYS = torch.softmax(expected, -1)
    torch.testing.assert_close(
        kept.mix(weights_BYS.float()).double(), exact.mix(weights_BYS), atol=tolerance, rtol=tolerance
    )
