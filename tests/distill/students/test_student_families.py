"""A tiny student of each family keeps its own voice: proven, trained, exported or refused by name, and chatted with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from distill.pipeline import demo
from distill.students.architectures import STUDENT_TYPES
from distill.training import document_attention
from distill.training.completion_loss import IGNORED, LossForward
from distill.training.packed_rows import collate
from distill.training.student import check_student
from distill.training.train import tokenize, train
from tests.distill.students.made_families import FAMILIES, TINY, write_family, write_tokenizer
from tests.distill.test_train import examples
from tests.toolkit.made_tokenizers import LLAMA, byte_level
from toolkit.cli.main import main
from toolkit.cli.options.decoders import open_decoder
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat, completion_text
from toolkit.generation.chat_model import LocalChatModel
from toolkit.model.decoder import TorchDecoder
from toolkit.voice.student_format import write_student_format
from toolkit.voice.student_voice import find_voice

EACH = pytest.mark.parametrize("name", FAMILIES)
CHAT = [
    {"role": "user", "content": "How many times does the letter appear?"},
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "And in the text?"},
]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give a student of a family, made once."""
    folder = tmp_path_factory.mktemp("families")

    def made(name: str) -> Path:
        return folder / name if (folder / name).exists() else write_family(name, folder / name)

    return made


@pytest.fixture(scope="module")
def trained(student: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give a student of a family that was trained by adapters for three updates."""
    folder = tmp_path_factory.mktemp("trained")

    def made(name: str) -> Path:
        if not (folder / name).exists():
            (folder / name).mkdir()
            recipe = replace(demo().train, lora_rank=4, learning_rate=1e-2, batch_examples=4, log_every=1)
            measured = train(student(name), examples(12), recipe, folder / name)
            assert measured["updates"] == 3 and measured["final_loss"] < measured["first_loss"]
        return folder / name

    return made


@EACH
def test_a_student_is_admitted_with_its_own_voice(name: str, student: Callable[[str], Path], tmp_path: Path) -> None:
    family = FAMILIES[name]
    assert check_student(student(name)).max_tokens == 2048
    voice = find_voice(student(name))
    assert voice.form == family.form
    chat_format = write_student_format(student(name), tmp_path)
    assert chat_format.tokenizer.id_to_token(chat_format.end_id) == family.end
    assert chat_format.end_id in chat_format.stop_ids == ChatFormat.from_folder(tmp_path).stop_ids
    if family.form == "own":
        assert (tmp_path / "chat_template.jinja").read_text() == family.template
    if family.form == "r1":
        assert family.template is not None and family.template.rstrip("\n") in voice.template
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        assert (config["bos_token"], config["eos_token"]) == (family.bos, family.eos)
    assert chat_format.render(CHAT).endswith("<think>\n") is (name not in ("Qwen3", "SmolLM3"))


@EACH
def test_a_student_is_trained_in_four_bits_too(name: str, student: Callable[[str], Path], tmp_path: Path) -> None:
    recipe = replace(demo().train, lora_rank=4, quantization="nf4", learning_rate=1e-2, batch_examples=4, log_every=1)
    measured = train(student(name), examples(12), recipe, tmp_path)
    assert measured["final_loss"] < measured["first_loss"] and measured["changed_tensors"] > 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def check_loss(ours: Any, oracle: Any, rows: list[Any]) -> None:
    """Compare our loss and gradients with those of transformers' own logits, one example at a time."""
    ours.set_attn_implementation(document_attention.NAME)
    loss: Any = LossForward(ours)(**collate(rows))
    loss.backward()
    expected: Any = torch.zeros(())
    for row in rows:
        labels = torch.tensor(row["labels"])
        logits = oracle(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        expected += torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=IGNORED, reduction="sum")
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    for (name, parameter), other in zip(ours.named_parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)


@EACH
def test_the_loss_equals_that_of_the_models_own_logits(
    name: str, student: Callable[[str], Path], tmp_path: Path
) -> None:
    chat_format = write_student_format(student(name), tmp_path)
    ours, oracle = (AutoModelForCausalLM.from_pretrained(student(name), dtype=torch.float32) for _ in range(2))
    check_loss(ours, oracle, list(tokenize(examples(4), chat_format)))


@pytest.mark.parametrize("kind", ["gemma", "olmo3", "cohere"])
def test_architectures_without_a_family_here_have_the_same_loss(kind: str) -> None:
    settings = TINY | {"vocab_size": 96, "pad_token_id": 0, "head_dim": 16, "sliding_window": 32}
    config = AutoConfig.for_model(kind, **settings)
    torch.manual_seed(0)
    ours, oracle = (AutoModelForCausalLM.from_config(deepcopy(config), dtype=torch.float32) for _ in range(2))
    oracle.load_state_dict(ours.state_dict())
    ids = torch.arange(140) % 90 + 3
    rows = [{"input_ids": ids[:n].tolist(), "labels": [IGNORED] * 5 + ids[5:n].tolist()} for n in (70, 41, 140)]
    check_loss(ours, oracle, rows)


def test_every_admitted_architecture_is_among_these() -> None:
    families = {{"Gemma3": "gemma3_text"}.get(family.model, family.model.lower()) for family in FAMILIES.values()}
    assert set(STUDENT_TYPES) == families | {"gemma", "olmo3", "cohere"}


@EACH
def test_a_trained_student_says_its_prompts_as_it_was_trained(name: str, trained: Callable[[str], Path]) -> None:
    family, folder = FAMILIES[name], trained(name)
    ours, theirs = ChatFormat.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    called = theirs.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert ours.prompt_ids(CHAT) == called
    ids, mask = ours.training_ids(CHAT, "one: 1", "1")
    assert ids[: len(called)] == called and not any(mask[: len(called)])
    said = ("" if ours.opens_reasoning else "<think>\n") + completion_text("one: 1", "1")
    assert theirs.decode(ids[len(called) : -1]) == said
    generation = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    ends = generation if isinstance(generation, list) else [generation]
    assert ids[-1] == ours.tokenizer.token_to_id(family.end) and ids[-1] in ends
    assert ours.tokenizer.token_to_id(family.eos) in ends


@EACH
def test_a_trained_student_is_exported_or_refused_by_name_and_chatted_with(
    name: str, trained: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = trained(name), tmp_path / "exported"
    exported = main(["export", str(folder), "--fp32", "--no-parity", "--out", str(out)])
    if not FAMILIES[name].exports:
        assert exported == 2
        assert f"unknown architecture {FAMILIES[name].model}ForCausalLM" in capsys.readouterr().err
    decoders: list[Any] = [TorchDecoder.open(folder, torch.float32)]
    if FAMILIES[name].exports:
        assert exported == 0
        decoders.append(open_decoder(out))
    sampling = replace(demo().sampling, temperature=0.0, max_new_tokens=12)
    said = []
    for decoder, place in zip(decoders, (folder, out), strict=False):
        events = list(LocalChatModel(decoder, ChatFormat.from_folder(place)).stream(CHAT, sampling))
        assert events[-1].finish_reason in ("stop", "length")
        said.append([id for event in events for id in event.ids])
    assert 1 <= len(said[0]) <= 12
    assert said[0] == said[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"final_logit_softcapping": 30.0}, r"final_logit_softcapping \(30.0\) in .* must be None, since the loss is"),
        ({"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping \(50.0\) in .* must be None, since the documents'"),
        ({"attention_dropout": 0.1}, r"attention_dropout \(0.1\) in .* must be 0"),
        ({"model_type": "gemma3"}, r"the student's architecture \(gemma3\) must be one of .*gemma3_text"),
    ],
)
def test_what_the_loss_would_leave_out_is_refused_by_name(
    settings: dict[str, Any], message: str, student: Callable[[str], Path], tmp_path: Path
) -> None:
    config = json.loads((student("Gemma 3") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises(InputError, match=message):
        check_student(tmp_path)


def test_a_tokenizer_that_transformers_reads_differently_is_refused_with_the_first_difference(
    student: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(student("Qwen2.5"), tmp_path / "student"))
    write_tokenizer(replace(FAMILIES["Qwen2.5"], tokenizer=lambda: byte_level(LLAMA)), folder)  # digits in threes
    with pytest.raises(InputError, match=r"'several turns' differently in transformers: token \d+ is '4 2 .* of '42 "):
        check_student(folder)


def test_a_student_without_its_head_is_refused(student: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student("Llama 3.2"), tmp_path / "student"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks lm_head\.weight"):
        check_student(folder)
