"""How a student is spoken to is found by rendering its template; one that does not allow for thoughts is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distill.students.made_families import CHATML, FAMILIES, OLMO_2, SMOLLM2, Family, shipped, write_tokenizer
from toolkit.errors import InputError
from toolkit.formats.chat_format import REASONING_TEMPLATE, ChatFormat
from toolkit.voice.student_format import write_student_format
from toolkit.voice.student_voice import find_voice

PLAIN = SMOLLM2.replace("You are a helpful AI assistant named SmolLM, trained by Hugging Face", "DEFAULT")
BARE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def student(folder: Path, template: str | None, special: tuple[str, ...] = CHATML, eos: str = "<|im_end|>") -> Path:
    family = Family(model="Llama", template=template, special=special, eos=eos, form="", end=eos)
    write_tokenizer(family, folder)
    return folder


@pytest.mark.parametrize("template", [SMOLLM2, BARE, REASONING_TEMPLATE, None])
def test_chatml_and_nothing_else_gets_the_reasoning_template_as_before(template: str | None, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    chat_format = write_student_format(student(tmp_path / "in", template), tmp_path / "out")
    assert chat_format.template == REASONING_TEMPLATE
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "clean_up_tokenization_spaces": False,
    }


@pytest.mark.parametrize("template", [PLAIN, BARE.replace("message.content", "message.content | trim"), "<s>" + BARE])
def test_chatml_with_anything_of_its_own_is_kept(template: str, tmp_path: Path) -> None:
    voice = find_voice(student(tmp_path, template))
    assert voice.form == "r1" and template in voice.template


def test_a_base_model_ends_turns_with_its_own_end_of_text(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    family = FAMILIES["Llama 3 base"]
    write_tokenizer(family, tmp_path / "in")
    chat_format = write_student_format(tmp_path / "in", tmp_path / "out")
    said = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1."}, {"role": "user", "content": "?"}]
    assert chat_format.render(said) == (
        "<|begin_of_text|><|im_start|>user\n1?<|end_of_text|>\n<|im_start|>assistant\n1.<|end_of_text|>\n"
        "<|im_start|>user\n?<|end_of_text|>\n<|im_start|>assistant\n<think>\n"
    )
    end = chat_format.tokenizer.token_to_id("<|end_of_text|>")
    assert "content.split('</think>')" in chat_format.template  # by which llama.cpp sees that it thinks
    assert chat_format.stop_ids == {end} == {chat_format.training_ids(said[:1], "so", "1")[0][-1]}


def test_a_base_model_without_an_end_of_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no chat template, and its tokenizer_config.json names no eos_token of"):
        find_voice(student(tmp_path, None, special=("<a>", "<b>"), eos="<c>"))


REFUSED = {
    "no end": (BARE.replace("<|im_end|>", ""), "must end an answer with a token of its vocabulary, but writes"),
    "another answer": (BARE.replace("message.content", "message.content | upper"), "must end an answer with a token"),
    "closed": (shipped("qwen3_5_nothink"), "closes the thought in its prompt, so that the model does not think"),
    "another form": (
        BARE.replace("<|im_start|>assistant\n'", "<|im_start|>assistant\n' + ('' if enable_thinking is undefined or "
        "enable_thinking else '<think></think>')").replace("message.content", "message.content.replace('<think>', '')"),
        "writes thoughts in another form than <think>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_template_that_does_not_allow_for_thoughts_is_refused_by_what_it_writes(kind: str, tmp_path: Path) -> None:
    template, message = REFUSED[kind]
    with pytest.raises(InputError, match=message):
        find_voice(student(tmp_path, template, special=(*CHATML, "<|vision_start|>")))


def test_the_configuration_stays_the_students_own(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_tokenizer(FAMILIES["OLMo 2"], tmp_path / "in")
    own = json.loads((tmp_path / "in" / "tokenizer_config.json").read_text())
    more: dict[str, Any] = {"model_max_length": 4096, "pad_token": "<|endoftext|>", "auto_map": {"AutoTokenizer": "x"}}
    (tmp_path / "in" / "tokenizer_config.json").write_text(json.dumps(own | more))
    (tmp_path / "in" / "tokenizer.model").write_bytes(b"pieces")
    write_student_format(tmp_path / "in", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written == {
        name: value for name, value in (own | more).items() if name not in ("chat_template", "auto_map")
    } | {"clean_up_tokenization_spaces": False}
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"pieces"
    assert OLMO_2 in ChatFormat.from_folder(tmp_path / "out").template
