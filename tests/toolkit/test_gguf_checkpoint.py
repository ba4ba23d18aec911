"""A GGUF becomes the same model in a Hugging Face folder: weights as transformers reads them, tokenizer exact."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from toolkit.errors import InputError
from toolkit.formats.chat_format import REASONING_TEMPLATE, ChatFormat
from toolkit.sources.gguf_checkpoint import unpermute, write_checkpoint
from toolkit.sources.gguf_families import LLAMA_LAYER
from toolkit.sources.gguf_tokenizer import build_tokenizer

TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}


def permute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder rows as llama.cpp does, one by one: pair i of a head is its rows i and i + half."""
    head_dim = len(weight) // num_heads
    order = [
        h * head_dim + i + half for h in range(num_heads) for i in range(head_dim // 2) for half in (0, head_dim // 2)
    ]
    return weight[order]


def add_facts(writer: GGUFWriter, config: Mapping[str, Any], student: Path) -> None:
    """Add the facts of a model's config.json, and a student's tokenizer."""
    tokenizer = json.loads((student / "tokenizer.json").read_text())
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocabulary]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), config["vocab_size"])]  # as llama.cpp's converter fills up
    rope = config["rope_parameters"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write_gguf(
    path: Path,
    student: Path,
    *,
    architecture: str = "llama",
    add: Callable[[GGUFWriter], object] = lambda writer: None,
    without: Sequence[str] = (),
) -> None:
    """Write a student as llama.cpp's converter would, matrices in Q8_0; `add`: further facts, `without`: names of
    facts."""
    config = json.loads((student / "config.json").read_text())
    writer = GGUFWriter(path, architecture)
    add_facts(writer, config, student)
    writer.add_pad_token_id(0)
    writer.add_chat_template(REASONING_TEMPLATE)
    gguf_names = {hub: gguf for gguf, hub in LLAMA_LAYER.items()} | TOP
    for name, parameter in AutoModelForCausalLM.from_pretrained(student).named_parameters():
        weight = parameter.detach().numpy()
        _, _, rest = name.removesuffix(".weight").partition("layers.")
        layer, _, kind = rest.partition(".")
        if "q_proj" in name or "k_proj" in name:
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            weight = permute(weight, heads)
        target = f"blk.{layer}.{gguf_names[kind]}.weight" if rest else f"{TOP[name.removesuffix('.weight')]}.weight"
        if weight.ndim == 1:
            writer.add_tensor(target, weight)
        else:
            packed = quantize(weight, GGMLQuantizationType.Q8_0)
            writer.add_tensor(target, packed, raw_dtype=GGMLQuantizationType.Q8_0)
    add(writer)
    for name in without:
        del writer.kv_data[0][name]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def gguf(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, tiny_student)
    return path


@pytest.fixture(scope="module")
def checkpoint(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(gguf, folder)
    return folder


def test_parameters_equal_transformers_own_gguf_loading(gguf: Path, checkpoint: Path) -> None:
    ours = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).state_dict()
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        assert torch.equal(ours[name], parameter), name


def test_logits_equal_those_of_the_model_that_was_packed(tiny_student: Path, checkpoint: Path) -> None:
    ids = torch.arange(40)[None]
    source = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float32)(ids).logits
    result = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)(ids).logits
    # Q8_0 keeps 8 bits of a weight
    torch.testing.assert_close(result, source, rtol=0, atol=0.02 * source.abs().max().item())


@given(text=st.text(max_size=60))
def test_tokenizer_gives_the_source_s_ids_and_round_trips(tiny_student: Path, checkpoint: Path, text: str) -> None:
    ours = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    source = Tokenizer.from_file(str(tiny_student / "tokenizer.json"))
    ids = ours.encode(text, add_special_tokens=False).ids
    assert ids == source.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids, skip_special_tokens=False) == text


def test_transformers_reads_the_folder_as_the_chat_format_does(checkpoint: Path) -> None:
    text = "<|im_start|>user\n12 345 is  a\tnumber é<|im_end|>"
    assert AutoTokenizer.from_pretrained(checkpoint).encode(text) == ChatFormat.from_folder(checkpoint).encode(text)


def test_each_digit_is_a_token_even_where_the_vocabulary_has_longer_numbers() -> None:
    tokens = ["1", "2", "12", "<|im_end|>"]
    facts = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1, 1, 1, 3],
        "tokenizer.ggml.merges": ["1 2"],
    }
    assert build_tokenizer(facts).encode("12").tokens == ["1", "2"]


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("dbrx", ["HelloWorld", "'re", " it", "'s", " ", "123", "4", " a", "/b", "\n\n", "x", "))\n", "/y"]),
        ("gpt-4o", ["Hello", "World're", " it's", " ", "123", "4", " a", "/b", "\n\n", "x", "))\n/", "y"]),
    ],
)
def test_a_text_is_split_as_the_tokenizer_of_that_name_splits_it(pre: str, pieces: list[str]) -> None:
    facts = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": ["a", "<|im_end|>"],
        "tokenizer.ggml.token_type": [1, 3],
        "tokenizer.ggml.merges": [],
    }
    before: Any = build_tokenizer(facts).pre_tokenizer
    found = before.pre_tokenize_str("".join(pieces))
    assert ["".join(pieces)[begin:end] for _, (begin, end) in found] == pieces


@pytest.mark.parametrize(("architecture", "spaces"), [("phi3", ["▁hi"]), ("llama", ["▁", "<0x0A>", "hi"])])
def test_white_space_behind_the_turns_of_phi_3_is_no_token(architecture: str, spaces: list[str]) -> None:
    tokens = ["<unk>", "<s>", "</s>", "<|user|>", "▁", "h", "i", "hi", "▁hi", "<0x0A>"]
    facts = {
        "general.architecture": architecture,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 4, 3, 1, 1, 1, 1, 1, 6],
        "tokenizer.ggml.scores": [0.0] * 4 + [-4.0, -5.0, -6.0, -1.0, -2.0, 0.0],
        "tokenizer.ggml.unknown_token_id": 0,
    }
    tokenizer = build_tokenizer(facts)
    found, first = ([tokens[id] for id in tokenizer.encode(text).ids] for text in ("<|user|>\nhi", "<s> hi"))
    assert found == ["<|user|>", *spaces]
    assert first[1] == "▁", "it stays behind the first token of a text"


def test_unpermute_undoes_the_permutation() -> None:
    weight = np.arange(24 * 3, dtype=np.float32).reshape(24, 3)
    for num_heads in (1, 2, 3):
        np.testing.assert_array_equal(unpermute(permute(weight, num_heads), num_heads), weight)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGML" * 100)
    with pytest.raises(InputError, match=r"model\.gguf must be a whole GGUF file"):
        write_checkpoint(tmp_path / "model.gguf", tmp_path)


def test_a_cut_gguf_is_refused(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(gguf.read_bytes()[: gguf.stat().st_size // 2])
    with pytest.raises(InputError, match=r"model\.gguf must be a whole GGUF file"):
        write_checkpoint(tmp_path / "model.gguf", tmp_path)


def test_another_architecture_is_refused_by_name(tiny_student: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_student, architecture="mamba")
    with pytest.raises(InputError, match=r"architecture mamba must be one of gemma3, granite, llama, "):
        write_checkpoint(tmp_path / "model.gguf", tmp_path)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda w: w.add_rope_scaling_factor(4.0), r"rope\.scaling\.factor \(4\.0\) must be 1\.0"),
        (lambda w: w.add_float32("llama.rope.scale_linear", 4.0), r"rope\.scale_linear \(4\.0\) may change the model"),
        (lambda w: w.add_sliding_window(8), r"attention\.sliding_window \(8\) may change the model"),
        (lambda w: w.add_logit_scale(3.0), r"logit_scale \(3\.0\) may change the model"),
        (lambda w: w.add_causal_attention(False), r"attention\.causal \(False\) must be True"),
        (lambda w: w.add_value_length(8), r"attention\.value_length \(8\) must be 16"),
        (lambda w: w.add_vocab_size(400), r"vocab_size \(400\) must be 320"),
        (
            lambda w: w.add_uint16("split.count", 2),
            r"model\.gguf is one of 2 files of a model, and 1 are named as such; give them their own names",
        ),
    ],
)
def test_a_fact_that_changes_the_model_is_refused_by_name(
    add: Callable[[GGUFWriter], object], message: str, tiny_student: Path, tmp_path: Path
) -> None:
    """llama.cpp scales by a factor alone: without a type it is linear."""
    write_gguf(tmp_path / "model.gguf", tiny_student, add=add)
    with pytest.raises(InputError, match=message):
        write_checkpoint(tmp_path / "model.gguf", tmp_path)


def test_facts_that_change_nothing_are_let_through(tiny_student: Path, tmp_path: Path) -> None:
    def add(writer: GGUFWriter) -> None:
        writer.add_string("llama.rope.scaling.type", "none")
        writer.add_rope_scaling_factor(4.0)  # of the type none
        writer.add_vocab_size(320)
        writer.add_tensor_data_layout("Meta AI original pth")

    write_gguf(tmp_path / "model.gguf", tiny_student, add=add)
    write_checkpoint(tmp_path / "model.gguf", tmp_path)


def test_the_end_of_a_turn_ends_a_text_as_well(tiny_student: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_student, add=lambda writer: writer.add_eot_token_id(5))
    write_checkpoint(tmp_path / "model.gguf", tmp_path)
    assert ChatFormat.from_folder(tmp_path).stop_ids == {2, 5}


def test_a_file_needs_neither_a_padding_nor_a_first_token(tiny_student: Path, tmp_path: Path) -> None:
    names = [f"tokenizer.ggml.{name}_token_id" for name in ("padding", "bos")]
    write_gguf(tmp_path / "model.gguf", tiny_student, without=names)
    write_checkpoint(tmp_path / "model.gguf", tmp_path)
    assert "pad_token_id" not in json.loads((tmp_path / "config.json").read_text())
    assert ChatFormat.from_folder(tmp_path).stop_ids == {2}
