"""Claims about the ledger: it shows only comparable figures side by side, and its tables are right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.samples import TRACE
from toolkit.errors import InputError
from toolkit.figures.intervals import mean_interval
from toolkit.figures.ledger import (
    Evaluation,
    build_ledger,
    ledger_markdown,
    ledger_table,
    protocol_line,
    read_evaluation,
    write_ledger,
)
from toolkit.figures.report import evaluation_folders
from toolkit.records import Problem, Verdict, write_records
from toolkit.runs import Stage, finish, partial_folder

PROBLEMS = [
    Problem.create(family=("gcd", "countdown")[n % 2], question=f"question {n}", answer=str(n)) for n in range(40)
]


def write_evaluation(out: Path, right: int, *, digest: str = "d1", seed: int = 0, text: str = "thought") -> Path:
    """Write a finished evaluation folder in which the first `right` problems are solved."""
    stage = Stage(name="eval", config={"seed": seed}, inputs={"model": out.name, "problems": digest})
    folder = partial_folder(out, stage)
    outcomes = [float(n < right) for n in range(len(PROBLEMS))]
    traces = [
        replace(
            TRACE,
            problem_id=problem.id,
            reasoning=text,
            answer=problem.answer if outcome else "other",
            reasoning_tokens=len(text),
            completion_tokens=len(text) + 4,
            teacher=out.name,
        )
        for problem, outcome in zip(PROBLEMS, outcomes, strict=True)
    ]
    verdicts = [
        Verdict(
            problem_id=problem.id,
            sample=0,
            correct=bool(outcome),
            reason="correct" if outcome else "wrong",
            score=outcome,
            verifier="exact-match",
            version="1",
        )
        for problem, outcome in zip(PROBLEMS, outcomes, strict=True)
    ]
    write_records(folder / "problems.jsonl", PROBLEMS)
    write_records(folder / "traces.jsonl", traces)
    write_records(folder / "verdicts.jsonl", verdicts)
    families = {
        family: {"accuracy": sum(part) / len(part), "interval": mean_interval(part), "problems": len(part)}
        for family, part in (("gcd", outcomes[::2]), ("countdown", outcomes[1::2]))
    }
    row = Evaluation.from_dict(
        {
            "model": out.name,
            "model_digest": "m",
            "problems_digest": digest,
            "problems": len(PROBLEMS),
            "protocol": {"samples": 1, "temperature": 0.0, "top_p": 0.95, "max_new_tokens": 320, "seed": seed},
            "accuracy": sum(outcomes) / len(outcomes),
            "interval": mean_interval(outcomes),
            "families": families,
            "mean_reasoning_tokens": 50.4,
            "mean_completion_tokens": 54.4,
            "truncation_rate": 0.05,
            "limit_rate": 0.05,
            "tokens_per_s": 12.34,
            "batch_tokens_per_s": 99.0,
            "batch_size": 32,
            "bytes": 269_000_000,
        }
    )
    finish(folder, out, stage, row.to_dict())
    return out


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("eval")
    return {
        name: write_evaluation(root / name, right)
        for name, right in (("teacher", 38), ("base", 4), ("student", 30), ("int4", 29))
    }


def test_rows_of_other_problems_are_refused_by_both_digests(folders: dict[str, Path], tmp_path: Path) -> None:
    other = write_evaluation(tmp_path / "other", 5, digest="d2")
    with pytest.raises(InputError, match=r"row 'other' must .* same problems \(d2\) as row 'teacher' \(d1\)"):
        build_ledger({**folders, "other": other})


def test_rows_of_another_protocol_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    other = write_evaluation(tmp_path / "other", 5, seed=9)
    with pytest.raises(InputError, match=r"row 'other' must .* same protocol .*'seed': 9.*'seed': 0"):
        build_ledger({**folders, "other": other})


def test_what_is_no_evaluation_is_refused_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is no finished evaluation"):
        build_ledger({**folders, "x": tmp_path / "nowhere"})


def test_the_ledger_file_has_each_row_with_what_was_measured(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    ledger = build_ledger(folders)
    write_ledger(path, ledger)
    value = json.loads(path.read_text())
    assert list(value["rows"]) == ["teacher", "base", "student", "int4"]
    for name, row in value["rows"].items():
        assert {"accuracy", "interval", "families", "tokens_per_s", "bytes", "problems_digest"} <= row.keys()
        assert row == read_evaluation(folders[name]).to_dict()
    assert value == ledger.to_dict()
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.json"]


def test_students_that_learned_further_stand_between_the_student_and_int4_and_are_compared_with_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    further = {name: write_evaluation(tmp_path / name, right) for name, right in (("on_policy", 34), ("rl", 36))}
    ledger = build_ledger({**folders, **further})
    gains = {(each.row, each.against): each.difference for each in ledger.comparisons}
    assert gains["on_policy", "student"] == pytest.approx(0.1) and gains["rl", "student"] == pytest.approx(0.15)
    assert "| Reinforced student | 90.0 % " in ledger_markdown(ledger)
    assert list(evaluation_folders(_side_by_side(tmp_path / "eval", {**folders, **further}))) == [
        *("teacher", "base", "student", "on_policy", "rl", "int4")
    ]


def _side_by_side(root: Path, folders: dict[str, Path]) -> Path:
    root.mkdir()
    for name, folder in folders.items():
        (root / name).symlink_to(folder)
    return root


def test_comparisons_are_paired(folders: dict[str, Path]) -> None:
    gains = {(c.row, c.against): c for c in build_ledger(folders).comparisons}
    assert set(gains) == {("student", "base"), ("student", "teacher"), ("int4", "student")}
    gain = gains["student", "base"]
    assert gain.difference == pytest.approx(26 / 40) and gain.interval[0] < 26 / 40 < gain.interval[1]
    # 29 of the 30 right ones are the same problems: the loss is one problem, and the interval says so
    loss = gains["int4", "student"]
    assert loss.difference == pytest.approx(-1 / 40) and loss.interval[1] == 0.0


def test_the_tables_say_the_figures_and_the_protocol(folders: dict[str, Path]) -> None:
    ledger = build_ledger(folders)
    low, high = (f"{100 * bound:.1f}" for bound in ledger.rows["student"].interval)
    for text in (ledger_table(ledger), ledger_markdown(ledger)):
        assert f"75.0 % [{low}–{high}]" in text
        assert "Base student" in text and "269 MB" in text and "12.3" in text and "5.0 %" in text
        assert "40 held-out problems (digest d1), 1 sample a problem, greedy, at most 320 new tokens" in text
    assert "Distilled student against base student: +65.0 points" in ledger_table(ledger)
    assert max(map(len, ledger_table(ledger).split("\n\n")[0].splitlines())) <= 100
    widths = {len(line) for line in ledger_table(ledger).split("\n\n")[0].splitlines()}
    assert len(widths) == 1, "columns are aligned"
    assert len({line.count("|") for line in ledger_markdown(ledger).split("\n\n")[0].splitlines()}) == 1


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({}, "held-out problems"),
        ({"split": "test", "unrecorded": ["teacher"]}, "held-out problems"),
        ({"split": "all", "unrecorded": []}, "held-out problems"),
        ({"split": "all", "unrecorded": ["teacher"]}, "problems"),
    ],
)
def test_only_problems_that_are_known_to_be_held_out_are_called_so(
    asked: dict[str, object], what: str, folders: dict[str, Path]
) -> None:
    ledger = build_ledger({"teacher": folders["teacher"]})
    row = replace(ledger.rows["teacher"], asked=asked)
    assert protocol_line(replace(ledger, rows={"teacher": row})).startswith(f"40 {what} (digest d1)")
