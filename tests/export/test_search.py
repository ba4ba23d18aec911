"""The search is compared with every scale of a fine grid, and with rounding that ignores the inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from export.quantization.codes import dequantize, quantize_nearest
from export.quantization.search import quantize_by_importance

ROWS, COLUMNS = 24, 128


@pytest.fixture
def weight_NK() -> Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)) ** 3


@pytest.fixture
def importance_K() -> Tensor:
    return torch.logspace(-3, 1, COLUMNS)[torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(2))]


def errors(weight_NK: Tensor, restored_NK: np.ndarray, importance_K: Tensor) -> Tensor:
    """Return the weighted squared error of each row."""
    return (weight_NK - torch.from_numpy(restored_NK)).square() @ importance_K


def test_the_inputs_decide_which_weights_are_kept(weight_NK: Tensor, importance_K: Tensor) -> None:
    searched = dequantize(quantize_by_importance(weight_NK, importance_K, bits=4, block_size=32))
    unaware = dequantize(quantize_by_importance(weight_NK, torch.ones(COLUMNS), bits=4, block_size=32))
    nearest = dequantize(quantize_nearest(weight_NK.numpy(), bits=4, block_size=32))
    error = errors(weight_NK, searched, importance_K).mean()
    assert error < 0.8 * errors(weight_NK, unaware, importance_K).mean()
    assert error < 0.75 * errors(weight_NK, nearest, importance_K).mean()
    ones_K = torch.ones(COLUMNS)
    assert errors(weight_NK, unaware, ones_K).mean() < errors(weight_NK, nearest, ones_K).mean()


def test_no_scale_of_a_fine_grid_is_much_better(weight_NK: Tensor, importance_K: Tensor) -> None:
    """The oracle tries 200 scales with all sixteen zero points for one block a row."""
    block_NM, importance_M = weight_NK[:, :32], importance_K[:32]
    found = errors(
        block_NM, dequantize(quantize_by_importance(block_NM, importance_M, bits=4, block_size=32)), importance_M
    )
    largest_N = (block_NM.amax(1) - block_NM.amin(1)) / 15
    best = torch.full((ROWS,), torch.inf)
    for share in torch.linspace(0.4, 1.1, 200):
        scale_N1 = (largest_N * share)[:, None]
        for zero_point in range(16):
            codes_NM = ((block_NM / scale_N1).round() + zero_point).clamp(0, 15)
            best = torch.minimum(best, (block_NM - (codes_NM - zero_point) * scale_N1).square() @ importance_M)
    assert found.sum() < 1.25 * best.sum()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_block_of_zeros_and_inputs_that_never_come_are_no_trouble(bits: int) -> None:
    weight_NK = torch.zeros(2, 64)
    weight_NK[1, 32:] = torch.linspace(-1, 1, 32)
    restored = dequantize(quantize_by_importance(weight_NK, torch.zeros(64), bits=bits, block_size=32))
    assert np.isfinite(restored).all() and not restored[0].any()
    assert np.abs(restored - weight_NK.numpy()).max() < 2 / 2**bits
