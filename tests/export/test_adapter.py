"""A LoRA folder is exported as the model that PEFT merges it to."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from export.checkpoint import tensors as checkpoint_module
from export.checkpoint.tensors import Checkpoint
from export.checks.parity import Bounds
from export.merged_model import open_source
from export.pipeline import export_model
from export.presets import int4_config
from tests.lora_adapter import EVERYWHERE, write_adapter
from toolkit.cli.main import main
from toolkit.errors import InputError
from toolkit.formats.chat_format import CHAT_FILES, ChatFormat
from toolkit.runs import file_digest
from toolkit.sources.adapter_folder import base_model

WIDE = Bounds(max_mean_kl=9.0, min_top1=0.0)


@pytest.fixture(scope="module")
def adapter(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tiny_student, tmp_path_factory.mktemp("adapter"))


def merged_by_peft(base: Path, adapter: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["q_proj", "down_proj"], "r": 3, "lora_alpha": 7},
        {"target_modules": "all-linear"},
    ],
)
def test_merged_tensors_equal_peft_s(
    settings: dict[str, Any], tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_adapter(tiny_student, tmp_path, **settings)
    monkeypatch.setattr(checkpoint_module, "SLICE_WEIGHTS", 64 * 10)  # several slices a matrix, the last one shorter
    merged = Checkpoint(tiny_student, folder)
    theirs = merged_by_peft(tiny_student, folder).state_dict()
    plain = Checkpoint(tiny_student)
    for name in plain.shapes:
        torch.testing.assert_close(merged.tensor(name), theirs[name], rtol=1e-5, atol=1e-6)
    changed = {name for name in plain.shapes if not torch.equal(plain.tensor(name), merged.tensor(name))}
    targets = settings.get("target_modules", EVERYWHERE)
    assert len(changed) == 2 * len(EVERYWHERE if isinstance(targets, str) else targets)


def test_a_pattern_of_modules_is_merged_without_peft(tiny_student: Path, tmp_path: Path) -> None:
    folder = write_adapter(tiny_student, tmp_path, target_modules=r"model\.layers\.1\..*_proj")
    merged = Checkpoint(tiny_student, folder)
    theirs = merged_by_peft(tiny_student, folder).state_dict()
    for name in merged.shapes:
        torch.testing.assert_close(merged.tensor(name), theirs[name], rtol=1e-5, atol=1e-6)


def test_an_adapter_exports_as_its_merged_model_does(tiny_student: Path, adapter: Path, tmp_path: Path) -> None:
    """Parity is measured against the merged float model, so the two reports agree as well."""
    whole = Path(shutil.copytree(tiny_student, tmp_path / "merged"))
    merged_by_peft(tiny_student, adapter).save_pretrained(whole)
    ours = export_model(replace(int4_config(tiny_student, tmp_path / "a", adapter=adapter), bounds=WIDE))
    theirs = export_model(replace(int4_config(whole, tmp_path / "b"), bounds=WIDE))
    assert ours["inputs"].keys() == {"source", "adapter"}
    assert ours["measured"]["parity"]["mean_kl"] == pytest.approx(theirs["measured"]["parity"]["mean_kl"], rel=0.2)
    ours_data, theirs_data = ((tmp_path / name / "model.onnx.data").read_bytes() for name in "ab")
    same = sum(x == y for x, y in zip(ours_data, theirs_data, strict=True))
    assert same > 0.999 * len(ours_data)  # a sum in another order may round a weight the other way


def test_the_command_takes_the_base_that_the_adapter_names_or_the_one_given(
    tiny_student: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert base_model(adapter) == str(tiny_student)
    moved = Path(shutil.copytree(adapter, tmp_path / "moved"))
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    words = ["--int4", "--no-parity", "--out"]
    assert main(["export", str(adapter), *words, str(tmp_path / "a")]) == 0
    assert main(["export", str(moved), *words, str(tmp_path / "b")]) == 2
    assert "names no base model; give it with --base" in capsys.readouterr().err
    assert main(["export", str(moved), "--base", str(tiny_student), *words, str(tmp_path / "b")]) == 0
    assert "--no-parity" in capsys.readouterr().err
    assert file_digest(tmp_path / "a" / "model.onnx.data") == file_digest(tmp_path / "b" / "model.onnx.data")
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["measured"]["parity"] is None
    assert main(["export", str(tiny_student), "--base", "x", *words, str(tmp_path / "c")]) == 2


def test_an_adapter_with_its_own_tokenizer_ends_texts_where_its_base_does(
    tiny_student: Path, adapter: Path, tmp_path: Path
) -> None:
    base, own = (Path(shutil.copytree(path, tmp_path / path.name)) for path in (tiny_student, adapter))
    (base / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    for name in CHAT_FILES:
        shutil.copy(base / name, own)
    export_model(replace(int4_config(base, tmp_path / "out", adapter=own), bounds=WIDE))
    ends = json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]["eos_token_id"]
    assert ends == sorted(ChatFormat.from_folder(tmp_path / "out").stop_ids) == [0, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, r"PEFT cannot merge the adapter .* into"),
        ({"peft_type": "NONSENSE"}, r"PEFT cannot merge the adapter .* into .*NONSENSE"),
        ({"use_dora": True}, r"PEFT cannot merge .*missing adapter keys.*magnitude"),
        ({"rank_pattern": {"q_proj": 2}}, r"PEFT cannot merge .* RuntimeError"),
        ({"r": 0}, r"r \(0\) in .* must be a whole number above 0"),
        ({"r": 8}, r"r \(8\) in .* must equal the rank of model\.layers\.0\.mlp\.down_proj\.weight in .* \(4\)"),
        ({"r": 4.0}, r"r \(4\.0\) in .* must be a whole number"),
        ({"target_modules": ["q_proj"]}, r"PEFT cannot merge .* has no place for .*lora_A"),
        ({"target_modules": "("}, r"PEFT cannot merge the adapter .* into"),
        ({"exclude_modules": ["v_proj"]}, r"PEFT cannot merge .* has no place for .*lora_A"),
        ({"layers_to_transform": [0]}, r"PEFT cannot merge .* has no place for .*layers\.1\."),
    ],
)
def test_what_peft_does_not_merge_whole_is_refused_and_leaves_nothing(
    values: dict[str, Any], message: str, tiny_student: Path, adapter: Path, tmp_path: Path, home: Path
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | values))
    with pytest.raises(InputError, match=message) as caught:
        export_model(int4_config(tiny_student, tmp_path / "out", adapter=folder))
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir() if path != home) == ["adapter"]
    assert not list((home / "models").iterdir()) if (home / "models").exists() else True


@pytest.mark.parametrize("part", [".layers.1.", ""], ids=["a layer", "everything"])
def test_an_adapter_that_lost_tensors_is_refused(
    part: str, tiny_student: Path, adapter: Path, tmp_path: Path, home: Path
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: t for name, t in tensors.items() if part not in name}, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"PEFT cannot merge .*missing adapter keys"):
        open_source(tiny_student, folder)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"trainable_token_indices": [3, 7]},
        {"init_lora_weights": "pissa"},
        {"layers_to_transform": [1]},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_other_adapters_are_merged_as_by_peft(
    settings: dict[str, Any], tiny_student: Path, tmp_path: Path, home: Path
) -> None:
    folder = write_adapter(tiny_student, tmp_path / "adapter", **settings)
    source = open_source(tiny_student, folder)
    merged = source.checkpoint
    theirs = merged_by_peft(tiny_student, folder)
    tensors = theirs.state_dict()
    for name in merged.shapes:
        torch.testing.assert_close(merged.tensor(name), tensors[name], rtol=1e-5, atol=1e-6)
    own = theirs.get_output_embeddings().weight.data_ptr() != theirs.get_input_embeddings().weight.data_ptr()
    assert merged.config.tie_word_embeddings != own
    ids_BT = torch.arange(3, 40)[None]
    torch.testing.assert_close(source.float_model(ids_BT).logits, theirs(ids_BT).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "is_said"), [({"target_modules": ["q_proj", "embed_tokens"]}, True), ({"use_dora": True}, False)]
)
def test_an_adapter_that_says_something_else_once_it_is_merged_is_no_secret(
    settings: dict[str, Any],
    is_said: bool,
    tiny_student: Path,
    tmp_path: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """PEFT merges into the embedding, and so into the head that it is tied to, which the adapter left alone."""
    open_source(tiny_student, write_adapter(tiny_student, tmp_path / "adapter", **settings))
    assert ("merging changed what" in capsys.readouterr().err) == is_said


def test_a_pickled_adapter_is_merged_as_by_peft(tiny_student: Path, adapter: Path, tmp_path: Path, home: Path) -> None:
    from safetensors.torch import load_file

    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    export_model(replace(int4_config(tiny_student, tmp_path / "out", adapter=folder), bounds=None))
    export_model(replace(int4_config(tiny_student, tmp_path / "same", adapter=adapter), bounds=None))
    ours, same = (np.fromfile(tmp_path / name / "model.onnx.data", np.uint8) for name in ("out", "same"))
    assert np.mean(ours == same) > 0.999
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["inputs"].keys() == {"source", "adapter"}


def test_a_vocabulary_that_grew_with_its_adapter_is_merged(tiny_student: Path, tmp_path: Path, home: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float32)
    base.resize_token_embeddings(328)
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))
    with torch.no_grad():
        adapted.get_input_embeddings().weight[320:] += 1.0
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    merged = open_source(tiny_student, tmp_path / "adapter").checkpoint
    assert merged.config.vocab_size == 328
    theirs = adapted.merge_and_unload().state_dict()
    torch.testing.assert_close(merged.tensor("model.embed_tokens.weight"), theirs["model.embed_tokens.weight"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=["streamed", "by PEFT"])
def test_an_adapter_that_is_not_finite_is_named_and_not_its_base(
    settings: dict[str, Any], bad: float, tiny_student: Path, tmp_path: Path, home: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_adapter(tiny_student, tmp_path / "adapter", **settings)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in sorted(tensors) if name.endswith("up_proj.lora_B.weight"))
    tensors[name][0, 0] = bad
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match=rf"the adapter {folder}.* NaN or infinite"):
        export_model(replace(int4_config(tiny_student, tmp_path / "out", adapter=folder), bounds=None))


def test_a_tensor_that_has_no_place_is_named(tiny_student: Path, adapter: Path, tmp_path: Path, home: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(tensors | {"base_model.model.value_head.weight": torch.ones(1, 64)}, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"no place for base_model\.model\.value_head\.weight"):
        export_model(int4_config(tiny_student, tmp_path / "out", adapter=folder))


def test_a_configuration_left_beside_a_whole_model_makes_no_adapter_of_it(
    tiny_student: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Path(shutil.copytree(tiny_student, tmp_path / "whole"))
    shutil.copy(adapter / "adapter_config.json", whole)
    words = ["--int8", "--out"]
    assert main(["export", str(whole), *words, str(tmp_path / "a")]) == 0
    assert main(["export", str(tiny_student), "--no-parity", *words, str(tmp_path / "b")]) == 0
    assert file_digest(tmp_path / "a" / "model.onnx.data") == file_digest(tmp_path / "b" / "model.onnx.data")
    shutil.copy(adapter / "adapter_model.safetensors", whole)
    capsys.readouterr()
    assert main(["export", str(whole), *words, str(tmp_path / "c")]) == 2
    assert "holds both a whole model and an adapter (model.safetensors, adapter_mode" in capsys.readouterr().err


def test_an_adapter_of_another_base_is_refused(tiny_student: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_adapter(tiny_student, tmp_path / "a", target_modules=["q_proj"])
    tensors = load_file(folder / "adapter_model.safetensors")
    longer = {name: torch.cat([x, x], dim=1) if "lora_A" in name else x for name, x in tensors.items()}
    save_file(longer, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"changes .* \(64, 64\) by \(64, 4\) x \(4, 128\)"):
        Checkpoint(tiny_student, folder)
    folder = write_adapter(tiny_student, tmp_path / "c", target_modules=["q_proj"])
    tensors = load_file(folder / "adapter_model.safetensors")
    renamed = {name.replace("layers.1.", "layers.7."): x for name, x in tensors.items()}
    save_file(renamed, folder / "adapter_model.safetensors")
    with pytest.raises(
        InputError, match=r"the adapter changes model\.layers\.7\.self_attn\.q_proj\.weight, which is no linear layer"
    ):
        Checkpoint(tiny_student, folder)
