"""Rounds float weights to blocks of 3, 4 or 8 bits, in the layout of onnxruntime's MatMulNBits, or to shorter floats.

Each row is cut into blocks of `block_size` weights with a scale and a zero point: w ≈ scale · (code − zero_point).
Scales are rounded to fp16 before codes are chosen, because the file keeps them in fp16. The zero point is a code too,
so zero stays zero; with 3 bits only nearly, as their codes are the even ones of 4 bits and the zero point may be odd,
which lowers the error of a layer's output by 4 %. onnxruntime has no 3 bits: MatMul3Bits is ours
(`export.graph.matmul_3bits`). Source: onnxruntime's contrib operators MatMulNBits and GatherBlockQuantized.

Shapes: N output features, K input features, J = K / block_size blocks of a row, M = block_size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.generation.generate import Floats

Halves = NDArray[np.float16]
Bytes = NDArray[np.uint8]

LARGEST_CODE_BITS = 8
"""Weights of more bits are floats."""
SMALLEST_SCALE = np.float16(2.0**-24)
"""The smallest positive fp16, for blocks that are all zero or nearly so."""
THREE_BITS_BLOCK = 256
"""The only block size with 3 bits."""
LOWS, THIRDS = np.uint8(0x66), np.uint8(0x88)
"""Masks of a byte with two even codes: their two lower bits of three, and their third bits."""
CACHED_WEIGHTS = 1 << 17
"""How many weights are rounded at once: their float32 values stay in a core's second-level cache."""


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """One packed matrix.

    codes        uint8 [N, J, M·bits/8]     4 bits: byte b of a block holds code 2b in its low, 2b+1 in its high nibble
                                            3 bits: even codes; from the bytes p that they take in 4 bits,
                                                byte b < 64 of a block   0x66 of p[b] and p[b+64], shifted by −1 and 1
                                                byte 64 + b              0x88 of p[b], p[b+32], p[b+64] and p[b+96],
                                                                         shifted by −3, −2, −1 and 0
    scales       fp16  [N, J]
    zero_points  uint8 [N, J] with 8 bits, else [N, ⌈J/2⌉], packed as codes of 4 bits; an unused high nibble is 0
    """

    bits: int
    block_size: int
    codes: Bytes
    scales: Halves
    zero_points: Bytes

    @property
    def in_features(self) -> int:
        blocks: int = self.scales.shape[1]
        return blocks * self.block_size

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The arrays in the order of the file."""
        return self.codes, self.scales, self.zero_points

    @property
    def size_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


@dataclass(frozen=True, kw_only=True)
class FloatWeight:
    """One matrix [N, K] in float32 or fp16."""

    values: Floats | Halves

    @property
    def bits(self) -> int:
        return 8 * self.values.itemsize

    @property
    def block_size(self) -> int:
        """Zero, because floats share no scales."""
        return 0

    @property
    def in_features(self) -> int:
        columns: int = self.values.shape[1]
        return columns

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        return (self.values,)


Weight = QuantizedWeight | FloatWeight


def largest_code(bits: int) -> int:
    return 14 if bits == 3 else 2**bits - 1


def nearest_codes(steps: Tensor, zero_points: Tensor, bits: int) -> Tensor:
    """Round to the nearest codes, in place; `steps` are weights divided by their scale."""
    if bits == 3:
        steps.add_(zero_points).div_(2).round_().mul_(2)
    else:
        steps.round_().add_(zero_points)
    return steps.clamp_(0, largest_code(bits))


def round_nearest(weight_NK: Floats, *, bits: int, block_size: int) -> Weight:
    """Round each weight to the nearest value of so many bits."""
    if bits <= LARGEST_CODE_BITS:
        return quantize_nearest(weight_NK, bits=bits, block_size=block_size)
    return FloatWeight(values=weight_NK.astype(np.float16) if bits == 16 else weight_NK)


def quantize_nearest(weight_NK: Floats, *, bits: int, block_size: int) -> QuantizedWeight:
    """Round each weight to the nearest code of its block's whole range."""
    rows, columns = weight_NK.shape
    codes_NJM = np.empty((rows, columns // block_size, block_size), dtype=np.uint8)
    scales_NJ = np.empty(codes_NJM.shape[:2], dtype=np.float16)
    zero_points_NJ = np.empty(codes_NJM.shape[:2], dtype=np.uint8)
    step = max(1, CACHED_WEIGHTS // columns)
    for begin in range(0, rows, step):
        some = slice(begin, begin + step)
        blocks_NJM = torch.from_numpy(weight_NK[some]).view(-1, columns // block_size, block_size)
        codes_NJM[some], scales_NJ[some], zero_points_NJ[some] = _nearest(blocks_NJM, bits)
    return pack(codes_NJM, scales_NJ, zero_points_NJ, bits=bits)


def _nearest(blocks_NJM: Tensor, bits: int) -> tuple[Bytes, Halves, Bytes]:
    """Round blocks that fit the processor's cache; returns codes_NJM, scales_NJ and zero_points_NJ."""
    largest = largest_code(bits)
    low_NJ = blocks_NJM.amin(-1).clamp_(max=0.0)
    high_NJ = blocks_NJM.amax(-1).clamp_(min=0.0)
    scales_NJ = ((high_NJ - low_NJ) / largest).half().clamp_(min=float(SMALLEST_SCALE))
    steps_NJ = scales_NJ.float()
    zero_points_NJ = (-low_NJ / steps_NJ).round_().clamp_(0, largest)
    codes_NJM = nearest_codes(blocks_NJM / steps_NJ[..., None], zero_points_NJ[..., None], bits)
    return codes_NJM.byte().numpy(), scales_NJ.numpy(), zero_points_NJ.byte().numpy()


def pack(codes_NJM: Bytes, scales_NJ: Halves, zero_points_NJ: Bytes, *, bits: int) -> QuantizedWeight:
    """Pack one code a byte into the layout of `QuantizedWeight`."""
    assert bits in (4, 8) or (bits == 3 and codes_NJM.shape[-1] == THREE_BITS_BLOCK)
    codes = codes_NJM if bits == 8 else _pack_nibbles(codes_NJM)
    return QuantizedWeight(
        bits=bits,
        block_size=codes_NJM.shape[-1],
        codes=_narrow(codes) if bits == 3 else codes,
        scales=scales_NJ,
        zero_points=zero_points_NJ if bits == 8 else _pack_nibbles(zero_points_NJ),
    )


def dequantize(weight: Weight) -> Floats:
    """Return weight_NK as the kernel sees it."""
    if isinstance(weight, FloatWeight):
        return weight.values.astype(np.float32)
    rows, blocks = weight.scales.shape
    codes = _widen(weight.codes) if weight.bits == 3 else weight.codes
    codes_NJM = codes if weight.bits == 8 else _unpack_nibbles(codes)
    zero_points_NJ = weight.zero_points if weight.bits == 8 else _unpack_nibbles(weight.zero_points)[:, :blocks]
    steps_NJM = codes_NJM.astype(np.float32) - zero_points_NJ[..., None].astype(np.float32)
    weight_NJM: Floats = steps_NJM * weight.scales[..., None].astype(np.float32)
    return weight_NJM.reshape(rows, -1)


def _narrow(nibbles: Bytes) -> Bytes:
    """Pack blocks of 128 bytes, whose nibbles are even, into 96 bytes."""
    low, high = np.split(nibbles & LOWS, 2, axis=-1)
    first, second, third, fourth = np.split(nibbles & THIRDS, 4, axis=-1)
    return np.concatenate([low >> 1 | high << 1, first >> 3 | second >> 2 | third >> 1 | fourth], axis=-1)


def _widen(codes: Bytes) -> Bytes:
    """Invert `_narrow`."""
    low, high = np.split(codes, [THREE_BITS_BLOCK // 4], axis=-1)
    lows: Bytes = np.concatenate([low << 1, low >> 1], axis=-1)
    thirds: Bytes = np.concatenate([high << 3, high << 2, high << 1, high], axis=-1)
    return lows & LOWS | thirds & THIRDS


def _pack_nibbles(values: Bytes) -> Bytes:
    """Pack two values along the last axis into one byte, low nibble first; an odd count is padded with 0."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    pairs = np.ascontiguousarray(values).view("<u2")  # low nibble in bits 0 to 3, high nibble in bits 8 to 11
    packed: Bytes = (pairs | pairs >> 4).astype(np.uint8)  # keeps bits 0 to 7
    return packed


def _unpack_nibbles(packed: Bytes) -> Bytes:
    values = np.stack([packed & 15, packed >> 4], axis=-1)
    return values.reshape(*packed.shape[:-1], -1)
