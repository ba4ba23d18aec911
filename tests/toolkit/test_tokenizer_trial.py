"""A tokenizer that would end this process ends another one."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.toolkit.made_tokenizers import KINDS, write_folder
from toolkit.errors import InputError
from toolkit.formats import tokenizer_trial
from toolkit.formats.chat_format import ChatFormat, load_tokenizer
from toolkit.formats.tokenizer_bounds import check_growth


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


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


LIGATURES = base64.b64encode(
    (0).to_bytes(4, "little") + "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}\0".encode()
).decode()
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
GROWING: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "replacements of a word": ("normalizer", [replace({"String": "please"}, "please" * 1000)] * 5),
    "replacements of a letter": ("normalizer", [replace({"String": "a"}, "a" * 1000)] * 5),
    "one long replacement": ("normalizer", [replace({"String": "please"}, "x" * 10_000)]),
    "a pattern that is empty": ("normalizer", [replace({"Regex": "(?=please)"}, "a" * 300)]),
    "ligatures that are written out": ("normalizer", [replace({"String": "a"}, "\ufdfa" * 12), {"type": "NFKD"}]),
    "long prefixes": ("normalizer", [{"type": "Prepend", "prepend": "a" * 20}] * 2),
    "bytes of bytes": ("pre_tokenizer", [BYTES] * 40),
    "replacements that are decoded": ("decoder", [replace({"String": "a"}, "a" * 100)] * 2),
}


def sequence(part: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    name = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}[part]
    return {"type": "Sequence", name: steps}


@pytest.mark.parametrize("kind", GROWING)
def test_steps_that_make_too_much_of_a_text_are_refused(
    kind: str, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_trial, "MOST_BYTES", 2**28)
    part, steps = GROWING[kind]
    path = crafted(tiny_student, tmp_path / "crafted", lambda value: value.update({part: sequence(part, steps)}))
    with pytest.raises(
        InputError, match=r"tokenizer\.json must make at most 200 characters of one; they can"
    ) as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


def test_what_tokenizers_of_models_make_of_a_text_is_allowed(tmp_path: Path) -> None:
    ligatures = {"type": "Precompiled", "precompiled_charsmap": LIGATURES}
    spaces = replace({"Regex": " {2,}"}, "\N{LOWER ONE EIGHTH BLOCK}")
    metaspace = {
        "type": "Metaspace",
        "replacement": "\N{LOWER ONE EIGHTH BLOCK}",
        "prepend_scheme": "always",
        "split": True,
    }
    quotes = [replace({"String": "``"}, '"'), replace({"String": "''"}, '"')]
    albert = [*quotes, {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"}, ligatures, spaces]
    check_growth(tmp_path, {"normalizer": sequence("normalizer", albert), "pre_tokenizer": metaspace})


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_tokenizer_is_refused(kind: str, tmp_path: Path) -> None:
    write_folder(kind, tmp_path)
    load_tokenizer(tmp_path / "tokenizer.json")


def test_a_text_that_a_pattern_never_ends_with_is_one_line(tiny_student: Path, tmp_path: Path) -> None:
    backtracking = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    folder = Path(shutil.copytree(tiny_student, tmp_path / "copy"))
    value = json.loads((folder / "tokenizer.json").read_text())
    steps = [backtracking, value["pre_tokenizer"]]
    (folder / "tokenizer.json").write_text(json.dumps(value | {"pre_tokenizer": sequence("pre_tokenizer", steps)}))
    chat_format = ChatFormat.from_folder(folder)
    text = "a" * 60 + "!"
    for read in (chat_format.encode, lambda said: chat_format.prompt_ids([{"role": "user", "content": said}])):
        with pytest.raises(InputError, match=r"the model's tokenizer fails on a text of \d+ characters"):
            read(text)


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
