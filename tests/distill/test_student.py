"""A student is checked completely before any cost arises, and a trained one must have changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.training.student import StudentFacts, check_room, check_student, count_changed, saved_digests
from tests.distill.test_train import tiny_recipe
from toolkit.errors import InputError
from toolkit.model.precision import compute_dtype


@pytest.fixture
def student(tiny_student: Path, tmp_path: Path) -> Path:
    """A copy of the student to break."""
    folder = tmp_path / "student"
    shutil.copytree(tiny_student, folder)
    return folder


def set_config(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def not_a_number(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def more_tokens(folder: Path) -> None:
    value = json.loads((folder / "tokenizer.json").read_text())
    value["added_tokens"].append(value["added_tokens"][0] | {"id": 400, "content": "<|more|>"})
    value["model"]["vocab"]["<|more|>"] = 400
    (folder / "tokenizer.json").write_text(json.dumps(value))


def no_turns(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|im_end|>", "<|end|>"))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "architecture": (
        lambda f: set_config(f, model_type="gpt2"),
        r"\(gpt2\) must be one of llama, mistral, qwen2, qwen3",
    ),
    "no architecture": (lambda f: (f / "config.json").write_text("{}"), r"\(None\) must be one of"),
    "configuration": (lambda f: (f / "config.json").write_text("{"), "must be JSON"),
    "quantized": (
        lambda f: set_config(f, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "is quantized by bitsandbytes and cannot be trained",
    ),
    "quantized by vLLM's compressor": (
        lambda f: set_config(f, compression_config={"quant_method": "compressed-tensors"}),
        "is quantized by compressed-tensors and cannot be trained",
    ),
    "quantized by MLX": (
        lambda f: set_config(f, quantization={"group_size": 64, "bits": 4}),
        "is quantized by MLX and cannot be trained",
    ),
    "no context": (
        lambda f: set_config(f, max_position_embeddings=0),
        r"max_position_embeddings \(0\) in .*config\.json must be at least 1; get the file again",
    ),
    "exported": (lambda f: (f / "model.onnx").touch(), "is an exported model and cannot be trained"),
    "missing tensor": (drop_tensor, r"lacks model\.norm\.weight"),
    "NaN": (not_a_number, r"weight model\.layers\.0\.mlp\.up_proj\.weight is not finite"),
    "more ids than rows": (more_tokens, r"ids beyond the model's embedding of 320 rows \('<\|more\|>' is 400\)"),
    "no turns": (no_turns, r"must end an answer with a token of its vocabulary, but writes '<\|im_end\|>"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json is missing; let transformers"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "must hold a model that transformers can load"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_student_that_cannot_be_trained_is_refused_by_what_is_wrong_with_it(kind: str, student: Path) -> None:
    spoil, message = BROKEN[kind]
    spoil(student)
    with pytest.raises(InputError, match=message):
        check_student(student)


def test_a_whole_student_is_measured(student: Path) -> None:
    facts = check_student(student)
    tensors = load_file(student / "model.safetensors")
    assert facts == StudentFacts(parameters=sum(tensor.numel() for tensor in tensors.values()), max_tokens=512)
    set_config(student, model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=128)
    assert check_student(student).max_tokens == 512


def test_a_disk_without_room_is_refused(tmp_path: Path) -> None:
    check_room(StudentFacts(parameters=1000, max_tokens=512), tmp_path, tiny_recipe())
    large = StudentFacts(parameters=10**15, max_tokens=512)
    for rank in (0, 8):
        with pytest.raises(InputError, match=r"need [\d.]+ GB on the disk of .*, which has [\d.]+ GB free"):
            check_room(large, tmp_path, replace(tiny_recipe(), lora_rank=rank))


@pytest.mark.parametrize("lora", [False, True])
def test_each_stage_of_a_run_needs_room_for_weights_and_checkpoints_of_its_own(lora: bool, tmp_path: Path) -> None:
    needed = []
    for stages in (1, 2):
        recipe = replace(tiny_recipe(), lora_rank=8 if lora else 0, checkpoints_kept=2)
        with pytest.raises(InputError, match="need ") as refused:
            check_room(StudentFacts(parameters=10**15, max_tokens=512), tmp_path, recipe, stages=stages)
        needed.append(float(str(refused.value).split(" need ")[1].split()[0]) / 1e6)
    width = compute_dtype().itemsize
    assert needed[1] - needed[0] == pytest.approx(2 if lora else 2 + 2 * (width + 12)), "bytes a weight"


def test_a_change_counts_where_it_is_saved() -> None:
    model = torch.nn.Linear(4, 4)
    before = saved_digests(model)
    with torch.no_grad():
        model.weight += 1e-9  # less than half a step of bf16
    with pytest.raises(InputError, match="training changed none of the student's 2 tensors"):
        count_changed(before, saved_digests(model))
    with torch.no_grad():
        model.weight[2, 3] += 0.5
    assert count_changed(before, saved_digests(model)) == 1
