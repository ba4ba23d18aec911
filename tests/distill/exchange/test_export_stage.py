"""Runs become data sets that `datasets` loads, and come back as they were, to the byte of each field."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.exchange import dataset_files
from distill.exchange.dataset_files import DatasetFiles
from distill.exchange.export_stage import export_traces
from distill.exchange.exported_rows import COLUMNS, row_of
from distill.exchange.import_stage import ImportConfig, import_traces
from distill.problems.families import make_problems
from distill.problems.splits import split_of
from distill.store.sharded_store import ASKED, TraceStore
from distill.verification.verdicts import grade
from tests.samples import TRACE
from toolkit.errors import InputError
from toolkit.figures.ledger import PROBLEMS, TRACES, VERDICTS
from toolkit.records import Problem, Trace, Verdict, read_records, write_records
from toolkit.runs import read_manifest

ODD = "Zürich 北京 🤔 \u2028 a\tb\r\nc\\n \"quoted\" {x} '' \x00 end "


def a_run(folder: Path) -> tuple[list[Problem], list[Trace]]:
    """Write problems of all kinds and splits, with whole, cut and odd traces."""
    asked = [
        *make_problems("train", 1, 0),
        *make_problems("test", 1, 0),
        Problem.create(
            family="user", question=f"What is 17 + 25? {ODD}", answer="42", metadata={"from": ODD, "n": None}
        ),
        Problem.create(family="user", question="Of the own test", answer="yes", split="test"),
        Problem.create(
            family="user",
            question="And now?",
            answer="",
            history=[{"role": "system", "content": ODD}, {"role": "user", "content": "Hello"}],
            split="train",
        ),
    ]
    asked.append(replace(asked[-2], question="of the  own test").set_apart())
    traces = []
    for number, problem in enumerate(asked):
        for sample in (0, 3):
            right = replace(
                TRACE,
                problem_id=problem.id,
                sample=sample,
                reasoning=f"{ODD}{number}",
                answer=f"\\boxed{{{problem.answer}}}",
                teacher="deepseek-r1@0123456789abcdef",
                request_hash=f"{2 * number + bool(sample) + 1:016x}",
            )
            cut = replace(right, closed=False, answer="", finish_reason="length", completion_tokens=None)
            traces.append(cut if sample else right)
    folder.mkdir()
    write_records(folder / PROBLEMS, asked)
    write_records(folder / TRACES, traces)
    return asked, traces


def load(folder: Path, cache: Path) -> Any:
    from datasets import load_dataset

    return load_dataset(str(folder), cache_dir=str(cache))


def in_order(traces: list[Trace]) -> list[Trace]:
    return sorted(traces, key=lambda trace: trace.request_hash)


def test_a_run_comes_back_from_its_data_set_equal_in_each_field(tmp_path: Path) -> None:
    asked, traces = a_run(tmp_path / "run")
    export_traces(tmp_path / "run", tmp_path / "set")
    import_traces(ImportConfig(place=tmp_path / "set"), tmp_path / "back")
    back = read_records(tmp_path / "back" / PROBLEMS, Problem)
    assert sorted(back, key=lambda problem: problem.id) == sorted(asked, key=lambda problem: problem.id)
    assert in_order(read_records(tmp_path / "back" / TRACES, Trace)) == in_order(traces)
    lines = [set((tmp_path / name / TRACES).read_bytes().splitlines()) for name in ("run", "back")]
    assert lines[0] == lines[1]
    export_traces(tmp_path / "back", tmp_path / "set again")
    rows = [rows_of(tmp_path / name) for name in ("set", "set again")]
    assert rows[0] == rows[1]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    from pyarrow import parquet

    files = sorted((folder / "data").iterdir())
    return sorted(
        (row for path in files for row in parquet.read_table(path).to_pylist()), key=lambda r: r["request_hash"]
    )


def test_datasets_loads_the_folder_with_the_splits_and_columns_of_its_card(tmp_path: Path) -> None:
    asked, traces = a_run(tmp_path / "run")
    export_traces(tmp_path / "run", tmp_path / "set")
    found = load(tmp_path / "set", tmp_path / "cache")
    of = {problem.id: split_of(problem) for problem in asked}
    counts = {split: sum(of[t.problem_id] == split for t in traces) for split in dict.fromkeys(of.values())}
    assert {split: len(rows) for split, rows in found.items()} == counts
    assert list(found["test"].features) == [column.name for column in COLUMNS]
    assert {row["split"] for row in found["test"]} == {"test"}
    kinds = {column.name: column.dtype for column in COLUMNS if column.dtype != "messages"}
    assert {name: found["test"].features[name].dtype for name in kinds} == kinds
    asked_before = [row["history"] for split in found.values() for row in split if row["question"] == "And now?"]
    assert asked_before == [asked[-2].history] * 2
    card = (tmp_path / "set" / "README.md").read_text()
    assert "\n# license: name the license" in card and "\nlicense:" not in card
    assert "`deepseek-r1@0123456789abcdef`: " in card and "Sampling: not recorded." in card
    assert all(f"| {column.name} | {column.dtype} | {column.meaning} |" in card for column in COLUMNS)


def test_verdicts_of_the_run_are_exported_and_missing_ones_are_made(tmp_path: Path) -> None:
    asked, traces = a_run(tmp_path / "run")
    export_traces(tmp_path / "run", tmp_path / "verified")
    export_traces(tmp_path / "run", tmp_path / "bare", verify=False)
    by_id = {problem.id: problem for problem in asked}
    judged = [grade(by_id[trace.problem_id], trace) for trace in traces]
    write_records(
        tmp_path / "run" / VERDICTS, [replace(judged[0], correct=False, verifier="another", version="8"), *judged[1:]]
    )
    export_traces(tmp_path / "run", tmp_path / "given")
    found = {row["request_hash"]: row for row in rows_of(tmp_path / "verified")}
    for trace, verdict in zip(traces, judged, strict=True):
        expected = verdict.correct if by_id[trace.problem_id].answer else None
        assert found[trace.request_hash]["correct"] == expected
    assert {row["correct"] for row in rows_of(tmp_path / "bare")} == {None}
    given = {row["request_hash"]: row for row in rows_of(tmp_path / "given")}
    assert (given[traces[0].request_hash]["correct"], given[traces[0].request_hash]["verifier"]) == (False, "another 8")


def test_an_unfinished_run_is_exported_from_its_store(tmp_path: Path) -> None:
    _, traces = a_run(tmp_path / "made")
    partial = tmp_path / ".run.partial"
    partial.mkdir()
    (tmp_path / "made" / PROBLEMS).rename(partial / PROBLEMS)
    (partial / ASKED).write_text(json.dumps({"store": "abc", "sampling": {"temperature": 0.6, "top_p": 0.95}}))
    with TraceStore(tmp_path / ".traces" / "abc").writer() as store:
        for trace in traces:
            store.append(trace)
    export_traces(tmp_path / "run", tmp_path / "set")
    assert [row["problem_id"] for row in rows_of(tmp_path / "set")] == [trace.problem_id for trace in traces]
    assert "Sampling: temperature 0.6, top_p 0.95." in (tmp_path / "set" / "README.md").read_text()


def test_shards_and_row_groups_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_files, "GROUP_BYTES", 2_000)
    problem = Problem.create(family="user", question="Why?", answer="", split="train")
    data = DatasetFiles(tmp_path, shard_bytes=8_000)
    for number in range(40):
        data.append(row_of(problem, replace(TRACE, reasoning=f"{number} " * 200, request_hash=f"{number:016x}"), None))
    data.close()
    names = sorted(path.name for path in (tmp_path / "data").iterdir())
    assert len(names) > 1 and names[:2] == ["train-00000.parquet", "train-00001.parquet"]
    assert data.rows == {"train": 40} and len(rows_of(tmp_path)) == 40


def test_half_a_surrogate_pair_is_mended_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem = Problem.create(family="user", question="Why?", answer="so")
    (tmp_path / "run").mkdir()
    write_records(tmp_path / "run" / PROBLEMS, [problem])
    write_records(tmp_path / "run" / TRACES, [replace(TRACE, problem_id=problem.id, reasoning="a \ud83e b")])
    export_traces(tmp_path / "run", tmp_path / "set")
    assert rows_of(tmp_path / "set")[0]["reasoning"] == "a \ufffd b"
    assert "1 had half a surrogate pair" in capsys.readouterr().err


def test_traces_of_no_problem_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked, _ = a_run(tmp_path / "run")
    write_records(tmp_path / "run" / PROBLEMS, asked[:1])
    export_traces(tmp_path / "run", tmp_path / "set")
    left = (read_manifest(tmp_path / "set") or {})["measured"]["left_out"]
    assert left == {"of no problem of the run": 2 * len(asked) - 2}
    assert f"of no problem of the run ({2 * len(asked) - 2})" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no problems\.jsonl; name the run folder"):
        export_traces(tmp_path, tmp_path / "set")


def test_leftovers_of_a_killed_export_are_not_exported(tmp_path: Path) -> None:
    _, traces = a_run(tmp_path / "run")
    export_traces(tmp_path / "run", tmp_path / "set")
    (tmp_path / "set").rename(tmp_path / ".set.partial")
    manifest = read_manifest(tmp_path / ".set.partial") or {}
    (tmp_path / ".set.partial" / "manifest.json").unlink()
    stage = {name: manifest[name] for name in ("stage", "config", "inputs")}
    (tmp_path / ".set.partial" / "stage.json").write_text(json.dumps(stage))
    (tmp_path / ".set.partial" / "data" / "train-00099.parquet").write_bytes(b"half a file")
    export_traces(tmp_path / "run", tmp_path / "set")
    assert len(rows_of(tmp_path / "set")) == len(traces)


def test_verdicts_are_records(tmp_path: Path) -> None:
    asked, _ = a_run(tmp_path / "run")
    export_traces(tmp_path / "run", tmp_path / "set")
    import_traces(ImportConfig(place=tmp_path / "set"), tmp_path / "back")
    verdicts = read_records(tmp_path / "back" / VERDICTS, Verdict)
    assert len(verdicts) == 2 * sum(bool(problem.answer) for problem in asked)
