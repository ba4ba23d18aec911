"""A float model that does not fit the memory is read layer by layer for the gate, and gives the same logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from export import pipeline
from export.calibration.texts import CalibrationText
from export.checkpoint.source import float_model
from export.checkpoint.tensors import Checkpoint
from export.checks.layerwise import LayerwiseModel
from export.checks.parity import Bounds
from export.pipeline import export_model
from export.presets import ExportConfig, int4_config
from toolkit.cli.main import main
from toolkit.errors import GateFailed, InputError
from toolkit.machine.allowance import memory

TEXTS = [
    CalibrationText(prompt=[1, 5, 9, 200], completion=[7, 8, 9]),
    CalibrationText(prompt=list(range(3, 60)), completion=list(range(100, 140))),
    CalibrationText(prompt=[1], completion=[2]),
]
WIDE = Bounds(max_mean_kl=0.5, min_top1=0.3)


@torch.no_grad()
def test_its_logits_are_those_of_transformers(checkpoint_folder: Path) -> None:
    checkpoint = Checkpoint(checkpoint_folder)
    layerwise, whole, layers = LayerwiseModel(checkpoint), float_model(checkpoint), []
    layerwise.prepare(TEXTS, lambda: layers.append(1))
    assert len(layers) == checkpoint.config.num_hidden_layers
    unprepared = CalibrationText(prompt=[4, 5], completion=[6])
    for text in [*TEXTS, unprepared]:
        count = len(text.completion) + 1
        found, expected = (model(torch.tensor([text.ids]), logits_to_keep=count).logits for model in (layerwise, whole))
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "memory", lambda: replace(memory(), available_bytes=1000))


def exported(config: ExportConfig, out: Path) -> dict[str, object]:
    manifest = export_model(replace(config, out=out))
    return dict(manifest["measured"])


@pytest.mark.parametrize("is_calibrated", [True, False])
def test_the_gate_measures_the_same(
    is_calibrated: bool,
    tiny_student: Path,
    traces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calibration = traces if is_calibrated else None
    config = replace(int4_config(tiny_student, tmp_path, calibration=calibration), bounds=WIDE)
    whole = exported(config, tmp_path / "whole")
    monkeypatch.setattr(pipeline, "memory", lambda: replace(memory(), available_bytes=1000))
    layerwise = exported(config, tmp_path / "layerwise")
    assert "is read layer by layer" in capsys.readouterr().err
    found, expected = layerwise["parity"], whole["parity"]
    assert isinstance(found, dict) and isinstance(expected, dict)
    assert found["first_divergence"] == [] and expected["first_divergence"]
    if is_calibrated:
        assert found["tokens"] == expected["tokens"] and found["top1"] == pytest.approx(expected["top1"], abs=0.02)
        assert found["mean_kl"] == pytest.approx(expected["mean_kl"], rel=1e-3)
        assert layerwise["places"] == {
            place: pytest.approx(there, rel=1e-2, abs=0.02)
            for place, there in dict(whole["places"]).items()  # type: ignore[call-overload]
        }
    assert main(["verify", str(tmp_path / "layerwise")]) == 0


def test_it_fails_what_is_out_of_bounds(tiny_student: Path, traces: Path, tmp_path: Path, little_memory: None) -> None:
    config = int4_config(tiny_student, tmp_path / "int4", calibration=traces)
    with pytest.raises(GateFailed, match="mean KL to the float model"):
        export_model(replace(config, bounds=Bounds(max_mean_kl=1e-9, min_top1=0.0)))
    assert not config.out.exists()


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"recovery": "scales"}, r"--recovery scales needs memory for 2 float models \(\d"),
        ({"bits_per_weight": 4.6}, r"a size needs memory for 1 float model \(\d"),
    ],
)
def test_what_needs_the_whole_model_says_so(
    changed: dict[str, object], said: str, tiny_student: Path, traces: Path, tmp_path: Path, little_memory: None
) -> None:
    config = int4_config(tiny_student, tmp_path / "int4", calibration=traces)
    with pytest.raises(InputError, match=said):
        export_model(replace(config, **changed))  # type: ignore[arg-type]
