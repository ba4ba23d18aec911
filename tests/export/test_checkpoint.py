"""Tensors are the same from one file and from many, in float32 whatever their stored type."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from export.checkpoint.source import float_model
from export.checkpoint.tensors import EMBEDDING, LM_HEAD, Checkpoint, tensor_shapes
from export.pipeline import export_model
from export.presets import nearest_config
from export.runtime.decoder import OnnxDecoder
from toolkit.errors import InputError
from toolkit.sources.safetensors_header import INDEX


@pytest.fixture
def sharded(tiny_student: Path, tmp_path: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    return tmp_path / "sharded"


def test_a_sharded_bf16_checkpoint_reads_as_the_single_one_rounded(tiny_student: Path, sharded: Path) -> None:
    single, many = Checkpoint(tiny_student), Checkpoint(sharded)
    for name, shape in tensor_shapes(many.config).items():
        assert many.array(name).shape == shape
        assert many.array(name).dtype == np.float32
        np.testing.assert_array_equal(many.array(name), single.tensor(name).bfloat16().float().numpy())


def test_tensor_shapes_name_every_tensor_of_each_architecture(checkpoint_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint_folder)
    kept = {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}
    expected = {name: tuple(tensor.shape) for name, tensor in (dict(model.named_parameters()) | kept).items()}
    assert tensor_shapes(Checkpoint(checkpoint_folder).config) == expected


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = max(sharded.glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(InputError, match=rf"{shard.name} \(0 bytes\) must be a whole safetensors file"):
        Checkpoint(sharded)


def with_head(student: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """The tied student with its tensors changed."""
    shutil.copytree(student, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def own_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors[LM_HEAD] = torch.randn(tensors[EMBEDDING].shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("change", "is_tied"),
    [
        (own_head, False),
        (lambda tensors: tensors.update({LM_HEAD: tensors[EMBEDDING].clone()}), True),
        (lambda tensors: tensors.update({LM_HEAD: tensors.pop(EMBEDDING)}), True),
    ],
    ids=["differs", "is the same", "is the only one"],
)
def test_a_head_beside_the_tied_flag_is_read_as_transformers_reads_it(
    change: Callable[[dict[str, torch.Tensor]], object], is_tied: bool, tiny_student: Path, tmp_path: Path
) -> None:
    folder = with_head(tiny_student, tmp_path / "model", change)
    checkpoint = Checkpoint(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert checkpoint.config.tie_word_embeddings == is_tied
    assert torch.equal(checkpoint.tensor(EMBEDDING), theirs.get_input_embeddings().weight)
    assert torch.equal(checkpoint.tensor(checkpoint.head), theirs.get_output_embeddings().weight)


def test_a_head_of_its_own_is_exported_whatever_the_flag_says(tiny_student: Path, tmp_path: Path) -> None:
    folder = with_head(tiny_student, tmp_path / "model", own_head)
    export_model(nearest_config(folder, tmp_path / "out", "fp32"))
    logits_TV = OnnxDecoder(tmp_path / "out").score(list(range(3, 40)))
    theirs_TV = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.arange(3, 40)[None]).logits[0]
    torch.testing.assert_close(torch.from_numpy(logits_TV), theirs_TV, rtol=0, atol=1e-4 * float(theirs_TV.abs().max()))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_tensor_in_two_shards_is_the_index_s(sharded: Path, tiny_student: Path, tmp_path: Path) -> None:
    """The float model of the gate reads the same one."""
    index = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.0.mlp.up_proj.weight"
    whole = Checkpoint(sharded).tensor(name)
    for file in {*index.values()} - {index[name]}:
        tensors = load_file(sharded / file)
        save_file(tensors | {name: torch.full_like(whole, 9.0)}, sharded / file, {"format": "pt"})
    checkpoint = Checkpoint(sharded)
    assert torch.equal(checkpoint.tensor(name), whole)
    assert torch.equal(float_model(checkpoint).get_parameter(name), whole)


def test_a_tensor_in_two_shards_that_the_index_lacks_is_refused_by_name(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    name = EMBEDDING
    holder = index["weight_map"].pop(name)
    other = next(file for file in sorted(set(index["weight_map"].values())) if file != holder)
    tensors = load_file(sharded / other) | {name: torch.zeros_like(load_file(sharded / holder)[name])}
    save_file(tensors, sharded / other, {"format": "pt"})
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=rf"several files in .* hold {name}, and"):
        Checkpoint(sharded)


def test_a_tensor_that_its_shard_lacks_is_named(sharded: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = "model.norm.weight"
    [other, *_] = sorted({*index["weight_map"].values()} - {index["weight_map"][name]})
    index["weight_map"][name] = other
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=rf"{other} lacks {name}, which model\.safetensors\.index\.json says is there"):
        Checkpoint(sharded)


@pytest.mark.parametrize("weight_map", [None, [], {"a": 1}])
def test_an_index_of_another_form_is_refused(weight_map: object, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=r"weight_map in .*index\.json .* must be an object"):
        Checkpoint(sharded)


@pytest.mark.parametrize(
    "name",
    ["layers.0.self_attn.q_proj.bias", "layers.0.self_attn.q_norm.weight", "layers.2.mlp.up_proj.weight", "norm.bias"],
)
def test_a_tensor_that_the_configuration_does_not_name_is_refused(
    name: str, tiny_student: Path, tmp_path: Path
) -> None:
    folder = with_head(
        tiny_student, tmp_path / "model", lambda tensors: tensors.update({f"model.{name}": torch.ones(64)})
    )
    with pytest.raises(InputError, match=rf"config\.json in .* has no place for model\.{name}; get weights"):
        Checkpoint(folder)


def test_what_every_loader_computes_again_may_lie_in_a_checkpoint(tiny_student: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    folder = with_head(tiny_student, tmp_path / "model", lambda tensors: tensors.update({name: torch.ones(8)}))
    assert Checkpoint(folder).shapes == Checkpoint(tiny_student).shapes


def test_a_file_that_git_lfs_has_not_fetched_is_named_so(tiny_student: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_student, tmp_path / "model"))
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    with pytest.raises(
        InputError, match=r"must be a whole safetensors file: .*; it is a pointer of Git LFS: run git lfs"
    ):
        Checkpoint(folder)


def test_an_exported_folder_is_no_source(tiny_student: Path, tmp_path: Path) -> None:
    export_model(replace(nearest_config(tiny_student, tmp_path / "out", "fp32"), bounds=None))
    with pytest.raises(InputError, match=r"out is an exported folder already; export the model"):
        Checkpoint(tmp_path / "out")
