"""Packing and rounding equal plain loops over the format's definition."""

from __future__ import annotations

import numpy as np
import pytest

from export.quantization.codes import CACHED_WEIGHTS, QuantizedWeight, dequantize, quantize_nearest


def unpack_by_loops(weight: QuantizedWeight) -> np.ndarray:
    """Read each code where MatMulNBits reads it: low nibble first, zero points packed along the blocks."""
    rows, blocks = weight.scales.shape
    values = np.zeros((rows, blocks * weight.block_size), dtype=np.float32)
    bits = max(weight.bits, 4)
    per_byte = 8 // bits
    mask = 2**bits - 1
    for row in range(rows):
        for column in range(values.shape[1]):
            block, place = divmod(column, weight.block_size)
            if weight.bits == 3:
                code = three_bits(weight.codes[row, block].tolist(), place)
            else:
                code = int(weight.codes[row, block, place // per_byte]) >> (bits * (place % per_byte)) & mask
            zero_byte = int(weight.zero_points[row, block // per_byte])
            zero_point = zero_byte >> (bits * (block % per_byte)) & mask
            values[row, column] = np.float32(weight.scales[row, block]) * np.float32(code - zero_point)
    return values


def three_bits(block: list[int], place: int) -> int:
    """Return twice one code of a block's 96 bytes: two bits are among the first 64, the third among the rest."""
    half, byte = divmod(place // 2, 64)
    low = block[byte] >> (4 * (place % 2) + 2 * half) & 3
    quarter, byte = divmod(place // 2, 32)
    return 2 * (low | (block[64 + byte] >> (4 * (place % 2) + quarter) & 1) << 2)


@pytest.mark.parametrize(("bits", "block_size"), [(3, 256), (4, 32), (8, 32)])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_dequantize_reads_the_layout_as_loops_do(bits: int, block_size: int, blocks: int) -> None:
    weight_NK = np.random.default_rng(0).normal(size=(5, block_size * blocks)).astype(np.float32)
    weight = quantize_nearest(weight_NK, bits=bits, block_size=block_size)
    np.testing.assert_array_equal(dequantize(weight), unpack_by_loops(weight))
    assert len(np.unique(dequantize(weight)[0, :block_size])) >= min(2 ** (bits - 1), block_size // 2)


@pytest.mark.parametrize(("bits", "block_size"), [(3, 256), (4, 32), (8, 32)])
def test_rounding_errs_by_at_most_one_step_and_keeps_zero_from_four_bits_on(bits: int, block_size: int) -> None:
    weight_NK = np.random.default_rng(1).normal(size=(16, 2 * block_size)).astype(np.float32)
    weight_NK[3, 7] = 0.0
    weight = quantize_nearest(weight_NK, bits=bits, block_size=block_size)
    steps_NK = np.repeat(weight.scales.astype(np.float32), block_size, axis=1)
    if bits == 3:  # of even codes alone, around a zero point that may be odd
        assert np.all(np.abs(dequantize(weight) - weight_NK) <= 2 * steps_NK)
        assert np.abs(dequantize(weight) - weight_NK).mean() < 0.6 * steps_NK.mean()
        return
    assert np.all(np.abs(dequantize(weight) - weight_NK) <= steps_NK)
    assert np.abs(dequantize(weight) - weight_NK).mean() < 0.3 * steps_NK.mean()
    assert dequantize(weight)[3, 7] == 0.0


def test_blocks_of_zeros_of_one_sign_and_of_tiny_values_stay_finite() -> None:
    weight_NK = np.zeros((4, 32), dtype=np.float32)
    weight_NK[1] = 3.0
    weight_NK[2] = -np.linspace(1, 2, 32)
    weight_NK[3] = 1e-12
    restored = dequantize(quantize_nearest(weight_NK, bits=4, block_size=32))
    np.testing.assert_array_equal(restored[0], 0.0)
    np.testing.assert_allclose(restored[1:3], weight_NK[1:3], atol=0.1)
    np.testing.assert_allclose(restored[3], 0.0, atol=1e-6)


def test_a_weight_costs_what_the_layout_says() -> None:
    weight_NK = np.ones((8, 128), dtype=np.float32)
    four, eight = (quantize_nearest(weight_NK, bits=bits, block_size=32).size_bytes for bits in (4, 8))
    assert four * 8 / weight_NK.size == 4 + 16 / 32 + 4 / 32
    assert eight * 8 / weight_NK.size == 8 + 16 / 32 + 8 / 32
    three = quantize_nearest(np.ones((8, 512), dtype=np.float32), bits=3, block_size=256).size_bytes
    assert three * 8 / (8 * 512) == 3 + 16 / 256 + 4 / 256


def by_the_formula(weight_NK: np.ndarray, *, bits: int, block_size: int) -> QuantizedWeight:
    """Quantize the whole matrix at once in numpy, one code a byte, and then join nibbles by strides."""
    blocks_NJM = weight_NK.reshape(len(weight_NK), -1, block_size)
    largest = 2**bits - 1
    low_NJ, high_NJ = np.minimum(blocks_NJM.min(-1), 0.0), np.maximum(blocks_NJM.max(-1), 0.0)
    scales_NJ = np.maximum(((high_NJ - low_NJ) / largest).astype(np.float16), np.float16(2.0**-24))
    steps_NJ = scales_NJ.astype(np.float32)
    zero_points_NJ = np.clip(np.rint(-low_NJ / steps_NJ), 0, largest)
    codes_NJM = np.clip(np.rint(blocks_NJM / steps_NJ[..., None]) + zero_points_NJ[..., None], 0, largest)
    codes, zero_points = codes_NJM.astype(np.uint8), zero_points_NJ.astype(np.uint8)
    if bits == 4:
        zero_points = np.pad(zero_points, ((0, 0), (0, zero_points.shape[1] % 2)))
        codes, zero_points = (x[..., 0::2] | x[..., 1::2] << 4 for x in (codes, zero_points))
    return QuantizedWeight(bits=bits, block_size=block_size, codes=codes, scales=scales_NJ, zero_points=zero_points)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("block_size", "columns"), [(32, 32 * 9), (64, 64 * 5), (128, 128 * 4), (256, 256 * 3)])
def test_rounding_in_slices_of_the_cache_gives_the_bits_of_the_formula(
    bits: int, block_size: int, columns: int
) -> None:
    generator = np.random.default_rng(2)
    weight_NK = generator.normal(size=(CACHED_WEIGHTS // columns * 2 + 3, columns)).astype(np.float32)
    weight_NK *= np.exp(generator.normal(scale=2.0, size=(len(weight_NK), 1))).astype(np.float32)
    weight_NK[1] = 0.0
    weight_NK[2] = np.round(weight_NK[2] * 2) / 2  # halfway cases
    weight_NK[3] *= np.float32(1e-9)
    weight_NK[4] = np.abs(weight_NK[4])
    expected, found = (f(weight_NK, bits=bits, block_size=block_size) for f in (by_the_formula, quantize_nearest))
    for name in ("codes", "scales", "zero_points"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name, strict=True)
