"""Records come back from a file as they went into it, whatever their text is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.samples import TRACE
from tests.toolkit.full_disk import full_disk
from toolkit.errors import InputError
from toolkit.records import AppendLog, Trace, read_records, write_records


@pytest.mark.parametrize(
    "text", ["half \ud83d of a pair", "\udc00", "NUL \x00", "\u2028\u2029\x85\x0b\x0c\x1c", "🙂 ﷽", '"\\\n\r', "\ufeff"]
)
def test_a_record_of_any_text_is_one_line_and_reads_back_as_it_was(tmp_path: Path, text: str) -> None:
    records = [TRACE, replace(TRACE, reasoning=text, answer=text), TRACE]
    with AppendLog(tmp_path / "appended.jsonl") as log:
        for record in records:
            log.append(record)
    write_records(tmp_path / "written.jsonl", records)
    for name in ("appended.jsonl", "written.jsonl"):
        assert read_records(tmp_path / name, Trace) == records
        assert (tmp_path / name).read_bytes().count(b"\n") == 3


@given(text=st.text(st.characters(codec=None)).filter(lambda text: text == _paired(text)))
def test_every_text_reads_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("records") / "written.jsonl"
    write_records(path, [replace(TRACE, answer=text)])
    assert read_records(path, Trace)[0].answer == text


def test_a_torn_end_is_left_out_where_that_is_asked_for_and_a_torn_middle_never(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, [TRACE, TRACE])
    whole = path.read_bytes()
    for cut in (1, 20):
        path.write_bytes(whole[:-cut])
        assert read_records(path, Trace, torn_end=True) == [TRACE]
    path.write_bytes(whole[5:])
    with pytest.raises(InputError, match="line 1 must be JSON"):
        read_records(path, Trace, torn_end=True)


@pytest.mark.parametrize("room", [0, 1, 100])
def test_what_a_full_disk_takes_of_a_record_is_taken_back(tmp_path: Path, room: int) -> None:
    path = tmp_path / "records.jsonl"
    with AppendLog(path) as log:
        log.append(TRACE)
        with full_disk(path.stat().st_size + room):
            for _ in range(2):
                with pytest.raises(OSError, match=r"records\.jsonl"):
                    log.append(TRACE)
        log.append(TRACE)
    assert read_records(path, Trace) == [TRACE, TRACE]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt_tokens", "NaN"),
        ("completion_tokens", "Infinity"),
        ("completion_tokens", "1e999"),
        ("completion_tokens", "1.0"),
        ("reasoning_tokens", "9223372036854775808"),
        ("sample", "1" + "0" * 4000),
        ("sample", "true"),
        ("sample", '"0"'),
        ("closed", "1"),
        ("reasoning", "null"),
        ("answer", "[]"),
        ("finish_reason", "5"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_field_and_its_line(tmp_path: Path, name: str, value: str) -> None:
    path = tmp_path / "traces.jsonl"
    line = json.dumps(TRACE.to_dict() | {name: "?"}).replace('"?"', value)
    path.write_text(f"{json.dumps(TRACE.to_dict())}\n{line}\n")
    with pytest.raises(InputError, match=rf"traces\.jsonl line 2: {name} \(.* of a Trace must be "):
        read_records(path, Trace)


def _paired(text: str) -> str:
    """Replace two halves of a surrogate pair that are side by side by their character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
