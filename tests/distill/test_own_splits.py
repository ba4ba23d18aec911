"""If a data set has splits, a student is trained on its train part and on nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from distill.pipeline import distill
from tests.distill.test_pipeline import Reciter, no_decoder, recipe
from tests.distill.test_remote_teacher import serve_bigram
from toolkit.cli.main import main
from toolkit.records import Example, Problem, read_records


def test_the_parts_that_a_data_set_holds_out_are_not_trained_on(
    tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {
        "train": [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(10, 22)],
        "validation": [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(30, 34)],
        "test": [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(40, 50)],
    }
    DatasetDict({split: Dataset.from_list(part) for split, part in rows.items()}).save_to_disk(tmp_path / "dataset")
    asked = [
        Problem.create(family="user", question=row["question"], answer=row["answer"])
        for part in rows.values()
        for row in part
    ]
    out = tmp_path / "student"
    distill(recipe(tiny_student, tmp_path / "dataset"), out, lambda folder: Reciter(folder, asked))
    assert "curation: only 12 traces to train on; a student needs at least some dozens" in capsys.readouterr().err
    trained = {example.question for example in read_records(out / "train.jsonl", Example)}
    assert trained == {row["question"] for row in rows["train"]}
    kept = read_records(out / "problems.jsonl", Problem)
    assert not {problem.question for problem in kept} & {row["question"] for row in rows["test"]}

    same = [row | {"split": split} for split, part in rows.items() for row in part]
    (tmp_path / "same.json").write_text(json.dumps(same))
    assert distill(recipe(tiny_student, tmp_path / "same.json"), out, no_decoder) == out


def test_a_student_with_next_to_nothing_held_out_is_announced_before_the_teacher_is_asked(
    tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"{i}+{i}", "answer": str(2 * i), "split": "train"} for i in range(10, 22)]
    for held_out in (2, 3):
        marked = [row | ({"split": "test"} if i < held_out else {}) for i, row in enumerate(rows)]
        (tmp_path / "mine.json").write_text(json.dumps(marked))
        with pytest.raises(AssertionError):
            distill(recipe(tiny_student, tmp_path / "mine.json"), tmp_path / "student", no_decoder)
        few = "problems: only 2 of 12 in the test split, too few to measure the student by; to hold out more, give"
        assert (few in capsys.readouterr().err) == (held_out == 2)


def test_an_evaluation_asks_the_test_part_of_a_data_set_that_has_one(
    tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question": f"{i}+{i}", "answer": str(2 * i), "split": "test" if i < 12 else "train"} for i in range(10, 15)
    ]
    for name, asked in (("split", ["10+10", "11+11"]), ("whole", [row["question"] for row in rows])):
        if name == "whole":
            rows = [{"question": row["question"], "answer": row["answer"]} for row in rows]
        (tmp_path / "mine.json").write_text(json.dumps(rows))
        with serve_bigram(tiny_student) as server:
            words = ["eval", server.url, "--max-new-tokens", "2", "--problems", str(tmp_path / "mine.json")]
            assert main([*words, "--out", str(tmp_path / name)]) == 0
        said = capsys.readouterr().err
        assert ("asked: 2 of 2 problems of the test split" in said) == (name == "split")
        few = "asked: so few problems measure next to nothing; to hold out more, give more problems, or write"
        assert (few in said) == (name == "split")
        problems = read_records(tmp_path / name / "problems.jsonl", Problem)
        assert [problem.question for problem in problems] == asked
