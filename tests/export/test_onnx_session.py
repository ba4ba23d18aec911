"""Weights that are packed once give bit-identical logits, from pages that belong to a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from export.pipeline import export_model
from export.presets import WeightType, nearest_config
from export.runtime.decoder import OnnxDecoder
from export.runtime.exported_model import INT8_CACHE_FILE, Cache
from export.runtime.session import packed_folder

Captured = pytest.CaptureFixture[str]
PROMPT = np.random.default_rng(0).integers(3, 320, 200).tolist()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def packed_files(home: Path) -> dict[Path, int]:
    """Return the files of packed weights and when each was made."""
    return {path: path.stat().st_mtime_ns for path in (home / "prepacked").glob("*/*/*") if path.is_file()}


def assert_same_logits(decoder: OnnxDecoder, plain: OnnxDecoder) -> None:
    np.testing.assert_array_equal(decoder.start([PROMPT]), plain.start([PROMPT]))
    for token in (5, 9, 7):
        np.testing.assert_array_equal(decoder.step(np.array([token])), plain.step(np.array([token])))


@pytest.mark.parametrize("cache", ["exact", "int8"])
def test_packed_weights_say_the_same_and_are_made_once(calibrated: Path, home: Path, cache: Cache) -> None:
    plain = OnnxDecoder(calibrated, cache=cache)
    assert packed_files(home) == {}
    assert_same_logits(OnnxDecoder(calibrated, cache=cache, prepacked=True), plain)
    made = packed_files(home)
    assert {path.name for path in made} == {"model.onnx", "model.onnx.data"}
    assert_same_logits(OnnxDecoder(calibrated, cache=cache, prepacked=True), plain)
    assert packed_files(home) == made


@pytest.mark.parametrize("weights", ["int8", "fp16", "fp32"])
def test_every_weight_type_can_be_packed(tiny_student: Path, weights: WeightType, tmp_path: Path) -> None:
    export_model(replace(nearest_config(tiny_student, tmp_path / weights, weights), bounds=None))
    assert_same_logits(OnnxDecoder(tmp_path / weights, prepacked=True), OnnxDecoder(tmp_path / weights))


@pytest.mark.parametrize("own", [True, False])
def test_three_bits_can_be_packed_for_either_kernels(fast: Path, own: bool) -> None:
    assert_same_logits(OnnxDecoder(fast, prepacked=True, own_kernels=own), OnnxDecoder(fast, own_kernels=own))


def test_packed_weights_are_mapped(calibrated: Path) -> None:
    decoder = OnnxDecoder(calibrated, prepacked=True)
    assert str(packed_folder(calibrated / INT8_CACHE_FILE)) in Path("/proc/self/maps").read_text()
    assert decoder.max_length == 512


def test_another_release_packs_anew_and_drops_what_the_last_one_packed(
    calibrated: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    OnnxDecoder(calibrated, prepacked=True)
    before = packed_files(home)
    monkeypatch.setattr(ort, "__version__", "1.99.0")
    OnnxDecoder(calibrated, prepacked=True)
    after = packed_files(home)
    assert len(after) == len(before) == 2
    assert not after.keys() & before.keys()


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_damaged_packed_weights_are_named_in_one_line_and_made_again(
    calibrated: Path, home: Path, name: str, capsys: Captured
) -> None:
    OnnxDecoder(calibrated, prepacked=True)
    path = packed_folder(calibrated / INT8_CACHE_FILE) / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    capsys.readouterr()
    assert_same_logits(OnnxDecoder(calibrated, prepacked=True), OnnxDecoder(calibrated))
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("packed weights cannot be used and will be made again at the next start: ")
    assert str(path.parent) in line
    OnnxDecoder(calibrated, prepacked=True)
    assert path.read_bytes() == whole


def test_without_room_for_them_the_weights_are_copied(calibrated: Path, home: Path, capsys: Captured) -> None:
    home.write_text("a file where the folder should be")
    assert_same_logits(OnnxDecoder(calibrated, prepacked=True), OnnxDecoder(calibrated))
    assert len(capsys.readouterr().err.splitlines()) == 1
