"""`toolkit export --plan` says what an export takes, and makes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from export import planning
from export.pipeline import export_model
from export.planning import plan_export
from export.presets import Preset, int4_config
from toolkit.cli.main import main
from toolkit.errors import InputError
from toolkit.machine.allowance import memory

ALIGNED = 64
"""Bytes to which each stored matrix may be padded."""


@pytest.mark.parametrize("preset", ["balanced", "best", "quick"])
def test_the_planned_weights_are_those_that_are_written(
    preset: Preset, tiny_student: Path, traces: Path, tmp_path: Path
) -> None:
    calibration = None if preset == "quick" else traces
    config = int4_config(tiny_student, tmp_path / "int4", preset=preset, calibration=calibration)
    plan = plan_export(config)
    assert list(tmp_path.iterdir()) == []
    assert plan.layer_s > 0 and plan.rounding_s >= plan.layers * plan.layer_s
    assert plan.gate_bytes == 4 * plan.parameters and plan.gate_s > 0
    export_model(replace(config, bounds=None))
    written = (config.out / "model.onnx.data").stat().st_size
    assert 0 <= written - plan.weight_bytes < 8192 + ALIGNED * 20 * plan.layers


def test_the_command_prints_the_plan(
    tiny_student: Path, traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(tiny_student), "--calibration", str(traces), "--plan", "--out", str(tmp_path / "int4")]
    assert main([*words, "--no-parity"]) == 0
    printed = capsys.readouterr().out
    assert "parameters become" in printed and "rounding: 2 layers of" in printed and "no gate (--no-parity)" in printed
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["layers"] == 2 and facts["rounding_bytes"] > 2**20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changed", [{"max_bytes": 10**6}, {"bits_per_weight": 4.5}, {"recovery": "scales"}])
def test_what_takes_an_unknown_time_is_not_planned(
    changed: dict[str, object], tiny_student: Path, traces: Path, tmp_path: Path
) -> None:
    config = int4_config(tiny_student, tmp_path / "int4", calibration=traces)
    with pytest.raises(InputError, match="--plan knows neither the time of --size"):
        plan_export(replace(config, **changed))  # type: ignore[arg-type]


def test_a_float_model_that_does_not_fit_is_planned_layer_by_layer(
    tiny_student: Path, traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = int4_config(tiny_student, tmp_path / "int4", calibration=traces)
    whole = plan_export(config)
    monkeypatch.setattr(planning, "memory", lambda: replace(memory(), available_bytes=whole.gate_bytes - 1))
    plan = plan_export(config)
    assert plan.reads_layers and not whole.reads_layers
    assert plan.gate_bytes * plan.layers < whole.gate_bytes
    assert "the gate, layer by layer" in plan.text()
