"""Stores the latents that absorbed attention reads, in one of two formats, each with its two products.

    float   latent [B, S, P], rotated key [B, S, R], in the model's type
    int8    latent int8 [B, S, P], its step [B, S, 1] and the rotated key [B, S, R] in the model's type;
            number = int8 · step, -127 to 127

A step belongs to a token, so it can be taken out of both sums: it becomes a factor of the scores, and of the softmax's
weights. What remains is a product with int8 numbers. On a CPU with int8 instructions the other factor becomes two int8
digits, 16 bits of sign and size, which the processor multiplies exactly: four times faster than fp32, and nothing is
written back in float. Elsewhere the int8 numbers are cast.

The rotated key is not quantized: with it in int8 too, the built-in teacher's KL divergence tripled (5.9e-4 against
1.9e-4, with 0.20 % of the first choices changed against 0.04 %), for a tenth of V2-Lite's bytes.
"""

# Shapes: B batch, Y rows of all heads and new tokens, S attended tokens, P rank kept of a latent, R rope, K summed
# over.

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

LARGEST = 127
SECOND_DIGIT = 2 * LARGEST
"""The second digit counts parts of the first one's unit, of which rounding leaves at most half."""
MOST_SUMMED = 2**17
"""The most products in a sum: 127 · 127 · 2^17 still fits into an int32."""


@dataclass(frozen=True)
class FloatLatents:
    """Latents and rotated keys as the model computes them, in floats."""

    latent: Tensor
    rotated: Tensor

    def scores(self, rows_BYP: Tensor, rows_BYR: Tensor, scaling: float) -> Tensor:
        scores_BYS = torch.bmm(rows_BYP, self.latent.transpose(1, 2))
        return torch.baddbmm(scores_BYS, rows_BYR, self.rotated.transpose(1, 2), beta=scaling, alpha=scaling)

    def mix(self, weights_BYS: Tensor) -> Tensor:
        """Return weighted sums of the latents, BYP."""
        return torch.bmm(weights_BYS.to(self.latent.dtype), self.latent)

    def restore(self) -> tuple[Tensor, Tensor]:
        return self.latent, self.rotated


@dataclass(frozen=True)
class Int8Latents:
    """Latents in int8, with a step for each token."""

    latent: Tensor
    step: Tensor
    rotated: Tensor

    def scores(self, rows_BYP: Tensor, rows_BYR: Tensor, scaling: float) -> Tensor:
        scores_BYS = product(rows_BYP, self.latent.transpose(1, 2)).mul_(self.step.transpose(1, 2))
        rotated_BYS = torch.bmm(rows_BYR, self.rotated.transpose(1, 2))
        return scores_BYS.add_(rotated_BYS).mul_(scaling)

    def mix(self, weights_BYS: Tensor) -> Tensor:
        """Return weighted sums of the latents, BYP."""
        return product(weights_BYS * self.step.transpose(1, 2), self.latent).to(self.rotated.dtype)

    def restore(self) -> tuple[Tensor, Tensor]:
        return self.latent * self.step, self.rotated


Latents = FloatLatents | Int8Latents


def quantize(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row (last dimension) to int8, with a step by its largest absolute value, in the numbers' type."""
    kind = torch.finfo(numbers.dtype)
    largest = numbers.abs().amax(-1, keepdim=True).float()  # bf16 has too few digits to divide by
    step = (largest * (1 + kind.eps) / LARGEST).clamp(min=kind.tiny).to(numbers.dtype)  # never rounded to less
    return (numbers.float() / step.float()).round().to(torch.int8), step


def product(rows_BYK: Tensor, values_BKS: Tensor) -> Tensor:
    """Multiply float rows with int8 values, in fp32; without int8 instructions it is computed in the rows' type."""
    if values_BKS.device.type != "cpu" or not multiplies_int8():
        return torch.bmm(rows_BYK, values_BKS.to(rows_BYK.dtype)).float()
    rows_BYK = rows_BYK.float()  # to split it into digits
    first_BYK, unit_BY1 = quantize(rows_BYK)
    second_BYK = ((rows_BYK / unit_BY1 - first_BYK) * SECOND_DIGIT).round().to(torch.int8)
    digits_BZK = torch.cat([first_BYK, second_BYK], dim=1)
    sums_BZS = torch.stack([_int8_product(*pair) for pair in zip(digits_BZK, values_BKS, strict=True)])
    first_BYS, second_BYS = sums_BZS.chunk(2, dim=1)
    return torch.add(first_BYS, second_BYS, alpha=1 / SECOND_DIGIT).mul_(unit_BY1)


@cache
def multiplies_int8() -> bool:
    """Whether int8 products are fast and exact here.

    Instructions older than VNNI saturate at 16 bits, and oneDNN uses them if `ONEDNN_MAX_CPU_ISA` says so.
    """
    if not torch.cpu._is_vnni_supported():
        return False
    largest = torch.full((64, 64), LARGEST, dtype=torch.int8)
    return bool((torch._int_mm(largest, largest) == 64 * LARGEST**2).all())


def _int8_product(digits_ZK: Tensor, values_KS: Tensor) -> Tensor:
    if len(values_KS) <= MOST_SUMMED:
        return torch._int_mm(digits_ZK, values_KS).float()
    parts = zip(digits_ZK.split(MOST_SUMMED, dim=1), values_KS.split(MOST_SUMMED), strict=True)
    return torch.stack([torch._int_mm(*part).float() for part in parts]).sum(0)
