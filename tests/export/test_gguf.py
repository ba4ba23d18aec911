"""A GGUF file exports like the folder that transformers makes from it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from export.pipeline import export_model
from export.presets import int4_config
from tests.toolkit.test_gguf_checkpoint import write_gguf
from toolkit.cli.main import main
from toolkit.runs import file_digest
from toolkit.sources import gguf_checkpoint


def test_a_gguf_exports_to_the_bytes_of_its_model_as_transformers_reads_it(
    tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(gguf_checkpoint, "SLICE_WEIGHTS", 64 * 40)  # several slices a tensor, at the bounds of heads
    gguf = tmp_path / "model.gguf"
    write_gguf(gguf, tiny_student)
    words = ["export", str(gguf), "--int4", "--no-parity", "--out"]
    assert main([*words, str(tmp_path / "int4")]) == 0
    assert f"dequantizing {gguf}" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "again")]) == 0
    assert "dequantizing" not in capsys.readouterr().err, "the folder in the cache is there already"
    source = Path(shutil.copytree(tiny_student, tmp_path / "source"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=gguf.name, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.load_state_dict(theirs.state_dict())
    model.save_pretrained(source)
    export_model(replace(int4_config(source, tmp_path / "theirs"), bounds=None))
    digests = [file_digest(tmp_path / name / "model.onnx.data") for name in ("int4", "again", "theirs")]
    assert digests == digests[:1] * 3


def test_a_damaged_gguf_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    assert main(["export", str(tmp_path / "model.gguf"), "--int4", "--out", str(tmp_path / "int4")]) == 2
    assert "model.gguf must be a whole GGUF file" in capsys.readouterr().err
    assert not list((tmp_path / "home" / "models").iterdir())
    assert not (tmp_path / "int4").exists()
