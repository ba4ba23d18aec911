"""Error feedback against rounding to nearest, and against a solver written as the paper's plain loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from export.quantization.codes import dequantize, quantize_nearest
from export.quantization.gptq import (
    DAMPING,
    Rounded,
    feed_back,
    improve_codes,
    inverse_factor,
    quantize_with_feedback,
    refit_scales,
)
from export.quantization.search import best_range


def correlated_inputs(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(size, size, generator=generator) * torch.linspace(2.0, 0.05, size)[:, None]
    return torch.randn(count, size, generator=generator) @ mixing


def output_error(weight_NK: Tensor, restored_NK: np.ndarray, inputs_XK: Tensor) -> float:
    return float((inputs_XK @ (weight_NK - torch.from_numpy(restored_NK)).T).square().mean())


def fed_back(weight_NK: Tensor, hessian_KK: Tensor, *, bits: int, block_size: int) -> Rounded:
    return feed_back(weight_NK, hessian_KK, inverse_factor(hessian_KK), bits=bits, block_size=block_size)


def test_outputs_err_less_than_half_of_rounding_to_nearest() -> None:
    inputs_XK = correlated_inputs(2000, 128)
    weight_NK = torch.randn(48, 128, generator=torch.Generator().manual_seed(1))
    second_moment_KK = inputs_XK.T @ inputs_XK / len(inputs_XK)
    rounded = dequantize(quantize_with_feedback(weight_NK, second_moment_KK, bits=4, block_size=32))
    nearest = dequantize(quantize_nearest(weight_NK.numpy(), bits=4, block_size=32))
    assert output_error(weight_NK, rounded, inputs_XK) < 0.5 * output_error(weight_NK, nearest, inputs_XK)


@pytest.mark.parametrize("bits", [3, 4])
def test_codes_equal_those_of_optimal_brain_quantization_solved_column_by_column(bits: int) -> None:
    """The oracle updates all remaining columns by H⁻¹ of the columns still free, inverted anew for each column."""
    inputs_XK = correlated_inputs(500, 64)
    second_moment_KK = inputs_XK.T @ inputs_XK / len(inputs_XK)
    weight_NK = torch.randn(6, 64, generator=torch.Generator().manual_seed(2))
    expected = torch.zeros_like(weight_NK)
    work_NK = weight_NK.double()
    damped_KK = second_moment_KK.double() + DAMPING * second_moment_KK.diagonal().mean() * torch.eye(64)
    for column in range(64):
        if column % 32 == 0:
            block = slice(column, column + 32)
            scale_N, zero_N = best_range(work_NK[:, block].float(), second_moment_KK.diagonal()[block], bits)
        if bits == 3:  # even codes
            codes_N = 2 * torch.round((work_NK[:, column].float() / scale_N + zero_N) / 2).clamp(0, 7)
        else:
            codes_N = (torch.round(work_NK[:, column].float() / scale_N) + zero_N).clamp(0, 15)
        expected[:, column] = (codes_N - zero_N) * scale_N
        inverse_KK = torch.linalg.inv(damped_KK[column:, column:])
        error_N = (work_NK[:, column] - expected[:, column]) / inverse_KK[0, 0]
        work_NK[:, column:] -= error_N[:, None] * inverse_KK[0]
    found = fed_back(weight_NK, second_moment_KK, bits=bits, block_size=32).weight_NK.numpy()
    assert np.isclose(found, expected.numpy(), atol=1e-6).mean() > 0.98  # a value on the edge may fall either way


@pytest.mark.parametrize("block_size", [16, 32])
def test_refitted_scales_are_those_of_least_squares(block_size: int) -> None:
    """The oracle lays each block's outputs out as a regressor."""
    inputs_XK = correlated_inputs(400, 64)
    second_moment_KK = inputs_XK.T @ inputs_XK / len(inputs_XK)
    weight_NK = torch.randn(5, 64, generator=torch.Generator().manual_seed(5))
    rounded = fed_back(weight_NK, second_moment_KK, bits=4, block_size=block_size)
    found_NJ = refit_scales(weight_NK, second_moment_KK, rounded).scales_NJ
    for row in range(5):
        steps_JM = rounded.steps_NK[row].reshape(-1, block_size)
        regressors_XJ = torch.einsum("xjm,jm->xj", inputs_XK.reshape(400, -1, block_size), steps_JM)
        expected_J = torch.linalg.lstsq(regressors_XJ, (inputs_XK @ weight_NK[row])[:, None]).solution[:, 0]
        torch.testing.assert_close(found_NJ[row], expected_J, rtol=5e-3, atol=1e-4)  # fp16, and a pull of 0.1 %


def test_improved_codes_are_the_best_of_all_for_each_column_in_turn() -> None:
    """The oracle tries all sixteen codes of one column after another and computes the whole error of each."""
    inputs_XK = correlated_inputs(400, 32)
    second_moment_KK = inputs_XK.T @ inputs_XK / len(inputs_XK)
    weight_NK = torch.randn(3, 32, generator=torch.Generator().manual_seed(6))
    rounded = fed_back(weight_NK, second_moment_KK, bits=4, block_size=16)
    damped_KK = second_moment_KK + DAMPING * second_moment_KK.diagonal().mean() * torch.eye(32)
    codes_NK = rounded.codes_NK.clone()
    for row in range(3):
        for column in range(32):
            errors = []
            for code in range(16):
                codes_NK[row, column] = code
                rest_K = (weight_NK - replace(rounded, codes_NK=codes_NK).weight_NK)[row]
                errors.append(float(rest_K @ damped_KK @ rest_K))
            codes_NK[row, column] = int(np.argmin(errors))
    found = improve_codes(weight_NK, second_moment_KK, rounded)
    assert (found.codes_NK != rounded.codes_NK).any()
    assert (found.codes_NK == codes_NK).float().mean() > 0.98  # a value on the edge may fall either way


def test_refinement_takes_a_part_of_the_error_away() -> None:
    inputs_XK = correlated_inputs(2000, 128)
    second_moment_KK = inputs_XK.T @ inputs_XK / len(inputs_XK)
    weight_NK = torch.randn(48, 128, generator=torch.Generator().manual_seed(7))
    first = fed_back(weight_NK, second_moment_KK, bits=4, block_size=64)
    refined = quantize_with_feedback(weight_NK, second_moment_KK, bits=4, block_size=64)
    before = output_error(weight_NK, first.weight_NK.numpy(), inputs_XK)
    assert output_error(weight_NK, dequantize(refined), inputs_XK) < 0.95 * before


def test_rows_are_rounded_alike_however_many_are_rounded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs_XK = correlated_inputs(400, 64)
    second_moment_KK = inputs_XK.T @ inputs_XK / len(inputs_XK)
    weight_NK = torch.randn(48, 64, generator=torch.Generator().manual_seed(8))
    whole = dequantize(quantize_with_feedback(weight_NK, second_moment_KK, bits=4, block_size=32))
    monkeypatch.setattr("export.quantization.gptq.ROUNDED_AT_ONCE", 20)
    some = dequantize(quantize_with_feedback(weight_NK, second_moment_KK, bits=4, block_size=32))
    assert (whole == some).mean() > 0.98  # a value on the edge may fall either way


def test_a_column_that_never_fires_does_not_break_the_solver() -> None:
    inputs_XK = correlated_inputs(200, 64)
    inputs_XK[:, 10] = 0.0
    weight_NK = torch.randn(4, 64, generator=torch.Generator().manual_seed(4))
    for second_moment_KK in (inputs_XK.T @ inputs_XK, torch.zeros(64, 64)):
        assert np.isfinite(dequantize(quantize_with_feedback(weight_NK, second_moment_KK, bits=4, block_size=32))).all()
