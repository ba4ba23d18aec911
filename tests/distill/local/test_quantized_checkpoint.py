"""A checkpoint in 4 or 8 bits is what quantizing on load makes, and opens here and in transformers alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.local import quantized_checkpoint
from distill.local.causal_model import open_causal_model
from distill.local.quantized import quantization_settings
from distill.local.quantized_checkpoint import quantize
from toolkit.cli.main import main
from toolkit.errors import FolderConflict, InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.model.loading import load_whole
from toolkit.runs import read_manifest

IDS = torch.tensor([[5, 9, 40, 101, 7, 33, 250, 12]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS, use_cache=False).logits.float()
    return found


@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_from_pretrained_loads_what_quantizing_on_load_makes(
    load_in: Any, kind: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, out = tiny(kind), tmp_path / "out"
    measured = quantize(str(folder), out, load_in)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    empty = load_whole(AutoModelForCausalLM, folder, device_map="meta")
    settings = quantization_settings(empty, load_in, torch.bfloat16)
    on_load = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **settings)
    assert torch.equal(logits(loaded), logits(on_load))
    for (name, ours), other in zip(loaded.named_parameters(), on_load.parameters(), strict=True):
        assert ours.dtype == other.dtype and torch.equal(ours, other), name
    stored = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    assert measured["bytes"] == stored < (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_the_copy_speaks_as_the_model_does(load_in: Any, tiny_student: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantize(str(tiny_student), out, load_in)
    messages = [{"role": "user", "content": "How many times?"}]
    assert ChatFormat.from_folder(out).prompt_ids(messages) == ChatFormat.from_folder(tiny_student).prompt_ids(messages)
    assert AutoTokenizer.from_pretrained(out).chat_template
    before, after = (json.loads((each / "generation_config.json").read_text()) for each in (tiny_student, out))
    assert before == after
    manifest = read_manifest(out)
    assert manifest and manifest["config"] == {"load_in": load_in} and "model.safetensors" in manifest["outputs"]
    card = (out / "README.md").read_text()
    assert f"base_model: {tiny_student.name}\n" in card and "license: unknown\n" in card and "<!-- results -->" in card


@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_our_own_loader_opens_it_as_it_would_quantize_the_model(
    load_in: Any, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    quantize(str(tiny("qwen3")), out, load_in)
    prompts = [[5, 9, 40], [101, 7, 33, 250, 12]]
    found = open_causal_model(out, torch.bfloat16).start(prompts)
    expected = open_causal_model(tiny("qwen3"), torch.bfloat16, load_in=load_in).start(prompts)
    assert np.array_equal(found, expected)


def test_a_second_call_finds_its_work_done(
    tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = ["quantize", str(tiny_student), "--load-in", "4bit", "--out", str(out)]
    assert main(line) == 0
    assert "weights in 4bit" in capsys.readouterr().out
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert main([*line, "--json"]) == 0
    said = capsys.readouterr()
    assert "already done" in said.err and json.loads(said.out)["quantized_parameters"] == 73_728
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(FolderConflict, match=r"holds another run: .*load_in"):
        quantize(str(tiny_student), out, "8bit")


def test_what_cannot_be_quantized_is_refused(
    tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = tmp_path / "once"
    quantize(str(tiny_student), once, "4bit")
    with pytest.raises(InputError, match=r"once is quantized already \(by bitsandbytes\); choose the model"):
        quantize(str(once), tmp_path / "twice", "4bit")
    exported = tmp_path / "exported"
    shutil.copytree(tiny_student, exported)
    (exported / "model.onnx").touch()
    with pytest.raises(InputError, match="exported is an exported model"):
        quantize(str(exported), tmp_path / "out", "4bit")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(FolderConflict, match="must be empty or a finished run"):
        quantize(str(tiny_student), tmp_path / "taken", "4bit")
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"the weights of .* take .* GB"):
        patch.setattr(quantized_checkpoint, "free_bytes", lambda: 1000)
        quantize(str(tiny_student), tmp_path / "out", "8bit")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"need .* GB on the disk of .*free some"):
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        quantize(str(tiny_student), tmp_path / "out", "8bit")
    assert not (tmp_path / "out").exists()
