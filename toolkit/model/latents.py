"""What absorbed attention reads: cached latents in one of two formats, each with its two products.

    float   [latent | rotated key], two tensors of the model's type
    int8    values int8 [B, S, P + R]   a token's latent, then its rotated key
            steps  fp32 [B, S, 2]       of the latent, of the rotated key: number = value · step, |value| ≤ 127

A step belongs to a token, so it leaves both sums: of the scores it is a factor, and of the softmax's weights too.
What is left is a product with int8 numbers. On a CPU with int8 instructions the other factor becomes two int8 digits,
18 bits of sign and size, which the processor multiplies exactly: four times faster than fp32, and nothing is written
back in float. Elsewhere the int8 numbers are cast.
"""

# Shapes: B batch, Y rows of all heads and new tokens, S attended tokens, P rank kept of a latent, R rope, K summed over.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 127
SECOND_DIGIT = 2 * LARGEST
"""The second digit counts in parts of the first one's unit, of which rounding leaves at most half."""
MOST_SUMMED = 2**17
"""127 · 127 · 2^17 is still an int32."""


@dataclass(frozen=True)
class FloatLatents:
    """Latents and rotated keys as the model computes them."""

    latent: Tensor
    rotated: Tensor

    def scores(self, rows_BYP: Tensor, rows_BYR: Tensor, scaling: float) -> Tensor:
        scores_BYS = torch.bmm(rows_BYP, self.latent.transpose(1, 2))
        return torch.baddbmm(scores_BYS, rows_BYR, self.rotated.transpose(1, 2), beta=scaling, alpha=scaling)

    def mix(self, weights_BYS: Tensor) -> Tensor:
        """Weighted sums of the latents, BYP."""
        return torch.bmm(weights_BYS.to(self.latent.dtype), self.latent)

    def restore(self) -> tuple[Tensor, Tensor]:
        return self.latent, self.rotated


@dataclass(frozen=True)
class Int8Latents:
    """Both as int8 with a step a token; `dtype` is the model's."""

    values: Tensor
    steps: Tensor
    rank: int
    dtype: torch.dtype

    def scores(self, rows_BYP: Tensor, rows_BYR: Tensor, scaling: float) -> Tensor:
        latent_BPS, rotated_BRS = self.values.transpose(1, 2).split([self.rank, rows_BYR.shape[-1]], dim=1)
        latent_step_BS, rotated_step_BS = self.steps.unbind(-1)
        scores_BYS = product(rows_BYP, latent_BPS, self.dtype) * (scaling * latent_step_BS)[:, None]
        return scores_BYS.addcmul_(product(rows_BYR, rotated_BRS, self.dtype), (scaling * rotated_step_BS)[:, None])

    def mix(self, weights_BYS: Tensor) -> Tensor:
        """Weighted sums of the latents, BYP."""
        mixed_BYP = product(weights_BYS * self.steps[:, None, :, 0], self.values[..., : self.rank], self.dtype)
        return mixed_BYP.to(self.dtype)

    def restore(self) -> tuple[Tensor, Tensor]:
        latent_BSP = self.values[..., : self.rank] * self.steps[..., :1]
        rotated_BSR = self.values[..., self.rank :] * self.steps[..., 1:]
        return latent_BSP.to(self.dtype), rotated_BSR.to(self.dtype)


Latents = FloatLatents | Int8Latents


def quantize(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Each row (last dimension) to int8 and its fp32 step, by its largest size."""
    numbers = numbers.float()  # steps of bf16 would move the largest past 127
    step = numbers.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / LARGEST
    return (numbers / step).round().to(torch.int8), step


def product(rows_BYK: Tensor, values_BKS: Tensor, dtype: torch.dtype) -> Tensor:
    """Float rows times int8 values, in fp32; where there are no int8 instructions, computed in `dtype`."""
    if values_BKS.device.type != "cpu" or not torch.cpu._is_vnni_supported():
        return torch.bmm(rows_BYK.to(dtype), values_BKS.to(dtype)).float()
    rows_BYK = rows_BYK.float()  # to split it into digits
    first_BYK, unit_BY1 = quantize(rows_BYK)
    second_BYK = ((rows_BYK / unit_BY1 - first_BYK) * SECOND_DIGIT).round().to(torch.int8)
    digits_BZK = torch.cat([first_BYK, second_BYK], dim=1)
    sums_BZS = torch.stack([_int8_product(*pair) for pair in zip(digits_BZK, values_BKS, strict=True)])
    first_BYS, second_BYS = sums_BZS.chunk(2, dim=1)
    return torch.add(first_BYS, second_BYS, alpha=1 / SECOND_DIGIT).mul_(unit_BY1)


def _int8_product(digits_ZK: Tensor, values_KS: Tensor) -> Tensor:
    if len(values_KS) <= MOST_SUMMED:
        return torch._int_mm(digits_ZK, values_KS).float()
    parts = zip(digits_ZK.split(MOST_SUMMED, dim=1), values_KS.split(MOST_SUMMED), strict=True)
    return torch.stack([torch._int_mm(*part).float() for part in parts]).sum(0)
