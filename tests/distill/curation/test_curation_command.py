"""`toolkit traces curate` refuses what is wrong in one line, resumes after `kill -9`, and `distill` learns from it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.distill.curation.made_runs import problems, trace, write_run
from tests.house.modules import ROOT
from tests.processes import wait_until
from tests.toolkit.full_disk import full_disk
from toolkit.cli.main import main
from toolkit.records import Example, Trace, read_records
from toolkit.runs import read_manifest

Captured = pytest.CaptureFixture[str]
IN_SMALL_PIECES = (
    "import sys; from distill.curation.at_size import shard_pieces; from toolkit.cli.main import main\n"
    "if __name__ == '__main__':\n"
    "    shard_pieces.PIECE_BYTES = 20_000\n"
    "    sys.exit(main(sys.argv[1:]))\n"
)


def run_in(folder: Path, count: int) -> Path:
    asked = problems(count)
    return write_run(folder, asked, [trace(problem) for problem in asked])


def last_line(captured: Captured) -> str:
    return captured.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep", "verifed"], "'verifed' must be one of verified, majority, best-of, all (did you mean verified?)"),
        (
            ["--difficulty", "easy=0.2,medum=0.8"],
            "'medum=0.8' must name one of easy, medium, hard once, with its share",
        ),
        (["--difficulty", "easy=0.5,hard=0.4"], "the shares of 'easy=0.5,hard=0.4' add up to 0.9, and must to 1"),
        (["--difficulty", "easy=x"], "'x' must be a number from 0 to 1"),
        (["--near-duplicates", "1.5"], "'1.5' must be a number from 0.3 to 1, or off"),
        (["--long-share", "20%"], "'20%' must be a number from 0 to 1"),
        (["--long-tokens", "100"], "--long-tokens (100) needs --long-share; add it, or leave this out"),
        (["--language", "English"], "'English' is not the code of a language; give codes such as en,de,zh"),
        (["--ngram", "2"], "'2' must be a whole number from 3 to 100, such as 8 or 13"),
        (["--min-tokens", "9", "--max-tokens", "8"], "--min-tokens (9) must be at most --max-tokens (8)"),
        (["--keep", "best-of", "--per-problem", "2"], "--keep best-of keeps one trace of each problem; leave out"),
        (["--best-by", "score"], "--best-by score is for --keep best-of; add that, or leave it out"),
        (["--judge-score", "8"], "--judge-score (8) needs a --judge; add one, or leave it out"),
        (["--ngram", "8"], "--ngram (8) needs --decontaminate; add it, or leave it out"),
        (["--judge", "smollm2-135m"], "--judge (smollm2-135m) must be the address of an endpoint, such as http://"),
        (["--judge-score", "11"], "'11' must be a number from 0 to 10"),
        (["--answer-field", "a"], "--question-field, --answer-field and --conflicts need --problems"),
        (["--decontaminate", "nowhere.txt"], "nowhere.txt does not exist; give a file, a folder, or a data set's id"),
        (["--per-probelm", "2"], "'--per-probelm' (did you mean --per-problem?); see: toolkit traces curate --help"),
        (["--student", "smollm3"], "smollm3"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path: Path, words: Sequence[str], said: str, capsys: Captured) -> None:
    run = run_in(tmp_path / "run", 1)
    assert main(["traces", "curate", str(run), "--out", str(tmp_path / "out"), *words]) == 2
    assert said in last_line(capsys)
    assert not (tmp_path / "out").exists()


def test_tests_that_are_none_are_named_and_token_counts_that_are_none_do_not_matter(
    tmp_path: Path, capsys: Captured
) -> None:
    first, second, *_ = problems(2)
    counted = trace(first, completion_tokens=-(10**12), reasoning_tokens=-(10**12))
    run = write_run(tmp_path / "run", [first, second], [counted, trace(second)])
    assert main(["traces", "curate", str(run), "--out", str(tmp_path / "chosen")]) == 0
    broken = replace(first, metadata={"tests": [{"call": "f("}]})
    run = write_run(tmp_path / "broken", [broken], [trace(first)])
    for command in ("curate", "export"):
        assert main(["traces", command, str(run), "--out", str(tmp_path / command)]) == 2
        assert f"problem {first.id}: its tests must each hold" in last_line(capsys)


def test_what_was_curated_is_said_and_a_finished_folder_is_left_alone(tmp_path: Path, capsys: Captured) -> None:
    run = run_in(tmp_path / "run", 3)
    words = ["traces", "curate", str(run), "--out", str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kept"] == facts["traces"] == 3 and facts["drops"]["wrong"] == 0
    assert main(words) == 0
    assert main([*words, "--max-tokens", "99"]) == 2
    assert "holds another run: its config.rules.max_tokens (None) must equal this run's (99)" in last_line(capsys)
    assert main(["traces", "curate", str(run), "--out", str(run)]) == 2
    assert "must be empty or a finished run" in last_line(capsys)


def test_a_killed_curation_resumes_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", 600)
    words = ["traces", "curate", str(run), "--processes", "2", "--out"]
    pieces = tmp_path / "killed" / ".verdicts"
    command = [sys.executable, "-c", IN_SMALL_PIECES]
    with subprocess.Popen([*command, *words, str(tmp_path / "killed" / "out")], cwd=ROOT) as process:
        wait_until(lambda: len(list(pieces.glob("*/*.npz"))) >= 3)
        workers = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers))
    assert not (tmp_path / "killed" / "out").exists()
    before = {path: path.stat().st_mtime_ns for path in pieces.glob("*/*.npz")}
    for name in ("killed", "whole"):
        subprocess.run([*command, *words, str(tmp_path / name / "out")], cwd=ROOT, check=True, capture_output=True)
    assert all(path.stat().st_mtime_ns == written for path, written in before.items()), "what was measured stays"
    assert len(list(pieces.glob("*/*.npz"))) > len(before)
    for name in ("train.jsonl", "dropped.jsonl", "verdicts.jsonl", "problems.jsonl", "drops.json", "report.html"):
        whole, resumed = (tmp_path / folder / "out" / name for folder in ("whole", "killed"))
        assert whole.read_bytes() == resumed.read_bytes()


def test_show_lists_what_was_chosen_and_why_the_rest_was_not(tmp_path: Path, capsys: Captured) -> None:
    asked = problems(3)
    traces = [trace(p, sample, answer=f"It is {7 + sample}.") for p in asked for sample in range(2)]
    traces.append(trace(asked[0], 2, finish_reason="length"))
    out = tmp_path / "out"
    assert main(["traces", "curate", str(write_run(tmp_path / "run", asked, traces)), "--out", str(out)]) == 0
    rows = {}
    for words in ([], ["--dropped"], ["--dropped", "--reason", "wrong"], ["--failed"]):
        capsys.readouterr()
        assert main(["traces", "show", str(out), *words, "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)["traces"]
        rows[" ".join(words)] = [(row["problem_id"], row["sample"], row["reason"]) for row in shown]
    assert rows[""] == [(p.id, 0, "kept") for p in asked]
    assert rows["--dropped --reason wrong"] == [(p.id, 1, "wrong") for p in asked]
    assert rows["--dropped"] == [*rows["--dropped --reason wrong"], (asked[0].id, 2, "truncated")]
    assert rows["--failed"] == []
    assert main(["traces", "show", str(out), "--dropped", "--reason", "wrogn"]) == 2
    assert last_line(capsys).endswith("(did you mean wrong?)")


@pytest.mark.parametrize("largest_bytes", [1_000, 8_000, 20_000])
def test_a_full_disk_is_one_line_and_the_same_command_resumes(
    tmp_path: Path, largest_bytes: int, capsys: Captured
) -> None:
    run = run_in(tmp_path / "run", 60)
    words = ["traces", "curate", str(run), "--out", str(tmp_path / "out"), "--processes", "1"]
    with full_disk(largest_bytes):
        assert main(words) == 2
    assert "the disk is full while writing" in last_line(capsys)
    assert not (tmp_path / "out").exists()
    assert main(words) == 0
    assert len(read_records(tmp_path / "out" / "train.jsonl", Example)) == 60


def test_distill_learns_from_what_was_chosen_without_judging_it_again(tmp_path: Path, tiny_student: Path) -> None:
    asked = problems(12, answer="")
    traces = [trace(p, sample, answer=f"It is {9 - (sample == 1)}.") for p in asked for sample in range(3)]
    run = write_run(tmp_path / "run", asked, traces)
    out = tmp_path / "out"
    assert main(["traces", "curate", str(run), "--keep", "majority", "--out", str(out)]) == 0
    chosen = [(example.problem_id, example.sample) for example in read_records(out / "train.jsonl", Example)]
    assert chosen == [(p.id, sample) for p in asked for sample in (0, 2)]
    words = ["distill", "--traces", str(out / "train.jsonl"), "--student", str(tiny_student), "--max-tokens", "500"]
    assert main([*words, "--out", str(tmp_path / "student")]) == 0
    learned = [
        (example.problem_id, example.sample) for example in read_records(tmp_path / "student/train.jsonl", Example)
    ]
    assert learned == chosen
    assert {trace.teacher for trace in read_records(tmp_path / "student" / "traces.jsonl", Trace)} == {"t"}
    measured = (read_manifest(tmp_path / "student") or {})["measured"]
    assert measured["trained_on"] == 24 and measured["kept"] == 24
