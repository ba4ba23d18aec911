"""Searches scales and zero points: each weight's error counts in proportion to its inputs' mean square.

A weight's importance is E[x²] of its input: the diagonal of H, of which error feedback needs the whole. So the search
holds a vector instead of matrices of K × K, and ignores correlations between inputs. (The idea of llama.cpp's
importance matrices for its k-quants.)

Shapes: N output features, K input features, J blocks of a row, M block_size, P shares of a range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from export.quantization.codes import SMALLEST_SCALE, QuantizedWeight, largest_code, nearest_codes, pack

CLIPPING = torch.linspace(1.0, 0.6, 17)
"""Shares of a block's range to try. Below 0.6 none was ever best in our trials."""
ROWS_AT_ONCE = 256
"""How many rows are searched together; affects only memory."""
ROUNDS = 4
"""Rounds that try neighbouring zero points, each with the scale that fits its codes."""


def quantize_by_importance(weight_NK: Tensor, importance_K: Tensor, *, bits: int, block_size: int) -> QuantizedWeight:
    """Quantize each block by itself, with the scale and zero point that a search finds."""
    rows, columns = weight_NK.shape
    codes_NK = torch.empty(rows, columns, dtype=torch.uint8)
    scales_NJ = torch.empty(rows, columns // block_size)
    zero_points_NJ = torch.empty_like(scales_NJ)
    for block in range(columns // block_size):
        some = slice(block * block_size, (block + 1) * block_size)
        weight_NM, importance_M = weight_NK[:, some], importance_K[some]
        scale_N, zero_point_N = best_range(weight_NM, importance_M, bits)
        for _ in range(ROUNDS):
            scale_N, zero_point_N = _improved(weight_NM, importance_M, scale_N, zero_point_N, bits)
        steps_NM = _steps(weight_NM, scale_N, zero_point_N, bits)
        codes_NK[:, some] = (steps_NM + zero_point_N[:, None]).byte()
        scales_NJ[:, block], zero_points_NJ[:, block] = scale_N, zero_point_N
    codes_NJM = codes_NK.reshape(rows, -1, block_size)
    return pack(codes_NJM.numpy(), scales_NJ.half().numpy(), zero_points_NJ.byte().numpy(), bits=bits)


def _steps(weight_NM: Tensor, scale_N: Tensor, zero_point_N: Tensor, bits: int) -> Tensor:
    """Return the nearest codes minus their zero points."""
    codes_NM = nearest_codes(weight_NM / scale_N[:, None], zero_point_N[:, None], bits)
    return codes_NM - zero_point_N[:, None]


def _improved(
    weight_NM: Tensor, importance_M: Tensor, scale_N: Tensor, zero_point_N: Tensor, bits: int
) -> tuple[Tensor, Tensor]:
    """Choose for each row the best of its present range and of those with a neighbouring zero point and a new scale."""
    scales, zero_points, errors = [scale_N], [zero_point_N], []
    for offset in (-1, 0, 1):
        moved_N = (zero_point_N + offset).clamp_(0, largest_code(bits))
        scales.append(_refitted(weight_NM, importance_M, scale_N, moved_N, bits))
        zero_points.append(moved_N)
    for scale, zero_point in zip(scales, zero_points, strict=True):
        rounded_NM = _steps(weight_NM, scale, zero_point, bits) * scale[:, None]
        errors.append((rounded_NM - weight_NM).square_() @ importance_M)
    best_1N = torch.stack(errors).argmin(0, keepdim=True)
    return torch.stack(scales).gather(0, best_1N)[0], torch.stack(zero_points).gather(0, best_1N)[0]


def _refitted(weight_NM: Tensor, importance_M: Tensor, scale_N: Tensor, zero_point_N: Tensor, bits: int) -> Tensor:
    """Find the best scale for the present scale's codes, in fp16; keeps a scale that they do not determine."""
    steps_NM = _steps(weight_NM, scale_N, zero_point_N, bits)
    curvature_N = steps_NM.square() @ importance_M
    fitted_N = ((steps_NM * weight_NM) @ importance_M / curvature_N).half().float()
    usable_N = torch.isfinite(fitted_N) & (fitted_N > 0)
    return torch.where(usable_N, fitted_N, scale_N)


def best_range(weight_NM: Tensor, importance_M: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Find scale (an fp16 value in float32) and zero point of each row's block, by the weighted squared error."""
    ranges = [_best_range(rows_NM, importance_M, bits) for rows_NM in weight_NM.split(ROWS_AT_ONCE)]
    scales, zero_points = zip(*ranges, strict=True)
    return torch.cat(scales), torch.cat(zero_points)


def _best_range(weight_NM: Tensor, importance_M: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    largest = largest_code(bits)
    low_N1 = weight_NM.amin(1, keepdim=True).clamp(max=0.0)
    high_N1 = weight_NM.amax(1, keepdim=True).clamp(min=0.0)
    scales_NP = ((high_N1 - low_N1) / largest * CLIPPING).half().float().clamp(min=float(SMALLEST_SCALE))
    zero_points_NP = (-low_N1 * CLIPPING / scales_NP).round_().clamp_(0, largest)
    codes_NPM = nearest_codes(weight_NM[:, None] / scales_NP[..., None], zero_points_NP[..., None], bits)
    rounded_NPM = (codes_NPM - zero_points_NP[..., None]) * scales_NP[..., None]
    errors_NP = (rounded_NPM - weight_NM[:, None]).square_() @ importance_M
    best_N1 = errors_NP.argmin(1, keepdim=True)
    return scales_NP.gather(1, best_N1)[:, 0], zero_points_NP.gather(1, best_N1)[:, 0]
