"""Computes the floats that a quantized checkpoint stands for, one matrix at a time.

    method               a matrix' tensors                                   its floats
    fp8, fbgemm_fp8      weight, weight_scale_inv or weight_scale            weight · scale of its block, row or whole
    compressed-tensors   weight or weight_packed, weight_scale, …            (code - zero) · scale of its group
    gptq                 qweight, qzeros, scales, g_idx                      (code - zero) · scale of its group
    awq                  qweight, qzeros, scales                             the same, in another order
    bitsandbytes         weight, weight.absmax, … or weight, SCB             by the library, or code · SCB / 127

Source: transformers' finegrained_fp8; the packages compressed-tensors, GPTQModel, AutoAWQ and bitsandbytes.

Shapes: N output features, K input features, G groups of input features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import InputError, MissingExtra

Parts = Mapping[str, Tensor]
"""The tensors of one matrix, by what their names have behind the module's."""
WORD = 32
"""Bits of the integers into which codes are packed."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The column, of each eight, whose code is packed first, second …"""
PACKED_BITS = (2, 4, 8)
"""Widths of codes of which a word holds a whole number."""


def from_fp8(parts: Parts, settings: Mapping[str, Any]) -> Tensor:
    """Return weight_NK; a scale belongs to a block, to a row, or to the whole matrix."""
    weight_NK = parts["weight"].float()
    scale = parts["weight_scale_inv" if "weight_scale_inv" in parts else "weight_scale"].float()
    if scale.dim() < 2:
        return weight_NK * scale.reshape(-1, 1)
    rows, columns = settings.get("weight_block_size") or (1, weight_NK.shape[1])
    if "weight_scale_inv" not in parts and scale.shape[1] > 1:
        columns = weight_NK.shape[1] // scale.shape[1]
    scale_NK = scale.repeat_interleave(rows, 0)[: len(weight_NK)].repeat_interleave(columns, 1)
    return weight_NK * scale_NK[:, : weight_NK.shape[1]]


def from_compressed(parts: Parts, settings: Mapping[str, Any]) -> Tensor:
    """Return weight_NK of codes that are packed along a row, or stored one by one."""
    if "weight_packed" not in parts:
        return from_fp8(parts, {})
    bits = _weights_of(settings)["num_bits"]
    rows, columns = (int(size) for size in parts["weight_shape"])
    half = 1 << (bits - 1)
    codes_NK = unpacked(parts["weight_packed"], bits, axis=1)[:rows, :columns] - half
    scale_NG = parts["weight_scale"].float()
    groups = scale_NG.shape[1]
    group_K = parts["weight_g_idx"].long() if "weight_g_idx" in parts else torch.arange(columns) // (columns // groups)
    if "weight_zero_point" in parts:
        zero = parts["weight_zero_point"]
        zero_NG = unpacked(zero, bits, axis=0)[:rows] - half if zero.dtype == torch.int32 else zero
        codes_NK = codes_NK - zero_NG[:, group_K]
    weight_NK: Tensor = codes_NK * scale_NG[:, group_K]
    return weight_NK


def from_gptq(parts: Parts, settings: Mapping[str, Any]) -> Tensor:
    """Return weight_NK of codes that are packed along a column."""
    bits = settings["bits"]
    codes_KN = unpacked(parts["qweight"], bits, axis=0)
    zeros_GN = unpacked(parts["qzeros"], bits, axis=1)
    if settings.get("checkpoint_format", "gptq") != "gptq_v2":
        zeros_GN = zeros_GN + 1  # the first form stores one less
    features, groups = len(codes_KN), len(zeros_GN)
    group_K = parts["g_idx"].long() if "g_idx" in parts else torch.arange(features) // (features // groups)
    return ((codes_KN - zeros_GN[group_K]) * parts["scales"].float()[group_K]).T


def from_awq(parts: Parts, settings: Mapping[str, Any]) -> Tensor:
    """Return weight_NK of codes that are packed along a row of the transposed matrix, each eight in `AWQ_ORDER`."""
    bits = settings["bits"]
    codes_KN, zeros_GN = (_in_order(unpacked(parts[name], bits, axis=1)) for name in ("qweight", "qzeros"))
    group_K = torch.arange(len(codes_KN)) // (len(codes_KN) // len(zeros_GN))
    return ((codes_KN - zeros_GN[group_K]) * parts["scales"].float()[group_K]).T


def from_bitsandbytes(parts: Parts, settings: Mapping[str, Any]) -> Tensor:
    """Return weight_NK of NF4 or FP4, or of eight bits."""
    if "SCB" in parts:
        return parts["weight"].float() * (parts["SCB"].float()[:, None] / 127)
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise MissingExtra("bitsandbytes", "distill") from error
    state = functional.QuantState.from_dict(
        {name.removeprefix("weight."): part for name, part in parts.items() if name.startswith("weight.")},
        device=torch.device("cpu"),
    )
    floats: Tensor = functional.dequantize_4bit(parts["weight"], state)
    return floats.float()


FORMATS: Mapping[str, Callable[[Parts, Mapping[str, Any]], Tensor]] = {
    "awq": from_awq,
    "bitsandbytes": from_bitsandbytes,
    "compressed-tensors": from_compressed,
    "fbgemm_fp8": from_fp8,
    "fp8": from_fp8,
    "gptq": from_gptq,
}
MARKS = ("qweight", "weight_scale_inv", "weight_scale", "weight.absmax", "SCB")
"""What the names of a quantized matrix' tensors have in common: one of these."""


def check_format(where: str, settings: Mapping[str, Any]) -> None:
    """Raise `InputError` if this is no format of `FORMATS`, or a variant whose floats are not computed here."""
    method = settings.get("quant_method")
    if method not in FORMATS:
        raise InputError(
            f"quantization_config ({method}) of {where} must be one of {', '.join(FORMATS)}; export the model that it "
            "was quantized from"
        )
    weights = _weights_of(settings)
    checks: Mapping[str, Sequence[tuple[str, Any, tuple[Any, ...]]]] = {
        "awq": [
            ("bits", settings.get("bits"), PACKED_BITS),
            ("version", str(settings.get("version", "gemm")).lower(), ("gemm",)),
        ],
        "compressed-tensors": [
            ("num_bits", weights.get("num_bits"), PACKED_BITS),
            ("type", weights.get("type"), ("int", "float")),
        ],
        "gptq": [("bits", settings.get("bits"), PACKED_BITS)],
    }
    for name, found, supported in checks.get(str(method), ()):
        if found not in supported:
            raise InputError(
                f"{name} ({found}) in the quantization_config of {where} must be {' or '.join(map(str, supported))}; "
                "export the model that it was quantized from"
            )


def _weights_of(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how compressed-tensors quantized all matrices; raises `InputError` if they differ."""
    found = [group.get("weights") or {} for group in (settings.get("config_groups") or {}).values()]
    if len({(group.get("num_bits"), group.get("type")) for group in found}) > 1:
        raise InputError("the groups of quantization_config have several widths; export the model that was quantized")
    return found[0] if found else {}


def unpacked(words: Tensor, bits: int, *, axis: int) -> Tensor:
    """Take codes out of words along an axis, the lowest bits first."""
    shifts = torch.arange(0, WORD, bits)
    shape = [1] * (words.dim() + 1)
    shape[axis + 1] = len(shifts)
    codes = (words.long().unsqueeze(axis + 1) >> shifts.view(shape)) & ((1 << bits) - 1)
    return codes.flatten(axis, axis + 1)


def _in_order(codes: Tensor) -> Tensor:
    eights = codes.unflatten(1, (-1, len(AWQ_ORDER)))
    ordered = torch.empty_like(eights)
    ordered[:, :, list(AWQ_ORDER)] = eights
    return ordered.flatten(1)
