"""What a folder's small files say is bounded, and has the types that its readers count on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import InputError
from toolkit.field_types import check_type, fits
from toolkit.json_files import parse_json
from toolkit.records import read_object
from toolkit.runs import read_manifest


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InputError, match=r"config\.json must be a regular file, not a folder, a pipe or a device"):
        read_object(tmp_path / "config.json")


def test_a_link_to_a_device_is_refused_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"config\.json must be a regular file"):
        read_object(tmp_path / "config.json")


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        read_object(tmp_path / "config.json")


def test_nesting_without_end_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a":' + "[" * 200_000)
    with pytest.raises(InputError, match=r"must be JSON of at most 100 levels; it is nested deeper"):
        read_object(tmp_path / "config.json")


def test_bytes_that_are_no_utf_8_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InputError, match=r"must be JSON: .*utf-8"):
        read_object(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1, int, True),
        (True, int, False),
        (True, bool, True),
        (1, bool, False),
        (1, float, True),
        (1.5, int, False),
        (None, int | None, True),
        (["a", "b"], list[str], True),
        (["a", 1], list[str], False),
        ({"a": [1]}, dict[str, list[int]], True),
        ({"a": ["1"]}, dict[str, list[int]], False),
        ("a", list[str], False),
        (None, Any, True),
    ],
)
def test_types_are_those_of_json(value: Any, kind: Any, expected: bool) -> None:
    assert fits(value, kind) == expected


def test_an_error_names_the_value_and_the_type_that_was_meant() -> None:
    with pytest.raises(InputError, match=r"^eos in x \('</s>'\) must be a whole number or a list, each entry a whole"):
        check_type("</s>", int | list[int], "eos in x")
    with pytest.raises(InputError, match=r"…\) must be an object"):
        check_type("x" * 10_000, dict[str, Any], "config in x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stage": ["export"]}, r"stage in .*manifest\.json \(\['export'\]\) must be a text"),
        ({"config": []}, r"config in .* must be an object"),
        ({"measured": "high"}, r"measured in .* must be an object"),
        ({"outputs": {"model.onnx": 5}}, r"outputs in .* must be an object, each entry an object"),
        ({"outputs": {"model.onnx": {"bytes": "5"}}}, r"bytes of model\.onnx in .* \('5'\) must be a whole number"),
        ({"outputs": {"model.onnx": {"bytes": 5}}}, r"sha256 of model\.onnx in .* \(None\) must be a text"),
    ],
)
def test_a_manifest_of_other_types_is_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path)


def test_a_manifest_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(InputError, match=r"manifest\.json must be a regular file"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,', "mine.jsonl line 7 must be JSON: Expecting property name enclosed in double quotes at column 9"),
        ('{"a": 1 "b"}\n', "mine.jsonl line 7 must be JSON: Expecting ',' delimiter at column 9"),
        ('{\n "a": 1\n "b"}', "mine.jsonl line 7 must be JSON: Expecting ',' delimiter at line 3 column 2"),
    ],
)
def test_a_broken_line_has_one_line_number(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_json(text, "mine.jsonl line 7")
    assert str(caught.value) == message
