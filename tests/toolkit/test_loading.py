"""A checkpoint is read whole, or refused by the name of the tensor that is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit.errors import InputError
from toolkit.model.decoder import load_model
from toolkit.model.loading import not_finite

UP = "model.layers.1.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
Tensors = dict[str, torch.Tensor]


def edited(student: Path, folder: Path, change: Callable[[Tensors], Any], **settings: Any) -> Path:
    """Copy the student with other tensors or settings."""
    shutil.copytree(student, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def renamed(tensors: Tensors) -> None:
    for name in list(tensors):
        tensors[f"other.{name}"] = tensors.pop(name)


WRONG: dict[str, tuple[Callable[[Tensors], Any], dict[str, Any], str]] = {
    "one tensor missing": (lambda t: t.pop(UP), {}, rf"every tensor of its architecture, but lacks {UP};"),
    "the head missing": (lambda t: None, {"tie_word_embeddings": False}, r"but lacks lm_head\.weight;"),
    "all names foreign": (renamed, {}, r"but lacks .* and \d+ more;"),
    "more layers said": (lambda t: None, {"num_hidden_layers": 3}, r"but lacks model\.layers\.2\..* and 6 more;"),
    "fewer layers said": (
        lambda t: None,
        {"num_hidden_layers": 1},
        r"has no place for model\.layers\.1\..* and 6 more;",
    ),
    "a bias too many": (
        lambda t: t.update({UP.replace("weight", "bias"): torch.zeros(128)}),
        {},
        r"has no place for model\.layers\.1\.mlp\.up_proj\.bias;",
    ),
    "another shape": (
        lambda t: t.update({UP: torch.zeros(100, 64)}),
        {},
        rf"shape of {UP} .* \(\[100, 64\]\) must equal .* \(\[128, 64\]\)",
    ),
    "another vocabulary": (lambda t: None, {"vocab_size": 300}, rf"shape of {EMBEDDING} .*\(\[320, 64\]\)"),
    "codes": (
        lambda t: t.update({UP: torch.zeros(128, 64, dtype=torch.int8)}),
        {},
        rf"must be floats .*, but {UP} is I8",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_checkpoint_that_does_not_fit_its_architecture_is_refused_by_name(
    kind: str, tiny_student: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change, settings, message = WRONG[kind]
    folder = edited(tiny_student, tmp_path / "student", change, **settings)
    with pytest.raises(InputError, match=message):
        load_model(folder, torch.float32)
    assert capfd.readouterr().err == ""  # no table of transformers' besides


def test_what_only_looks_different_is_loaded(tiny_student: Path, tmp_path: Path) -> None:
    def harmless(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors[EMBEDDING].clone()  # tied, and stored all the same
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)  # as older versions stored it

    expected = load_model(tiny_student, torch.float32).state_dict()
    found = load_model(edited(tiny_student, tmp_path / "student", harmless), torch.float32).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_of_two_tied_tensors_one_is_enough_and_none_is_refused(tiny_student: Path, tmp_path: Path) -> None:
    def only_head(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors.pop(EMBEDDING)

    expected = load_model(tiny_student, torch.float32).state_dict()
    found = load_model(edited(tiny_student, tmp_path / "head", only_head), torch.float32).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(InputError, match=rf"but lacks .*{EMBEDDING}"):
        load_model(edited(tiny_student, tmp_path / "none", lambda t: t.pop(EMBEDDING)), torch.float32)


def test_a_part_of_a_split_checkpoint_that_is_missing_or_lacks_a_tensor_is_refused(
    tiny_student: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "student"
    shutil.copytree(tiny_student, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for part, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / part, metadata={"format": "pt"})
    index = {name: part for part, held in parts.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    load_model(folder, torch.float32)

    part = "model-00002-of-00002.safetensors"
    save_file({name: tensors[name] for name in names[9:] if name != UP}, folder / part, metadata={"format": "pt"})
    with pytest.raises(InputError, match=UP):
        load_model(folder, torch.float32)
    (folder / part).unlink()
    with pytest.raises(InputError, match=part):
        load_model(folder, torch.float32)


def test_a_cut_file_and_none_are_refused(tiny_student: Path, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    shutil.copytree(tiny_student, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match="must hold a model that transformers can load"):
        load_model(folder, torch.float32)
    weights.unlink()
    with pytest.raises(InputError, match="must hold a model that transformers can load"):
        load_model(folder, torch.float32)


def test_a_quantized_model_that_cannot_be_read_is_named_as_one(tiny_student: Path, tmp_path: Path) -> None:
    folder = edited(
        tiny_student, tmp_path / "student", lambda t: None, quantization_config={"quant_method": "gptq", "bits": 4}
    )
    with pytest.raises(InputError, match="it is quantized by gptq: choose the model that it was made from"):
        load_model(folder, torch.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_finite_number_is_found(value: float) -> None:
    last = torch.nn.Linear(3, 3)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), last).bfloat16()
    assert not_finite(model) is None
    last.weight.data[2, 1] = value
    assert not_finite(model) == "1.weight"
