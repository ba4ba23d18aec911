"""Quantized checkpoints become the floats that their formats define, and are exported like any other model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.local.quantized_checkpoint import quantize
from export.checkpoint.quantized_formats import AWQ_ORDER
from export.dequantized_model import float_folder
from export.pipeline import export_model
from export.presets import nearest_config
from export.runtime.decoder import OnnxDecoder
from toolkit.errors import InputError

GROUP = 16
Made = tuple[dict[str, Tensor], Tensor]
"""The tensors that a format stores for a matrix, by the ends of their names, and the floats that they stand for."""


def random_codes(weight_NK: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes_NK, and zeros_NG and scales_NG of groups of `GROUP` columns."""
    generator = torch.Generator().manual_seed(weight_NK.numel())
    rows, columns = weight_NK.shape
    codes_NK = torch.randint(0, 2**bits, (rows, columns), generator=generator)
    zeros_NG = torch.randint(1, 2**bits - 1, (rows, columns // GROUP), generator=generator)
    return codes_NK, zeros_NG, (torch.rand(zeros_NG.shape, generator=generator) * 0.01 + 0.002).half()


def floats(codes_NK: Tensor, zeros_NG: Tensor, scales_NG: Tensor, group_K: list[int]) -> Tensor:
    expected_NK = torch.empty(codes_NK.shape)
    for n in range(len(codes_NK)):
        for k, group in enumerate(group_K):
            expected_NK[n, k] = float(scales_NG[n, group]) * (int(codes_NK[n, k]) - int(zeros_NG[n, group]))
    return expected_NK


def packed(codes: Tensor, bits: int, axis: int, order: tuple[int, ...] = ()) -> Tensor:
    """Pack codes along an axis into int32, by plain loops over words."""
    rows = codes if axis == 1 else codes.T
    per_word = 32 // bits
    words = np.zeros((len(rows), rows.shape[1] // per_word), dtype=np.uint32)
    for n in range(words.shape[0]):
        for w in range(words.shape[1]):
            for i in range(per_word):
                place = order[i] if order else i
                words[n, w] |= np.uint32(int(rows[n, w * per_word + place]) << (bits * i))
    packed = torch.from_numpy(words.view(np.int32))
    return packed if axis == 1 else packed.T.contiguous()


def gptq(weight_NK: Tensor, bits: int = 4, less: int = 1) -> Made:
    codes_NK, zeros_NG, scales_NG = random_codes(weight_NK, bits)
    columns = weight_NK.shape[1]
    group_K = torch.randperm(columns, generator=torch.Generator().manual_seed(1)).div(GROUP, rounding_mode="floor")
    parts = {
        "qweight": packed(codes_NK.T, bits, axis=0),
        "qzeros": packed(zeros_NG.T - less, bits, axis=1),
        "scales": scales_NG.T.contiguous(),
        "g_idx": group_K.int(),
        "bias": torch.zeros(len(weight_NK)),
    }
    return parts, floats(codes_NK, zeros_NG, scales_NG, group_K.tolist())


def awq(weight_NK: Tensor) -> Made:
    codes_NK, zeros_NG, scales_NG = random_codes(weight_NK, 4)
    parts = {
        "qweight": packed(codes_NK.T, 4, axis=1, order=AWQ_ORDER),
        "qzeros": packed(zeros_NG.T, 4, axis=1, order=AWQ_ORDER),
        "scales": scales_NG.T.contiguous(),
    }
    return parts, floats(codes_NK, zeros_NG, scales_NG, [k // GROUP for k in range(weight_NK.shape[1])])


def compressed(weight_NK: Tensor, *, symmetric: bool) -> Made:
    codes_NK, zeros_NG, scales_NG = random_codes(weight_NK, 4)
    if symmetric:
        zeros_NG = torch.full_like(zeros_NG, 8)
    parts = {
        "weight_packed": packed(codes_NK, 4, axis=1),
        "weight_scale": scales_NG.bfloat16(),
        "weight_shape": torch.tensor(weight_NK.shape),
        "input_scale": torch.ones(1),
    }
    if not symmetric:
        parts["weight_zero_point"] = packed(zeros_NG, 4, axis=0)
    group_K = [k // GROUP for k in range(weight_NK.shape[1])]
    return parts, floats(codes_NK, zeros_NG, scales_NG.bfloat16(), group_K)


def compressed_fp8(weight_NK: Tensor) -> Made:
    scale_N1 = weight_NK.abs().amax(1, keepdim=True) / 448
    codes_NK = (weight_NK / scale_N1).to(torch.float8_e4m3fn)
    return {"weight": codes_NK, "weight_scale": scale_N1}, codes_NK.float() * scale_N1


def fp8_blocks(weight_NK: Tensor) -> Made:
    """Scale blocks of 48 by 32, of which the last rows have fewer."""
    codes_NK, expected_NK = torch.empty(weight_NK.shape), torch.empty(weight_NK.shape)
    rows, columns = (-(-size // block) for size, block in zip(weight_NK.shape, (48, 32), strict=True))
    scales = torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            place = slice(48 * i, 48 * i + 48), slice(32 * j, 32 * j + 32)
            scales[i, j] = weight_NK[place].abs().max() / 448
            codes_NK[place] = (weight_NK[place] / scales[i, j]).to(torch.float8_e4m3fn).float()
            expected_NK[place] = codes_NK[place] * scales[i, j]
    return {"weight": codes_NK.to(torch.float8_e4m3fn), "weight_scale_inv": scales}, expected_NK


def weights(**facts: Any) -> dict[str, Any]:
    group = {"weights": {"num_bits": 4, "type": "int", "group_size": GROUP} | facts}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


FORMATS: dict[str, tuple[Callable[[Tensor], Made], dict[str, Any]]] = {
    "GPTQ": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True}),
    "GPTQ in 8 bits": (lambda w: gptq(w, 8), {"quant_method": "gptq", "bits": 8, "group_size": GROUP}),
    "GPTQ's second form": (
        lambda w: gptq(w, 4, 0),
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"},
    ),
    "AWQ": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}),
    "compressed-tensors": (lambda w: compressed(w, symmetric=True), weights()),
    "compressed-tensors with zeros": (lambda w: compressed(w, symmetric=False), weights(symmetric=False)),
    "compressed-tensors in fp8": (compressed_fp8, weights(num_bits=8, type="float")),
    "fp8 by blocks": (fp8_blocks, {"quant_method": "fp8", "weight_block_size": [48, 32]}),
}


def write_quantized(student: Path, folder: Path, kind: str) -> dict[str, Tensor]:
    """Write a student as a format has it, and return the floats of its tensors by name."""
    shutil.copytree(student, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    make, settings = FORMATS[kind]
    stored: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for name, tensor in load_file(student / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            stored[name] = expected[name] = tensor
            continue
        parts, expected[name] = make(tensor.float())
        stored |= {f"{name.removesuffix('weight')}{end}": part for end, part in parts.items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return expected


def read_floats(folder: Path) -> Mapping[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_matrix_is_what_its_format_defines(kind: str, tiny_student: Path, tmp_path: Path) -> None:
    expected = write_quantized(tiny_student, tmp_path / "quantized", kind)
    found = read_floats(float_folder(tmp_path / "quantized"))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name].to(tensor.dtype), rtol=1e-6, atol=1e-9)
    assert found["model.layers.0.mlp.up_proj.weight"].dtype == torch.float32


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_what_toolkit_quantize_wrote_is_exported_as_bitsandbytes_reads_it(
    kind: str, tiny_student: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    quantize(str(tiny_student), tmp_path / "quantized", {"nf4": "4bit", "int8": "8bit"}[kind])  # type: ignore[arg-type]
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "quantized")
    model = model.dequantize().float()
    export_model(nearest_config(float_folder(tmp_path / "quantized"), tmp_path / "fp32", "fp32"))
    ids = np.random.default_rng(0).integers(0, 320, 40).tolist()
    expected_TV = model(torch.tensor([ids])).logits[0].detach().numpy()
    np.testing.assert_allclose(
        OnnxDecoder(tmp_path / "fp32").score(ids), expected_TV, atol=0.02 * np.abs(expected_TV).max()
    )


def test_a_quantized_checkpoint_is_exported_and_its_floats_are_made_once(
    tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    write_quantized(tiny_student, tmp_path / "quantized", "GPTQ")
    for out in ("fp32", "again"):
        export_model(nearest_config(tmp_path / "quantized", tmp_path / out, "fp32"))
    assert capsys.readouterr().err.count("is quantized (gptq); its floats are written to") == 1
    model: Any = AutoModelForCausalLM.from_pretrained(float_folder(tmp_path / "quantized"), dtype=torch.float32)
    ids = np.random.default_rng(0).integers(0, 320, 40).tolist()
    expected_TV = model(torch.tensor([ids])).logits[0].detach().numpy()
    np.testing.assert_allclose(OnnxDecoder(tmp_path / "fp32").score(ids), expected_TV, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "quip"}, r"quantization_config \(quip\) of .*config\.json must be one of awq, bitsandbytes"),
        ({"quant_method": "gptq", "bits": 3}, r"bits \(3\) in the quantization_config of .* must be 2 or 4 or 8"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, r"version \(gemv\) in the .* must be gemm"),
        ({"quant_method": "awq", "bits": 4}, r"are no matrix in the format awq \(RuntimeError"),
    ],
)
def test_another_format_is_refused_by_name_and_leaves_nothing(
    settings: dict[str, Any], message: str, tiny_student: Path, tmp_path: Path
) -> None:
    write_quantized(tiny_student, tmp_path / "quantized", "GPTQ")
    path = tmp_path / "quantized" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    with pytest.raises(InputError, match=message):
        float_folder(tmp_path / "quantized")
    assert not list((tmp_path / "home").glob("models/*"))
