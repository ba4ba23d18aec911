"""Each family of GGUF files is read as llama.cpp's converter names and stores it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
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
    "phi3": (
        "Phi3Config",
        "Phi3ForCausalLM",
        {
            "original_max_position_embeddings": 32,
            "sliding_window": 24,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0 + 0.1 * i for i in range(6)],
                "long_factor": [2.0 + i for i in range(6)],
            },
        },
    ),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"rope_theta": 1e6}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 32, "tie_word_embeddings": True}),
}


def test_every_family_is_tried() -> None:
    assert MODELS.keys() == GGUF_FAMILIES.keys()


def random_model(name: str, **sizes: int) -> Any:
    config, model, facts = MODELS[name]
    torch.manual_seed(3)
    made = getattr(transformers, model)(getattr(transformers, config)(**SIZES | facts | sizes)).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.1)
    return made


def write_gguf(
    name: str,
    model: Any,
    student: Path,
    path: Path,
    *,
    tensors_a_file: int = 0,
    k_quants: bool = False,
    change: Callable[[GGUFWriter], object] = lambda writer: None,
) -> None:
    """Write a model under the names that the gguf library has for those of transformers, matrices in fp16, or as random
    blocks of each K-quant in turn; `change` is called with everything before it is written."""
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
    if name == "phi3":
        _add_phi3(writer, config)
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
        elif k_quants:
            kind = list(SCALES)[sum(map(len, writer.tensors)) % len(SCALES)]
            writer.add_tensor(target, random_blocks(weight.shape, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, weight.astype(np.float16), raw_dtype=GGMLQuantizationType.F16)
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


SCALES = {
    GGMLQuantizationType.Q2_K: (80, 82),
    GGMLQuantizationType.Q3_K: (108,),
    GGMLQuantizationType.Q4_K: (0, 2),
    GGMLQuantizationType.Q5_K: (0, 2),
    GGMLQuantizationType.Q6_K: (208,),
}
"""Where a block has its numbers in fp16, which must not be infinite; all other bytes may be any."""
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 16}
"""Rows that are whole blocks of 256."""


def random_blocks(shape: tuple[int, ...], kind: GGMLQuantizationType) -> np.ndarray:
    block_weights, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(kind)
    blocks = generator.integers(0, 256, (shape[0], shape[1] // block_weights, block_bytes), dtype=np.uint8)
    for place in SCALES[kind]:
        scales = generator.normal(size=(*blocks.shape[:2], 1)).astype(np.float16)
        blocks[..., place : place + 2] = scales.view(np.uint8)
    return blocks.reshape(shape[0], -1)


def _add_phi3(writer: GGUFWriter, config: Any) -> None:
    """Add what llama.cpp's converter writes of a Phi-3 besides a Llama's facts."""
    rope, original = config.rope_parameters, config.original_max_position_embeddings
    head_dim = config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(int(head_dim * rope["partial_rotary_factor"]))
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_sliding_window(config.sliding_window or 0)
    if rope["rope_type"] == "default":
        return
    grown = math.log(config.max_position_embeddings / original)
    writer.add_rope_scaling_attn_factors(math.sqrt(1 + grown / math.log(original)))
    for kind in ("long", "short"):
        writer.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], dtype=np.float32))


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


def test_longrope_is_read_with_the_context_that_it_was_trained_on(tiny_student: Path, tmp_path: Path) -> None:
    model = random_model("phi3")
    write_gguf("phi3", model, tiny_student, tmp_path / "model.gguf")
    write_checkpoint(tmp_path / "model.gguf", tmp_path)
    read = transformers.AutoConfig.from_pretrained(tmp_path)
    for name in ("long_factor", "short_factor", "partial_rotary_factor", "original_max_position_embeddings"):
        assert read.rope_parameters[name] == model.config.rope_parameters[name]
    assert (read.sliding_window, read.max_position_embeddings) == (24, 128)
    rotary, expected = (type(model.model.rotary_emb)(config) for config in (read, model.config))
    assert torch.equal(rotary.inv_freq, expected.inv_freq)
    assert rotary.attention_scaling == pytest.approx(expected.attention_scaling, rel=1e-7)


@pytest.mark.parametrize("name", ["gemma3", "llama", "phi3", "qwen2", "qwen3"])
def test_k_quants_in_several_files_are_read_as_transformers_reads_them(
    name: str, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers knows neither Granite, nor several files, nor other heads of Qwen3 than of 128 channels, nor Phi-3's
    positions, which are no parameters."""
    model = random_model(name, **WIDE | ({"head_dim": 128} if name == "qwen3" else {}))
    for file, tensors_a_file in (("whole.gguf", 0), ("model.gguf", 9)):
        settings: Any = {"tensors_a_file": tensors_a_file, "change": lambda writer: writer.add_pad_token_id(0)}
        write_gguf(name, model, tiny_student, tmp_path / file, k_quants=True, **settings)
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))
    ours = load_file(resolve(str(max(tmp_path.glob("model-*.gguf")))) / "model.safetensors")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="whole.gguf", dtype=torch.float32)
    parameters = dict(theirs.named_parameters())
    assert ours.keys() == parameters.keys()
    for parameter_name, parameter in parameters.items():
        assert torch.equal(ours[parameter_name], parameter), parameter_name


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


def without(*names: str) -> Callable[[GGUFWriter], object]:
    def change(writer: GGUFWriter) -> None:
        for name in names:
            writer.kv_data[0].pop(name, None)
            writer.tensors[0].pop(name, None)

    return change


FACTORS = [f"rope_factors_{kind}.weight" for kind in ("long", "short")]
LENGTH = "phi3.rope.scaling.attn_factor"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(FACTORS[1]), r"the GGUF file lacks rope_factors_short\.weight"),
        (without(LENGTH), rf"the GGUF file lacks {LENGTH}"),
        (without(*FACTORS), rf"{LENGTH} \(1\.18\d+\) must be 1 without rope_factors_long\.weight"),
        (
            lambda writer: writer.add_key_value("phi3.rope.dimension_count", 10, GGUFValueType.UINT32),
            r"rope_factors_long\.weight of the GGUF file .* must be a list of 5 numbers above 0",
        ),
        (
            lambda writer: writer.add_key_value("phi3.rope.dimension_count", 18, GGUFValueType.UINT32),
            r"phi3\.rope\.dimension_count \(18\) must be even and at most the head's 16",
        ),
        (
            lambda writer: writer.add_tensor("blk.0.attn_q.weight", np.zeros((64, 64), dtype=np.float32)),
            r"the GGUF tensor blk\.0\.attn_q\.weight is not of a phi3 model",
        ),
    ],
)
def test_a_phi3_that_is_not_whole_is_refused_by_name(
    change: Callable[[GGUFWriter], object], message: str, tiny_student: Path, tmp_path: Path
) -> None:
    write_gguf("phi3", random_model("phi3"), tiny_student, tmp_path / "model.gguf", change=change)
    with pytest.raises(InputError, match=message):
        write_checkpoint(tmp_path / "model.gguf", tmp_path)


def test_a_phi3_without_factors_turns_as_usual(tiny_student: Path, tmp_path: Path) -> None:
    change = without(*FACTORS, LENGTH, "phi3.rope.scaling.original_context_length", "phi3.attention.sliding_window")
    write_gguf("phi3", random_model("phi3"), tiny_student, tmp_path / "model.gguf", change=change)
    write_checkpoint(tmp_path / "model.gguf", tmp_path)
    read = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (read.rope_parameters["rope_type"], read.sliding_window) == ("default", None)
    assert read.original_max_position_embeddings == read.max_position_embeddings == 128
