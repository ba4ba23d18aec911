"""Beside an exported graph are a tokenizer without the settings of its last use, and the template of its chats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from export.folder.package import write_package
from export.merged_model import open_source
from export.runtime.verify.record import end_of_text_ids
from toolkit.errors import InputError
from toolkit.formats.chat_format import REASONING_TEMPLATE, ChatFormat


def test_an_exported_tokenizer_neither_cuts_nor_pads_and_has_its_template_in_one_place(
    tiny_student: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny_student, tmp_path / "source"))
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=1000)
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "chat_template.jinja").unlink()
    named = [{"name": "rag", "template": "rag"}, {"name": "default", "template": REASONING_TEMPLATE}]
    config = json.loads((source / "tokenizer_config.json").read_text()) | {"chat_template": named}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    out.mkdir()
    write_package(open_source(source, None), out)
    text = "How many times does the letter appear in the text?"
    expected = ChatFormat.from_folder(tiny_student).encode(text)
    assert Tokenizer.from_file(str(out / "tokenizer.json")).encode(text).ids == expected
    assert ChatFormat.from_folder(source).encode(text) == expected
    exported = AutoTokenizer.from_pretrained(out)
    assert exported.encode(text) == expected
    assert exported.get_chat_template() == ChatFormat.from_folder(out).template == REASONING_TEMPLATE


def test_a_tokenizer_that_stores_no_last_use_is_copied_byte_by_byte(tiny_student: Path, tmp_path: Path) -> None:
    write_package(open_source(tiny_student, None), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (tiny_student / name).read_bytes()


def test_merges_are_dropped_in_training_alone(tiny_student: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_student, tmp_path / "source"))
    values = json.loads((source / "tokenizer.json").read_text())
    values["model"]["dropout"] = 0.5
    (source / "tokenizer.json").write_text(json.dumps(values))
    text = "How many times does the letter appear in the text?"
    expected = ChatFormat.from_folder(tiny_student).encode(text)
    out = tmp_path / "out"
    out.mkdir()
    write_package(open_source(source, None), out)
    assert ChatFormat.from_folder(source).encode(text) == expected
    assert Tokenizer.from_file(str(out / "tokenizer.json")).encode(text).ids == expected


def test_a_vocabulary_with_gaps_must_fit_by_its_last_id(tiny_student: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_student, tmp_path / "source"))
    values = json.loads((source / "tokenizer.json").read_text())
    values["model"]["vocab"]["ĠĠĠ"] = 500
    (source / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"its last id is 500\) must fit the model's vocab_size \(320\)"):
        write_package(open_source(source, None), tmp_path)


def test_a_folder_without_a_tokenizer_configuration_is_read_as_transformers_reads_it(
    tiny_student: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny_student, tmp_path / "source"))
    (source / "tokenizer_config.json").unlink()
    out = tmp_path / "out"
    out.mkdir()
    write_package(open_source(source, None), out)
    found = ChatFormat.from_folder(out)
    text = "<|im_start|>user\nWhat is 17?<|im_end|>"
    assert found.encode(text) == AutoTokenizer.from_pretrained(source).encode(text)
    assert end_of_text_ids(out, found)["tokenizer_config.json"] == []


def test_an_end_of_text_id_that_no_token_has_ends_nothing(tiny_student: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_student, tmp_path / "source"))
    path = source / "generation_config.json"
    for odd in (-1, 9999, 10**12, [2, 9999]):
        path.write_text(json.dumps({"eos_token_id": odd}))
        assert ChatFormat.from_folder(source).stop_ids == {2}
