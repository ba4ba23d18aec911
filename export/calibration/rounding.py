"""Rounds a matrix for the inputs that it gets: x in the quantized model, x̃ in the float one.

W is first aimed at the float output: W* = W E[x̃ xᵀ] H⁻¹ makes W* x the best linear guess of W x̃, so that a matrix makes
up for what went wrong before it, and only then W* is rounded (the idea of asymmetric calibration: Li et al., "GPTAQ"
(2025), here in closed form).

Shapes: X real tokens of a batch, N output features, K input features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from export.calibration.hidden_states import Batch
from export.quantization.codes import QuantizedWeight, dequantize
from export.quantization.gptq import cholesky, damped, inverse_factor, quantize_with_feedback
from export.quantization.layout import Layout
from export.quantization.search import ROWS_AT_ONCE, quantize_by_importance
from toolkit.model.precision import fp32_by_onednn

DRIFT_DAMPING = 0.05
"""Share of H's mean diagonal that keeps W* near W where the calibration text says little."""

COLUMNS_AT_ONCE = 256
"""Columns of a symmetric matrix that are computed at once, from the diagonal down; affects only speed."""

Calibrated = Literal["gptq", "searched"]
"""How a matrix is rounded for its inputs: with error feedback, or by `export.quantization.search`."""


@fp32_by_onednn()
def moments(inputs: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Return hessian_KK = E[x xᵀ] and drift_KK = E[(x̃ − x) xᵀ] over the real tokens."""
    hessian_KK, drift_KK, count = torch.zeros(()), torch.zeros(()), 0
    for batch in inputs:
        input_XK = batch.quantized_BTK[batch.mask_BT]
        if not count:
            size = (input_XK.shape[1],) * 2
            hessian_KK, drift_KK = torch.zeros(size), torch.zeros(size)  # each can be freed alone
        for some in _column_groups(hessian_KK):  # its upper half is a copy of the lower one
            hessian_KK[some.start :, some].addmm_(input_XK[:, some.start :].T, input_XK[:, some])
        drift_KK.addmm_((batch.float_BTK[batch.mask_BT] - input_XK).T, input_XK)
        count += len(input_XK)
    for some in _column_groups(hessian_KK):
        hessian_KK[some, some.stop :] = hessian_KK[some.stop :, some].T
    return hessian_KK.div_(count), drift_KK.div_(count)


def _column_groups(matrix_KK: Tensor) -> list[slice]:
    columns = matrix_KK.shape[1]
    return [slice(begin, min(begin + COLUMNS_AT_ONCE, columns)) for begin in range(0, columns, COLUMNS_AT_ONCE)]


def aimed(weight_NK: Tensor, hessian_KK: Tensor, missed_NK: Tensor) -> Tensor:
    """Return weight_NK + missed_NK H⁻¹ with the damped H, where missed_NK = weight_NK drift_KK."""
    lower_KK = cholesky(damped(hessian_KK.double(), DRIFT_DAMPING))
    aimed_NK = weight_NK.clone()
    for begin in range(0, len(weight_NK), ROWS_AT_ONCE):
        rows = slice(begin, begin + ROWS_AT_ONCE)
        # `cholesky_solve` would copy lower_KK
        correction_KN: Tensor = torch.linalg.solve_triangular(lower_KK, missed_NK[rows].T.double(), upper=False)
        correction_KN = torch.linalg.solve_triangular(lower_KK.mT, correction_KN, upper=True)
        aimed_NK[rows] += correction_KN.T.float()
    return aimed_NK


def importance(inputs: Iterable[Batch]) -> Tensor:
    """Return importance_K = E[x²] over the real tokens."""
    total_K, count = torch.zeros(()), 0
    for batch in inputs:
        input_XK = batch.quantized_BTK[batch.mask_BT]
        total_K = total_K + input_XK.square().sum(0)
        count += len(input_XK)
    return total_K / count


def round_linear(linear: nn.Linear, inputs: Iterable[Batch], layout: Layout, method: Calibrated) -> QuantizedWeight:
    """Quantize a linear layer's matrix, and put the rounded weights into the layer."""
    weight_NK = linear.weight
    if method == "searched":
        quantized = _searched(weight_NK, importance(inputs), layout)
    else:
        hessian_KK, drift_KK = moments(inputs)
        missed_NK = weight_NK @ drift_KK
        del drift_KK  # as large as the solver's own matrices
        quantized = _fed_back(weight_NK, hessian_KK, missed_NK, layout)
        del hessian_KK, missed_NK
    rounded_NK = torch.from_numpy(dequantize(quantized))
    linear.weight = nn.Parameter(rounded_NK, requires_grad=False)  # the float layer keeps the shared one
    return quantized


@torch.no_grad()
def round_slices(
    slices: Iterable[Tensor], inputs: Iterable[Batch], layout: Layout, method: Calibrated
) -> Iterator[QuantizedWeight]:
    """Quantize a matrix whose rows arrive some at a time."""
    if method == "searched":
        importance_K = importance(inputs)
        yield from (_searched(weight_NK, importance_K, layout) for weight_NK in slices)
    else:
        hessian_KK, drift_KK = moments(inputs)
        upper_KK = inverse_factor(hessian_KK)
        yield from (_fed_back(weight_NK, hessian_KK, weight_NK @ drift_KK, layout, upper_KK) for weight_NK in slices)


@fp32_by_onednn()
def _fed_back(
    weight_NK: Tensor, hessian_KK: Tensor, missed_NK: Tensor, layout: Layout, upper_KK: Tensor | None = None
) -> QuantizedWeight:
    weight_NK = aimed(weight_NK, hessian_KK, missed_NK)
    return quantize_with_feedback(weight_NK, hessian_KK, upper_KK, bits=layout.bits, block_size=layout.block_size)


def _searched(weight_NK: Tensor, importance_K: Tensor, layout: Layout) -> QuantizedWeight:
    return quantize_by_importance(weight_NK, importance_K, bits=layout.bits, block_size=layout.block_size)
