"""A tokenizer that would end this process ends another one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import InputError
from toolkit.formats import tokenizer_trial
from toolkit.formats.chat_format import ChatFormat, load_tokenizer


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def crafted(student: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    value = json.loads((student / "tokenizer.json").read_text())
    change(value)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(value))
    return folder / "tokenizer.json"


def exploding(value: dict[str, Any]) -> None:
    """Each a becomes a thousand, five times."""
    replacement = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    value["normalizer"] = {"type": "Sequence", "normalizers": [replacement] * 5}


def test_replacements_that_explode_are_refused_and_end_nothing_here(
    tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_trial, "MOST_BYTES", 2**28)
    path = crafted(tiny_student, tmp_path / "crafted", exploding)
    with pytest.raises(InputError, match=r"tokenizer\.json must be a tokenizer of the tokenizers library") as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("charsmap", ["AAAA", "/////w==", "CAAAAAAAAAAAAAAAAAAAAA=="])
def test_a_bad_charsmap_is_one_line(charsmap: str, tiny_student: Path, tmp_path: Path) -> None:
    path = crafted(
        tiny_student,
        tmp_path / "crafted",
        lambda value: value.update(normalizer={"type": "Precompiled", "precompiled_charsmap": charsmap}),
    )
    with pytest.raises(InputError, match=r"tokenizer\.json must be a tokenizer of the tokenizers library"):
        load_tokenizer(path)


def test_padding_of_a_trillion_tokens_is_switched_off(tiny_student: Path, tmp_path: Path) -> None:
    padding = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    path = crafted(
        tiny_student, tmp_path / "crafted", lambda value: value.update(padding=padding | {"pad_to_multiple_of": None})
    )
    assert load_tokenizer(path).encode("ab").ids == load_tokenizer(tiny_student / "tokenizer.json").encode("ab").ids


def test_a_harmless_file_is_tried_once(tiny_student: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_tokenizer(tiny_student / "tokenizer.json")
    [proof] = (home / "tokenizers").iterdir()
    monkeypatch.setattr("sys.executable", "/there/is/no/python")
    load_tokenizer(tiny_student / "tokenizer.json")
    proof.unlink()
    with pytest.raises(FileNotFoundError):
        load_tokenizer(tiny_student / "tokenizer.json")


def test_a_tokenizer_that_is_a_pipe_is_refused(tiny_student: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_student, tmp_path / "copy"))
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    with pytest.raises(InputError, match=r"tokenizer\.json must be a regular file"):
        ChatFormat.from_folder(folder)
