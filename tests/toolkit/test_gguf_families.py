"""Each family of GGUF files is read as llama.cpp's converter names and stores it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.torch import load_file

from tests.toolkit.test_gguf_checkpoint import add_facts, permute
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.sources.gguf_checkpoint import write_checkpoint
from toolkit.sources.gguf_families import GGUF_FAMILIES
from toolkit.sources.model_names import resolve

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32},
    ),
    "granite": (
        "GraniteConfig",
        "GraniteForCausalLM",
        {
            "attention_multiplier": 0.25,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 8.0,
            "tie_word_embeddings": True,
        },
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"rope_theta": 1e6}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 32, "tie_word_embeddings": True}),
}


def test_every_family_is_tried() -> None:
    assert MODELS.keys() == GGUF_FAMILIES.keys()


def random_model(name: str) -> Any:
    config, model, facts = MODELS[name]
    torch.manual_seed(3)
    made = getattr(transformers, model)(getattr(transformers, config)(**SIZES, **facts)).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.1)
    return made


def write_gguf(name: str, model: Any, student: Path, path: Path, *, tensors_a_file: int = 0) -> None:
    """Write a model under the names that the gguf library has for those of transformers, matrices in fp16."""
    config = model.config
    writer = GGUFWriter(path, name, split_max_tensors=tensors_a_file)
    add_facts(writer, config.to_dict(), student)
    if "head_dim" in MODELS[name][2]:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if name == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    if name == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    architecture = next(arch for arch, arch_name in gguf.MODEL_ARCH_NAMES.items() if arch_name == name)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for parameter_name, parameter in model.named_parameters():
        target = str(names.get_name(parameter_name, try_suffixes=(".weight", ".bias")))
        weight = parameter.detach().numpy()
        if name in ("llama", "granite") and ("q_proj" in parameter_name or "k_proj" in parameter_name):
            heads = config.num_attention_heads if "q_proj" in parameter_name else config.num_key_value_heads
            weight = permute(weight, heads)
        if name == "gemma3" and parameter_name.endswith("norm.weight"):
            weight = weight + 1
        if weight.ndim == 1:
            writer.add_tensor(target, weight.astype(np.float32))
        else:
            writer.add_tensor(target, weight.astype(np.float16), raw_dtype=GGMLQuantizationType.F16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", MODELS)
def test_a_family_is_read_as_it_was_written(
    name: str, tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model(name)
    write_gguf(name, model, tiny_student, tmp_path / "model.gguf")
    folder = tmp_path / "folder"
    folder.mkdir()
    write_checkpoint(tmp_path / "model.gguf", folder)
    assert "model.gguf has no chat template, as base models have none" in capsys.readouterr().err
    read: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert type(read) is type(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float() if parameter.dim() > 1 else parameter.data
    ids = torch.arange(40)[None] + 3
    expected = model(ids).logits
    torch.testing.assert_close(read(ids).logits, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert ChatFormat.from_folder(folder).question_ids("one")


def test_a_model_in_several_files_is_read_from_any_of_them(
    tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))
    model = random_model("qwen3")
    write_gguf("qwen3", model, tiny_student, tmp_path / "whole.gguf")
    write_gguf("qwen3", model, tiny_student, tmp_path / "model.gguf", tensors_a_file=30)
    files = sorted(tmp_path.glob("model-*.gguf"))
    assert [path.name for path in files] == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    folder = resolve(str(files[1]))
    assert resolve(str(files[0])) == folder
    whole, split = (load_file(each / "model.safetensors") for each in (resolve(str(tmp_path / "whole.gguf")), folder))
    assert whole.keys() == split.keys() and all(torch.equal(whole[name], split[name]) for name in whole)
    files[2].rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(InputError, match=r"model-00003-of-00003\.gguf is missing, one of the 3 files of model; get it"):
        resolve(str(files[0]))
    (tmp_path / "elsewhere.gguf").rename(files[2])
    files[2].write_bytes(files[1].read_bytes())
    with pytest.raises(InputError, match=r"is in model-00002-of-00003\.gguf and in model-00003-of-00003"):
        resolve(str(files[0]))


def test_a_family_without_its_own_fact_is_one_line(tiny_student: Path, tmp_path: Path) -> None:
    write_gguf("gemma3", random_model("gemma3"), tiny_student, tmp_path / "model.gguf")
    content = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(content.replace(b"attention.sliding_window", b"attention.slidinX_window"))
    with pytest.raises(InputError, match=r"gemma3\.attention\.slidinX_window \(8\) may change the model"):
        write_checkpoint(tmp_path / "model.gguf", tmp_path)
