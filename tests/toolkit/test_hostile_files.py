"""JSON, ONNX files and texts that are made to harm end as one line, at once, whoever reads them."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from apps.chat.conversation.exchange import conversation_of
from apps.chat.panels.settings_panel import SavedSettings, restored
from distill.problems.problem_set import read_problems
from export.runtime.external_data import check_external_data
from export.runtime.session import open_session
from export.runtime.verify import divergence as coarse_parity
from export.runtime.verify.divergence import EXPECTED_FILE, read_expected
from toolkit.errors import InputError
from toolkit.figures.recipe import read_recipe
from toolkit.formats.chat_format import ChatFormat
from toolkit.formats.message_fields import whole
from toolkit.generation.endpoint import parse_address
from toolkit.json_files import MOST_NESTED, parse_json, read_json
from toolkit.records import Trace, read_object, read_records
from toolkit.runs import Stage, partial_folder, read_manifest

DEEP = {"lists": "[" * 100_000, "objects": '{"a":' * 100_000, "closed": "[" * 5000 + "]" * 5000}
LONG = "1" * 5000
WRONG = {
    **DEEP,
    "deeper than its parser minds": "[" * (MOST_NESTED + 1) + "]" * (MOST_NESTED + 1),
    "digits": f'{{"a": {LONG}}}',
    "nothing": "",
    "a byte that is no UTF-8": "\udcff",
    "the bytes of half a character": '"\ud800"',
}


def test_what_is_json_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    text = '{"a": [1, 2.5, null, true, "\\ud83d", "é🙂"], "b": {}}'
    path.write_text(text)
    assert read_json(path, limit_bytes=1000) == json.loads(text)
    nested: Any = json.loads("[" * MOST_NESTED + "]" * MOST_NESTED)
    assert parse_json(json.dumps(nested), "it") == nested
    wide = [[n] for n in range(1000)]
    assert parse_json(json.dumps(wide), "it") == wide
    assert parse_json(b"\xef\xbb\xbf[1]", "it") == [1], "a byte order mark is no sign of the text"


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_is_no_json_is_one_line_that_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass" if "\ud800" in text else "surrogateescape")
    with pytest.raises(InputError, match=r"a\.json must be JSON") as caught:
        read_json(path, limit_bytes=10**6)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_read_only_where_it_is_asked_for(constant: str) -> None:
    with pytest.raises(InputError, match=f"it must be JSON: {constant} is no number"):
        parse_json(f"[{constant}]", "it")
    assert len(parse_json(f"[{constant}]", "it", constants=True)) == 1


def test_a_file_beyond_its_bound_and_what_is_no_file_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" + " " * 1000 + "]")
    assert read_json(path, limit_bytes=1002) == []
    with pytest.raises(InputError, match=r"a\.json has 1002 bytes, more than the 1001 that are read"):
        read_json(path, limit_bytes=1001)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless", "."):
        with pytest.raises(InputError, match="must be a regular file"):
            read_json(tmp_path / name, limit_bytes=1000)
    with pytest.raises(InputError, match=r"none\.json cannot be read: No such file"):
        read_json(tmp_path / "none.json", limit_bytes=1000)


def _settings(path: Path) -> None:
    path.rename(path.with_name("settings.json"))
    assert restored(SavedSettings(path.parent).read(), 4096).seed is None
    raise InputError("the defaults are shown")


def _manifest(path: Path) -> None:
    path.rename(path.with_name("manifest.json"))
    read_manifest(path.parent)


def _recipe(path: Path) -> None:
    path.rename(path.with_name("recipe.json"))
    read_recipe(path.parent)


READERS: dict[str, Callable[[Path], Any]] = {
    "an object": read_object,
    "traces": lambda path: read_records(path, Trace),
    "problems": lambda path: read_problems(path.rename(path.with_suffix(".jsonl"))),
    "one list of problems": read_problems,
    "a recipe": _recipe,
    "a manifest": _manifest,
    "the chat's settings": _settings,
    "a conversation": lambda path: conversation_of(path.read_text()),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("text", [*DEEP.values(), f'{{"a": {LONG}}}'], ids=[*DEEP, "digits"])
def test_every_json_that_is_read_has_bounds(tmp_path: Path, read: Callable[[Path], Any], text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError):
        read(path)


@pytest.mark.parametrize("text", [*DEEP.values(), "", "5"])
def test_work_beside_a_marker_that_cannot_be_read_is_set_aside_and_kept(tmp_path: Path, text: str) -> None:
    stage = Stage(name="train", config={}, inputs={})
    folder = partial_folder(tmp_path / "run", stage)
    (folder / "traces.jsonl").write_text("1\n")
    (folder / "stage.json").write_text(text)
    assert not (partial_folder(tmp_path / "run", stage) / "traces.jsonl").exists()
    assert [path.read_text() for path in tmp_path.glob(".run.partial.*/traces.jsonl")] == ["1\n"]


def nested(levels: int) -> bytes:
    """Nest graphs in attributes of nodes of graphs."""
    content = b""
    for field in (6, 5, 1) * levels:
        content = bytes([field << 3 | 2]) + _varint(len(content)) + content
    return bytes([7 << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


ONNX = {
    "one endless number": b"\xff" * 2_000_000,
    "an endless length": b"\x3a" + b"\xff" * 2_000_000,
    "a number of eleven bytes": b"\x08" + b"\x80" * 10 + b"\x01",
    "many levels": nested(20_000),
    "a length beyond the end": b"\x3a\xff\xff\xff\xff\x7f",
    "a cut number": b"\x08\xff",
}


@pytest.mark.parametrize("content", ONNX.values(), ids=ONNX)
def test_a_graph_that_is_made_to_keep_its_reader_busy_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.onnx is not a whole ONNX file"):
        check_external_data(tmp_path / "model.onnx")


def test_a_graph_of_some_levels_is_read(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(nested(20))
    check_external_data(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("é🙂", "é🙂"),
        ("\ud83d\ude42", "🙂"),
        ("a\ud83d b\ude42", "a\ufffd b\ufffd"),
        ("\x00", "\x00"),
    ],
)
def test_half_characters_are_marked_and_all_others_kept(text: str, expected: str) -> None:
    assert whole(text) == expected


def test_half_characters_end_no_tokenizer_and_no_address(tiny_student: Path) -> None:
    chat_format = ChatFormat.from_folder(tiny_student)
    assert chat_format.encode("a\ud83db") == chat_format.encode("a\ufffdb")
    for address in ("http://127.0.0.1:9/v1#\udcff", "http://127.0.0.1:9/\udcff", "http://\udcff/v1"):
        with pytest.raises(InputError, match="is no address such as"):
            parse_address(address)


def with_external(folder: Path, **entries: str) -> Path:
    """Make a graph of one tensor, whose name would clear a terminal, with a file of 64 bytes as its data."""
    tensor = onnx.TensorProto(
        name="w\x1b[2J", data_type=onnx.TensorProto.FLOAT, dims=[16], data_location=onnx.TensorProto.EXTERNAL
    )
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    shown = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    node = onnx.helper.make_node("Identity", [tensor.name], ["y"])
    graph = onnx.helper.make_graph([node], "g", [], [shown], [tensor])
    (folder / "w.bin").write_bytes(bytes(64))
    path = folder / "model.onnx"
    path.write_bytes(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]).SerializeToString()
    )
    return path


@pytest.mark.parametrize("number", ["-32", "6_4", "\u0660", "9" * 5000, " 0", "", "0x0"])
@pytest.mark.parametrize("key", ["offset", "length"])
def test_a_place_in_external_data_is_plain_digits(key: str, number: str, tmp_path: Path) -> None:
    path = with_external(tmp_path, location="w.bin", **{key: number})
    with pytest.raises(InputError, match=rf"^{key} \('.*\) in .* must be a number of bytes") as caught:
        check_external_data(path)
    assert len(str(caught.value)) < 200 + len(str(path))


def test_a_place_behind_the_end_is_refused_however_large(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"w\.bin has 64 of 18446744073709551648 bytes"):
        check_external_data(with_external(tmp_path, location="w.bin", offset=str(2**64 - 32), length="64"))


def test_what_onnxruntime_refuses_is_one_line_and_its_own_log_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"onnxruntime cannot open"):
        open_session(with_external(tmp_path, location="w.bin", length="60"), 1)
    assert capfd.readouterr().err == ""


def array_of(shape: tuple[int, ...]) -> bytes:
    """Write the header of an array that claims this shape, without its values."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<i8", "fortran_order": False, "shape": shape})
    return head.getvalue()


ARRAYS = {
    "a bomb": (array_of((2**17,)) + bytes(2**20), r"its arrays \(\d+ bytes\) have more than 1000000"),
    "an array of 8 TB": (array_of((2**40,)), "is no record"),
    "a head that never ends": (b"\x93NUMPY\x01\x00\x28\x23" + b"(" * 9000, "is no record"),
    "no array": (b"no", "is no record"),
}


@pytest.mark.parametrize(("content", "message"), ARRAYS.values(), ids=ARRAYS)
def test_a_record_of_arrays_that_is_made_to_harm_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.setattr(coarse_parity, "MOST_BYTES", 10**6)
    with zipfile.ZipFile(tmp_path / EXPECTED_FILE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tokens.npy", content)
    with pytest.raises(InputError, match=message):
        read_expected(tmp_path)
