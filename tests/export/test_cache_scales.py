"""An int8 cache is as good as an exact one at every position, and one that is not is neither exported nor verified."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from apps.model import check_folder
from export.calibration.cache_scales import LARGEST_CODE
from export.calibration.texts import CalibrationText, read_texts
from export.checkpoint.model_config import read_model_config
from export.checkpoint.source import float_model
from export.checkpoint.tensors import Checkpoint
from export.checks.gate import check_source, pass_gate
from export.checks.parity import divergence
from export.merged_model import open_source
from export.pipeline import export_model
from export.presets import int4_config
from export.runtime.decoder import OnnxDecoder
from export.runtime.exported_model import INT8_CACHE_FILE, chosen_cache
from export.runtime.verify.checks import outgrown, verify
from export.runtime.verify.divergence import EXPECTED_FILE, read_expected, write_expected
from export.runtime.verify.probes import LONG
from tests.export.conftest import BIASED_CONTEXT
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.runs import file_facts, read_manifest

HALF = 32
"""Pairs of a head."""


@pytest.fixture
def copied(biased: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(biased, tmp_path / "copy"))


@pytest.fixture(scope="module")
def texts(biased: Path, traces: Path) -> list[CalibrationText]:
    return read_texts(traces, ChatFormat.from_folder(biased), tokens=4000, max_length=BIASED_CONTEXT).held_out


def steps(folder: Path) -> dict[str, np.ndarray]:
    graph = onnx.load(folder / INT8_CACHE_FILE, load_external_data=False).graph
    return {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name.endswith(".steps")}


def give_old_steps(folder: Path, texts: list[CalibrationText]) -> None:
    """Give each channel of keys the step of its own largest value in short texts, as before pairs shared one."""
    decoder = OnnxDecoder(folder, cache="exact")
    largest: dict[str, np.ndarray] = {}
    for text in texts:
        decoder.start([text.ids])
        for name, kept in decoder.kept().items():
            if not name.endswith("key"):
                continue
            seen = np.abs(kept).max(1).reshape(-1)
            largest[f"past_key_values.{name}.steps"] = np.maximum(
                largest.get(f"past_key_values.{name}.steps", seen), seen
            )
    model = onnx.load(folder / INT8_CACHE_FILE, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.name in largest:
            tensor.CopyFrom(numpy_helper.from_array(largest[tensor.name] * np.float32(1.1 / LARGEST_CODE), tensor.name))
    onnx.save(model, folder / INT8_CACHE_FILE)
    repair_manifest(folder)


def repair_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["outputs"] = {p.name: file_facts(p) for p in sorted(folder.iterdir()) if p.name != path.name}
    path.write_text(json.dumps(manifest))


def failures(folder: Path, *, fast: bool = False) -> dict[str, str]:
    return {check.name: check.line for check in verify(folder, fast=fast) if check.outcome == "failed"}


@torch.no_grad()
def test_large_key_biases_leave_int8_near_exact_at_long_positions(biased_student: Path, biased: Path) -> None:
    ids = np.random.default_rng(0).integers(3, 320, BIASED_CONTEXT).tolist()
    float_TV = float_model(Checkpoint(biased_student))(torch.tensor([ids])).logits[0].log_softmax(-1)
    kl = {}
    for cache in ("exact", "int8"):
        decoder = OnnxDecoder(biased, cache=cache)
        decoder.start([ids[:1]])
        pieces = [decoder.extend(ids[begin : begin + 16]) for begin in range(1, BIASED_CONTEXT, 16)]
        kl[cache] = divergence(float_TV[1:], torch.from_numpy(np.concatenate(pieces)).log_softmax(-1))
    for begin, end in ((0, 100), (100, 300), (300, 700), (700, 1000), (1000, BIASED_CONTEXT)):
        assert kl["int8"][begin:end].mean() <= 1.5 * kl["exact"][begin:end].mean(), (begin, end)


def test_no_position_outgrows_a_step(biased: Path) -> None:
    decoder = OnnxDecoder(biased, cache="exact")
    decoder.start([np.random.default_rng(1).integers(3, 320, BIASED_CONTEXT).tolist()])
    for name, kept_GSA in decoder.kept().items():
        steps_G1A = steps(biased)[f"past_key_values.{name}.steps"].reshape(len(kept_GSA), 1, -1)
        if name.endswith("key"):  # other tokens may be larger by a hair; with old steps it is 450
            assert (np.abs(kept_GSA) / steps_G1A).max() <= 1.02 * LARGEST_CODE, name
        first_G1R, second_G1R = steps_G1A[..., :HALF], steps_G1A[..., HALF:]
        assert np.array_equal(first_G1R, second_G1R) == name.endswith("key")


@pytest.mark.parametrize("checkpoint_folder", ["SmolLM3"], indirect=True)
def test_a_layer_that_does_not_turn_keeps_a_step_for_each_channel(
    checkpoint_folder: Path, traces: Path, tmp_path: Path
) -> None:
    config = read_model_config(checkpoint_folder)
    assert {rope is None for rope in config.ropes} == {True, False}
    export_model(replace(int4_config(checkpoint_folder, tmp_path / "int4", calibration=traces), bounds=None))
    found = steps(tmp_path / "int4")
    for layer, rope in enumerate(config.ropes):
        steps_GA = found[f"past_key_values.{layer}.key.steps"].reshape(config.num_key_value_heads, -1)
        first_GR, second_GR = np.split(steps_GA, 2, axis=-1)
        assert np.array_equal(first_GR, second_GR) == (rope is not None)


def test_the_gate_leaves_an_int8_cache_out_that_long_texts_outgrow(
    copied: Path, biased_student: Path, texts: list[CalibrationText], capsys: pytest.CaptureFixture[str]
) -> None:
    config = int4_config(biased_student, copied)
    assert config.bounds
    give_old_steps(copied, texts)
    source = open_source(biased_student, None)
    measured = pass_gate(source, copied, "int8", config.bounds, texts, check_source(source))
    begun, line, progress = capsys.readouterr().err.splitlines()
    assert begun.startswith("gate  0/")
    assert line.startswith(
        f"export: keys and values are kept exactly: the int8 cache's mean KL to the float model at {LONG} ("
    )
    assert re.match(r"gate  (\d+)/\1  100 %", progress), "each step is counted once"
    assert measured["cache"] == "exact"
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps(manifest | {"measured": manifest["measured"] | measured}))
    assert manifest["config"]["cache"] == "int8"
    assert chosen_cache(copied) == "exact"
    with pytest.raises(
        InputError, match=r"an int8 cache needs .*int8-cache\.onnx, which is missing; keep it exact, because"
    ):
        OnnxDecoder(copied, cache="int8")
    repair_manifest(copied)
    assert failures(copied) == {}


def test_verify_finds_an_int8_cache_that_long_texts_outgrow(copied: Path, texts: list[CalibrationText]) -> None:
    assert failures(copied) == {}
    path = copied / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["measured"]["coarse_parity"]["top1"] -= 0.1  # an untrained model's near ties, which any other step decides
    path.write_text(json.dumps(manifest))
    give_old_steps(copied, texts)
    found = failures(copied)
    assert list(found) == ["divergence"]
    assert f" at {LONG} (" in found["divergence"]


def make_older(folder: Path) -> None:
    """Turn a folder into one from before the gate looked beyond the traces."""
    write_expected(folder, read_expected(folder), {})
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in ("places", "cache"):
        del manifest["measured"][name]
    path.write_text(json.dumps(manifest))
    repair_manifest(folder)
    assert set(np.load(folder / EXPECTED_FILE).files) == {"tokens", "lengths", "positions", "ids", "log_probs", "rest"}


@pytest.mark.parametrize("fast", [True, False])
def test_a_folder_with_steps_of_before_is_told_to_be_exported_again(
    copied: Path, fast: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    make_older(copied)
    line = (
        f"{copied} keeps keys and values in int8 with steps that long texts outgrow; "
        "export again, or run it with --cache exact"
    )
    assert failures(copied, fast=fast) == {"divergence": line}
    check_folder(copied)
    assert capsys.readouterr().err == f"{line}\n"


def test_an_older_folder_with_exact_keys_is_as_good_as_ever(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_older(copied)
    path = copied / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["cache"] = "exact"
    path.write_text(json.dumps(manifest))
    assert (read_manifest(copied) or {})["config"]["cache"] == chosen_cache(copied) == "exact"
    assert outgrown(copied) == ""
    assert "divergence" not in failures(copied)
    check_folder(copied)
    assert capsys.readouterr().err == ""
