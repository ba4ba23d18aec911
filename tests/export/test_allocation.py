"""Bits go where they are needed, and never beyond the size that was asked for."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from export.allocation import Choice, choose
from export.checks.parity import Bounds
from export.pipeline import export_model
from export.presets import ExportConfig, int4_config
from toolkit.errors import InputError

WIDE = Bounds(max_mean_kl=9.0, min_top1=0.0)
FRAGILE = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def config(tiny_student: Path, traces: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportConfig:
    """A model with one matrix that four bits can't hold: large weights in each block beside many small ones."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("fragile")
    source = Path(shutil.copytree(tiny_student, folder / "source"))
    tensors = load_file(source / "model.safetensors")
    tensors = {name: x * 3 if x.dim() == 2 and "embed" not in name else x for name, x in tensors.items()}
    tensors[FRAGILE] *= 10
    tensors[FRAGILE][:, ::8] *= 10
    save_file(tensors, source / "model.safetensors")
    return replace(int4_config(source, folder / "int4", calibration=traces), bounds=WIDE, bits_per_weight=5.6)


def test_the_fragile_matrix_gets_eight_bits_and_the_size_holds(config: ExportConfig) -> None:
    measured = export_model(config)["measured"]
    choices = {choice.name: choice for choice in map(Choice.from_dict, measured["allocation"])}
    assert choices[FRAGILE].bits == 8
    assert {choice.bits for choice in choices.values()} == {4, 8}
    assert sum(choice.size_bytes for choice in choices.values()) <= 5.6 * measured["parameters"] / 8
    stored = (config.out / "model.onnx.data").stat().st_size
    assert abs(stored - sum(choice.size_bytes for choice in choices.values())) < 64 * 3 * len(choices)


def test_more_bytes_say_more_of_what_the_float_model_says(config: ExportConfig, tmp_path: Path) -> None:
    divergences = [
        export_model(replace(config, out=tmp_path / str(bits), bits_per_weight=bits))["measured"]["parity"]["mean_kl"]
        for bits in (4.4, 8.3)
    ]
    assert divergences[1] < 0.2 * divergences[0]


def test_a_size_below_four_bits_has_three_in_some_matrices_of_the_layers(
    wide_student: Path, traces: Path, tmp_path: Path
) -> None:
    config = int4_config(wide_student, tmp_path / "int4", calibration=traces, bits_per_weight=3.6)
    measured = export_model(replace(config, bounds=WIDE))["measured"]
    choices = list(map(Choice.from_dict, measured["allocation"]))
    assert {choice.bits for choice in choices} >= {3, 4}
    assert all("layers" in choice.name for choice in choices if choice.bits == 3)
    assert sum(choice.size_bytes for choice in choices) <= 3.6 * measured["parameters"] / 8


def test_a_size_below_the_smallest_formats_is_refused(config: ExportConfig, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"\(1,000 bytes\) must hold the weights in their smallest format \([\d,]+ bytes\)"
    ):
        export_model(replace(config, out=tmp_path / "int4", bits_per_weight=0.0, max_bytes=1000))
    assert list(tmp_path.iterdir()) == []


def test_a_size_without_traces_is_refused(tiny_student: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--size and --bits-per-weight need traces to measure on"):
        int4_config(tiny_student, tmp_path / "int4", max_bytes=10**9)


def test_bytes_go_to_the_step_that_saves_most_a_byte() -> None:
    def choice(name: str, size: int, cost: float) -> Choice:
        return Choice(name=name, bits=4, block_size=32, size_bytes=size, cost=cost)

    candidates = {
        "steep": [choice("steep", 10, 1.0), choice("steep", 12, 0.2), choice("steep", 30, 0.1)],
        "flat": [choice("flat", 10, 0.3), choice("flat", 20, 0.1)],
    }
    assert [c.size_bytes for c in choose(candidates, 21)] == [10, 10]
    assert [c.size_bytes for c in choose(candidates, 23)] == [12, 10]
    assert [c.size_bytes for c in choose(candidates, 32)] == [12, 20]
    assert [c.size_bytes for c in choose(candidates, 1000)] == [30, 20]
