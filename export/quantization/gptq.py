"""Chooses codes that preserve a layer's output rather than each weight: error feedback, then rounds of refinement.

With H = E[x xᵀ] of the calibration inputs, codes c and scales s are chosen to make tr((W − Ŵ) H (W − Ŵ)ᵀ) small.

1. Error feedback: columns are rounded one after another, and later ones compensate for each error through U[k], where U
   is the upper Cholesky factor of H⁻¹ (Frantar et al., "GPTQ" (2023), algorithm 1; damping 1 % of the mean diagonal as
   there). A block's range is searched with the diagonal of H as importance (`export.quantization.search`).
2. Refinement: the best scales for given codes solve a small linear system for each row; the best code of one column,
   given the others, is a rounding. The two alternate, and neither can make the output worse.

Shapes: N output features, K input features, M block_size, J blocks of a row, C columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from export.quantization.codes import Bytes, Halves, QuantizedWeight, nearest_codes, pack
from export.quantization.search import ROWS_AT_ONCE, best_range

DAMPING = 0.01
COLUMNS_AT_ONCE = 32
"""How many columns are corrected one by one before the rest of the row is, by one product; affects only speed."""
INVERTED_AT_ONCE = 128
"""How many rows of a square matrix are inverted or turned at once; affects only speed."""
ROUNDED_AT_ONCE = 4096
"""How many rows are rounded together. They do not depend on one another, so this bounds memory."""
REFINEMENTS = 2
"""Rounds of scales and codes; the first two lower a layer's error by 11 to 14 %, a third by 1 % more."""
SCALE_DAMPING = 1e-3
"""Share of its own diagonal that pulls a scale to its present value where the system hardly determines it."""


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """A matrix on its way to a `QuantizedWeight`, with everything in float32.

    codes_NK        whole numbers; with 3 bits even ones below 16
    scales_NJ       values of fp16
    zero_points_NJ  whole numbers
    """

    bits: int
    codes_NK: Tensor
    scales_NJ: Tensor
    zero_points_NJ: Tensor

    @property
    def block_size(self) -> int:
        return self.codes_NK.shape[1] // self.scales_NJ.shape[1]

    @property
    def steps_NK(self) -> Tensor:
        """Codes minus their zero points."""
        return self.codes_NK - self.zero_points_NJ.repeat_interleave(self.block_size, 1)

    @property
    def weight_NK(self) -> Tensor:
        return self.steps_NK * self.scales_NJ.repeat_interleave(self.block_size, 1)


def quantize_with_feedback(
    weight_NK: Tensor, hessian_KK: Tensor, upper_KK: Tensor | None = None, *, bits: int, block_size: int
) -> QuantizedWeight:
    """Find codes and scales that change weight_NK @ x least, over inputs x with this second moment. `upper_KK`: its
    inverse factor, if that is at hand."""
    upper_KK = inverse_factor(hessian_KK) if upper_KK is None else upper_KK
    groups = weight_NK.split(ROUNDED_AT_ONCE)
    begun = [feed_back(some, hessian_KK, upper_KK, bits=bits, block_size=block_size) for some in groups]
    del upper_KK
    done = [_refined(some, hessian_KK, begun.pop(0)) for some in groups]
    codes_NK, scales_NJ, zero_points_NJ = (np.concatenate(parts) for parts in zip(*done, strict=True))
    return pack(codes_NK.reshape(len(codes_NK), -1, block_size), scales_NJ, zero_points_NJ, bits=bits)


def _refined(weight_NK: Tensor, hessian_KK: Tensor, rounded: Rounded) -> tuple[Bytes, Halves, Bytes]:
    """Return codes, scales and zero points after the rounds of refinement."""
    for _ in range(REFINEMENTS):
        rounded = refit_scales(weight_NK, hessian_KK, rounded)
        rounded = improve_codes(weight_NK, hessian_KK, rounded)
    rounded = refit_scales(weight_NK, hessian_KK, rounded)
    codes_NK, zero_points_NJ = rounded.codes_NK.to(torch.uint8), rounded.zero_points_NJ.to(torch.uint8)
    return codes_NK.numpy(), rounded.scales_NJ.half().numpy(), zero_points_NJ.numpy()


def feed_back(weight_NK: Tensor, hessian_KK: Tensor, upper_KK: Tensor, *, bits: int, block_size: int) -> Rounded:
    """Round one column after another; each compensates for the errors of those before it. `upper_KK`: the inverse
    factor of the Hessian."""
    rows, columns = weight_NK.shape
    weight_KN = weight_NK.T.clone(memory_format=torch.contiguous_format)
    importance_K = hessian_KK.diagonal().clone()
    codes_KN = torch.empty_like(weight_KN)
    scales_JN = torch.empty(columns // block_size, rows)
    zero_points_JN = torch.empty_like(scales_JN)
    for begin in range(0, columns, block_size):
        block = slice(begin, begin + block_size)
        scale_N, zero_point_N = best_range(weight_KN[block].T.contiguous(), importance_K[block], bits)
        scales_JN[begin // block_size], zero_points_JN[begin // block_size] = scale_N, zero_point_N
        errors_KN = torch.empty(block_size, rows)
        for first in range(begin, block.stop, COLUMNS_AT_ONCE):
            end = min(first + COLUMNS_AT_ONCE, block.stop)
            for column in range(first, end):
                code_N = nearest_codes(weight_KN[column] / scale_N, zero_point_N, bits)
                codes_KN[column] = code_N
                error_N = weight_KN[column].sub_(code_N.sub_(zero_point_N).mul_(scale_N)).div_(upper_KK[column, column])
                weight_KN[column + 1 : end].addr_(upper_KK[column, column + 1 : end], error_N, alpha=-1)
                errors_KN[column - begin] = error_N
            corrected = slice(first - begin, end - begin)
            weight_KN[end : block.stop].addmm_(upper_KK[first:end, end : block.stop].T, errors_KN[corrected], alpha=-1)
        weight_KN[block.stop :].addmm_(upper_KK[block, block.stop :].T, errors_KN, alpha=-1)
    return Rounded(
        bits=bits, codes_NK=_turned(codes_KN), scales_NJ=_turned(scales_JN), zero_points_NJ=_turned(zero_points_JN)
    )


def refit_scales(weight_NK: Tensor, hessian_KK: Tensor, rounded: Rounded) -> Rounded:
    """Find the best scales for these codes, in fp16; a block whose best scale is not positive keeps its own."""
    rows = [slice(begin, begin + ROWS_AT_ONCE) for begin in range(0, len(weight_NK), ROWS_AT_ONCE)]
    steps_NK, kept_NJ = rounded.steps_NK, rounded.scales_NJ
    fitted = [_fitted_scales(weight_NK[some], hessian_KK, steps_NK[some], kept_NJ[some]) for some in rows]
    fitted_NJ = torch.cat(fitted).half().float()
    usable_NJ = torch.isfinite(fitted_NJ) & (fitted_NJ > 0)
    return replace(rounded, scales_NJ=torch.where(usable_NJ, fitted_NJ, kept_NJ))


def _fitted_scales(weight_NK: Tensor, hessian_KK: Tensor, steps_NK: Tensor, scales_NJ: Tensor) -> Tensor:
    """Solve A s = b for each row, with A_ij = u_iᵀ H u_j and b_i = u_iᵀ H w.

    u_j holds the row's steps in block j and zeros elsewhere. Scales that the system hardly determines stay near the
    present ones.
    """
    rows, blocks = scales_NJ.shape
    size = steps_NK.shape[1] // blocks
    b_NJ = (steps_NK * (weight_NK @ hessian_KK)).reshape(rows, blocks, size).sum(-1)
    a_NJJ = torch.empty(rows, blocks, blocks)
    for block in range(blocks):  # A is symmetric
        columns, later = slice(block * size, (block + 1) * size), slice(block * size, None)
        products_NK = (steps_NK[:, columns] @ hessian_KK[columns, later]) * steps_NK[:, later]
        sums_NJ = products_NK.reshape(rows, blocks - block, size).sum(-1)
        a_NJJ[:, block, block:] = sums_NJ
        a_NJJ[:, block:, block] = sums_NJ
    pull_NJ = SCALE_DAMPING * a_NJJ.diagonal(dim1=1, dim2=2) + torch.finfo(torch.float32).tiny
    a_NJJ.diagonal(dim1=1, dim2=2).add_(pull_NJ)
    fitted_NJ1: Tensor = torch.linalg.solve_ex(a_NJJ, (b_NJ + pull_NJ * scales_NJ)[..., None]).result
    return fitted_NJ1[..., 0]


def improve_codes(weight_NK: Tensor, hessian_KK: Tensor, rounded: Rounded) -> Rounded:
    """Run one sweep of coordinate descent: give each column its best codes for the present other ones."""
    size = rounded.block_size
    damping = _damping(hessian_KK, DAMPING)
    restored_KN = _turned(rounded.weight_NK)
    missing_KN = restored_KN.neg().add_(weight_NK.T)
    gradient_KN = torch.addmm(missing_KN, hessian_KK, missing_KN, beta=damping)
    codes_KN = missing_KN  # the same memory, not needed any more
    scales_JN, zero_points_JN = _turned(rounded.scales_NJ), _turned(rounded.zero_points_NJ)
    columns = len(gradient_KN)
    for begin in range(0, columns, COLUMNS_AT_ONCE):
        end = min(begin + COLUMNS_AT_ONCE, columns)
        moved_CN = torch.empty(end - begin, gradient_KN.shape[1])
        for column in range(begin, end):
            scale_N, zero_point_N = scales_JN[column // size], zero_points_JN[column // size]
            curvature = hessian_KK[column, column] + damping
            wanted_N = gradient_KN[column].div_(curvature).add_(restored_KN[column])
            code_N = nearest_codes(wanted_N.div_(scale_N), zero_point_N, rounded.bits)
            codes_KN[column] = code_N
            moved_N = code_N.sub_(zero_point_N).mul_(scale_N).sub_(restored_KN[column])
            gradient_KN[column + 1 : end].addr_(hessian_KK[column, column + 1 : end], moved_N, alpha=-1)
            moved_CN[column - begin] = moved_N
        gradient_KN[end:].addmm_(hessian_KK[begin:end, end:].T, moved_CN, alpha=-1)
    return replace(rounded, codes_NK=_turned(codes_KN))


def _turned(values: Tensor) -> Tensor:
    """Transpose in memory, so that what is read together lies together."""
    return values.T.contiguous()


def damped(hessian_KK: Tensor, share: float) -> Tensor:
    """Add a share of the matrix's mean diagonal to its diagonal, in place."""
    hessian_KK.diagonal().add_(_damping(hessian_KK, share))
    return hessian_KK


def _damping(hessian_KK: Tensor, share: float) -> float:
    return share * float(hessian_KK.diagonal().mean()) + torch.finfo(torch.float32).tiny


def cholesky(matrix_KK: Tensor) -> Tensor:
    """Compute the lower factor of a symmetric matrix in place; at 8,192 columns another one takes half a gigabyte.

    LAPACK writes columns, so rows are passed to it as columns.
    """
    factor_KK: Tensor = torch.linalg.cholesky(matrix_KK.mT, out=matrix_KK.mT)
    return factor_KK


def invert_lower(lower_KK: Tensor) -> Tensor:
    """Invert a lower triangular matrix in place, by X[i, :i] = −L[i, i]⁻¹ L[i, :i] X[:i, :i]."""
    columns = len(lower_KK)
    for begin in range(0, columns, INVERTED_AT_ONCE):
        block = slice(begin, min(begin + INVERTED_AT_ONCE, columns))
        unit_CC = torch.eye(block.stop - begin, dtype=lower_KK.dtype)
        inverse_CC = torch.linalg.solve_triangular(lower_KK[block, block], unit_CC, upper=False)
        lower_KK[block, :begin] = -inverse_CC @ (lower_KK[block, :begin] @ lower_KK[:begin, :begin])
        lower_KK[block, block] = inverse_CC
    return lower_KK


def _reversed(matrix_KK: Tensor, dtype: torch.dtype) -> Tensor:
    """Reverse rows and columns, in another precision; `flip` would take another matrix on the way."""
    reversed_KK = torch.empty(matrix_KK.shape, dtype=dtype)
    for begin in range(0, len(matrix_KK), INVERTED_AT_ONCE):
        rows_CK = matrix_KK[begin : begin + INVERTED_AT_ONCE]
        end = len(matrix_KK) - begin
        reversed_KK[end - len(rows_CK) : end] = rows_CK.flip(0, 1)
    return reversed_KK


def inverse_factor(hessian_KK: Tensor) -> Tensor:
    """Compute U with UᵀU = H⁻¹ of the damped H, in float64, because the H of few tokens is nearly singular.

    With rows and columns reversed, H = L Lᵀ, and L⁻¹ is U reversed: one factor and its inverse, in one matrix.
    """
    inverse_KK = invert_lower(cholesky(damped(_reversed(hessian_KK, torch.float64), DAMPING)))
    return _reversed(inverse_KK, torch.float32)
