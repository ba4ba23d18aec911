"""Recovery has exact gradients and the model's own products, lowers the divergence, and leaves the codes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from export.calibration.texts import read_texts
from export.checkpoint.heads import are_arranged
from export.checkpoint.source import float_model
from export.checkpoint.tensors import LM_HEAD, Checkpoint, checkpoint_names
from export.checks.parity import Bounds, compare
from export.folder.resume_log import FOLDER
from export.folder.weights_file import FILE_NAME
from export.pipeline import export_model
from export.presets import RECOVERED, int4_config
from export.quantization.codes import Weight, dequantize, quantize_nearest
from export.quantization.layout import layouts
from export.recovery import CodedLinear, CodedProduct, Recovery, check_recovery, quantized_model
from export.runtime.decoder import OnnxDecoder
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.runs import file_digest, read_manifest

WIDE = Bounds(max_mean_kl=9.0, min_top1=0.0)
KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from export.checks.parity import Bounds
from export.pipeline import export_model
from export.presets import int4_config
from export.folder.weights_file import WeightsFile

class Killed(WeightsFile):
    def replace_scales(self, stored, scales):
        super().replace_scales(stored, scales)
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

import export.pipeline
export.pipeline.WeightsFile = Killed
source, out, traces = map(Path, sys.argv[1:])
config = int4_config(source, out, calibration=traces, recovery="scales")
export_model(replace(config, bounds=Bounds(max_mean_kl=9.0, min_top1=0.0)))
"""
"""The process that kills itself, as kill -9 does, when the first recovered scales are in the weights file."""


def test_a_product_s_gradients_are_those_of_the_written_out_weight() -> None:
    torch.manual_seed(0)
    steps_NK = torch.randint(-15, 16, (6, 8), dtype=torch.int16)
    input_BTK = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    scales_NJ = torch.rand(6, 2, dtype=torch.float64, requires_grad=True)

    def product(input_BTK: Tensor, scales_NJ: Tensor) -> Tensor:
        output_BTN: Tensor = CodedProduct.apply(input_BTK, steps_NK, scales_NJ)  # type: ignore[no-untyped-call]
        return output_BTN

    assert torch.autograd.gradcheck(product, (input_BTK, scales_NJ))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_coded_product_is_the_product_with_what_the_kernel_reads(bits: int) -> None:
    generator = np.random.default_rng(0)
    weight_NK = generator.normal(size=(12, 96)).astype(np.float32)
    coded = quantize_nearest(weight_NK, bits=bits, block_size=32)
    input_TK = torch.from_numpy(generator.normal(size=(5, 96)).astype(np.float32))
    bias_N = torch.arange(8.0)
    output_TN = CodedLinear(coded, slice(4, 12), bias_N)(input_TK)
    expected_TN = input_TK @ torch.from_numpy(dequantize(coded)[4:]).T + bias_N
    torch.testing.assert_close(output_TN, expected_TN)


def test_before_its_first_step_a_model_says_what_its_weights_say(checkpoint_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint_folder, dtype=torch.float32)
    checkpoint = Checkpoint(checkpoint_folder, None)
    family = checkpoint.config.family
    if family.norms_add_one or are_arranged(checkpoint.config) or checkpoint.config.logits_scaling != 1:
        with pytest.raises(InputError, match=f"cannot train {checkpoint.config.architecture}"):
            check_recovery(checkpoint.config)
        return
    check_recovery(checkpoint.config)
    weights: dict[str, Weight] = {}
    for name, layout in layouts(checkpoint.config, bits=4, block_size=32, head_bits=8, has_own_head=True).items():
        sources = [checkpoint.head] if name == LM_HEAD else checkpoint_names(checkpoint.config, name)
        values_NK = np.concatenate([checkpoint.array(source) for source in sources])
        weights[name] = quantize_nearest(values_NK, bits=layout.bits, block_size=layout.block_size)
    student = quantized_model(model, checkpoint.config, weights)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    with torch.no_grad():
        for name, weight in weights.items():
            targets = [model.get_parameter(source) for source in checkpoint_names(checkpoint.config, name)]
            values = torch.from_numpy(dequantize(weight)).split([len(target) for target in targets])
            for target, rows_NK in zip(targets, values, strict=True):
                target.copy_(rows_NK)
    ids_BT = torch.randint(3, 320, (2, 9))
    torch.testing.assert_close(student(ids_BT).logits, model(ids_BT).logits, atol=1e-4, rtol=1e-4)
    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert all(name.endswith(("scales_NJ.original", "norm.parametrizations.weight.original")) for name in trained)
    matrices = sum(len(sources) for sources in family.sources.values())
    assert len(trained) == 2 * matrices + sum(name.endswith("norm.weight") for name in checkpoint.shapes)


@pytest.fixture(scope="module")
def outspoken(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny student with larger weights, so that rounding changes its outputs."""
    folder = Path(shutil.copytree(tiny_student, tmp_path_factory.mktemp("outspoken") / "model"))
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: 4 * tensor if tensor.ndim == 2 else tensor for name, tensor in tensors.items()},
        folder / "model.safetensors",
    )
    return folder


@pytest.fixture(scope="module")
def exported(outspoken: Path, traces: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same export without and with recovery."""
    folder = tmp_path_factory.mktemp("recovered")
    recoveries: tuple[Recovery, ...] = get_args(Recovery)
    for recovery in recoveries:
        config = int4_config(outspoken, folder / recovery, calibration=traces, recovery=recovery)
        export_model(replace(config, bounds=WIDE))
    return {recovery: folder / recovery for recovery in recoveries}


def test_recovery_brings_the_divergence_down_and_leaves_every_code(
    exported: dict[str, Path], outspoken: Path, traces: Path
) -> None:
    texts = read_texts(traces, ChatFormat.from_folder(outspoken), tokens=2000, max_length=512).calibration
    model = float_model(Checkpoint(outspoken))
    kl = {recovery: compare(model, OnnxDecoder(folder), texts, []).mean_kl for recovery, folder in exported.items()}
    assert kl["scales"] < 0.99 * kl["none"], kl
    before, after = ((exported[recovery] / FILE_NAME).read_bytes() for recovery in ("none", "scales"))
    assert len(before) == len(after)
    assert 0 < sum(a != b for a, b in zip(before, after, strict=True)) < 0.1 * len(before)
    report = (read_manifest(exported["scales"]) or {})["measured"]["recovery"]
    assert report["kept"] and report["mean_kl_after"] < report["mean_kl_before"]


def test_a_recovery_that_does_not_help_texts_that_were_kept_apart_changes_nothing(
    exported: dict[str, Path], outspoken: Path, traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.recovery.LEARNING_RATE", 0.5)
    out = tmp_path / "int4"
    manifest = export_model(replace(int4_config(outspoken, out, calibration=traces, recovery="scales"), bounds=WIDE))
    report = manifest["measured"]["recovery"]
    assert not report["kept"] and report["mean_kl_after"] > report["mean_kl_before"]
    for name in (FILE_NAME, "model.onnx"):
        assert file_digest(out / name) == file_digest(exported["none"] / name)


def test_an_export_that_is_killed_while_it_writes_scales_does_not_train_what_is_trained(
    exported: dict[str, Path], outspoken: Path, traces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "int4"
    arguments = [str(outspoken), str(out), str(traces)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / ".int4.partial" / FOLDER / RECOVERED).is_file()
    export_model(replace(int4_config(outspoken, out, calibration=traces, recovery="scales"), bounds=WIDE))
    for name in (FILE_NAME, "model.onnx"):
        assert file_digest(out / name) == file_digest(exported["scales"] / name)


def test_recovery_needs_texts(tiny_student: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--recovery scales needs traces to train on"):
        int4_config(tiny_student, tmp_path / "out", preset="quick", recovery="scales")
