"""`toolkit traces export` and `import`: one line for what is wrong, a clean start after `kill -9`, use by others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.distill.exchange.published_rows import openr1, s1k, write_parquet
from tests.distill.exchange.test_export_stage import a_run, rows_of
from tests.house.modules import ROOT
from tests.processes import wait_until
from tests.toolkit.full_disk import full_disk
from toolkit.cli.main import main
from toolkit.records import Trace, read_records

Captured = pytest.CaptureFixture[str]


def some_rows(folder: Path, count: int) -> Path:
    rows = [openr1(problem=f"What is {number} + {42 - number}?") for number in range(count)]
    return write_parquet(folder / "train.parquet", rows)


def last_line(captured: Captured) -> str:
    return captured.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["import", "nowhere.jsonl"], "nowhere.jsonl does not exist; give a file, a folder, or a data set's id"),
        (["import", "rows.parquet", "--limit", "0"], "'0' must be a whole number of at least 1"),
        (["import", "rows.parquet", "--conflict", "leave-out"], "did you mean --conflicts?"),
        (["export", "nowhere"], "nowhere has no problems.jsonl; name the run folder of toolkit traces"),
        (["export", "nowhere", "--limit", "1"], "--limit"),
    ],
)
def test_a_wrong_option_is_one_line(
    tmp_path: Path, words: Sequence[str], said: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "rows.parquet", [s1k()])
    assert main(["traces", *words, "--out", "out"]) == 2
    assert said in last_line(capsys)
    assert not (tmp_path / "out").exists()


def test_what_was_exchanged_is_said(tmp_path: Path, capsys: Captured) -> None:
    data = some_rows(tmp_path / "data", 3)
    assert main(["traces", "import", str(data), "--out", str(tmp_path / "run"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["problems"], facts["traces"], facts["verdicts"]) == (3, 6, {"correct": 3, "wrong": 3})
    assert main(["traces", "export", str(tmp_path / "run"), "--out", str(tmp_path / "set")]) == 0
    assert f"6 traces of 3 problems are in {tmp_path / 'set'}" in capsys.readouterr().out
    assert main(["traces", "import", str(tmp_path / "run"), "--out", str(tmp_path / "again")]) == 2
    assert "run is a run folder already; its traces need no import" in last_line(capsys)
    assert main(["traces", "import", str(data), "--out", str(tmp_path / "run"), "--limit", "1"]) == 2
    assert "holds another run: its config.limit (None) must equal this run's (1)" in last_line(capsys)


def test_show_lists_the_traces_of_an_import(tmp_path: Path, capsys: Captured) -> None:
    assert main(["traces", "import", str(some_rows(tmp_path, 1)), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["traces", "show", str(tmp_path / "run"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["traces"]
    assert [(row["sample"], row["reason"], row["expected"], row["said"]) for row in shown] == [
        (0, "stop", "42", "42"),
        (1, "stop", "42", "43"),
    ]


def test_a_killed_import_and_a_killed_export_start_cleanly(tmp_path: Path) -> None:
    data, toolkit = some_rows(tmp_path / "data", 400), [sys.executable, "-m", "toolkit", "traces"]
    for name, words, begun in (
        ("run", ["import", str(data)], "traces.jsonl"),
        ("set", ["export", str(tmp_path / "run")], "data"),
    ):
        command = [*toolkit, *words, "--out", str(tmp_path / name)]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            wait_until(lambda begun=begun, name=name: (tmp_path / f".{name}.partial" / begun).exists())  # type: ignore[misc]
            os.kill(process.pid, signal.SIGKILL)
        assert not (tmp_path / name).exists()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    traces = read_records(tmp_path / "run" / "traces.jsonl", Trace)
    assert len(traces) == len({(trace.problem_id, trace.sample) for trace in traces}) == 800
    assert len(rows_of(tmp_path / "set")) == 800
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "run", "set"]


@pytest.mark.parametrize("largest_bytes", [1_000, 6_000])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, largest_bytes: int, capsys: Captured
) -> None:
    _, traces = a_run(tmp_path / "run")
    for words, out in ((["export", "run"], "set"), (["import", "set"], "back")):
        words = ["traces", words[0], str(tmp_path / words[1]), "--out", str(tmp_path / out)]
        with full_disk(largest_bytes):
            assert main(words) == 2
        assert "the disk is full while writing" in last_line(capsys)
        assert not (tmp_path / out).exists()
        assert main(words) == 0
    assert len(read_records(tmp_path / "back" / "traces.jsonl", Trace)) == len(traces)
