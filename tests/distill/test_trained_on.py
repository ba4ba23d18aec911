"""An evaluation leaves out what a student was trained on, and says so."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.problems.splits import of_split, split_of
from distill.trained_on import choose, question_digest, trained_questions, write_trained_on
from toolkit.cli.main import main
from toolkit.errors import InputError
from toolkit.records import SPLITS, TRAIN, TRAINED_ON, Example, Problem, write_records

PROBLEMS = [Problem.create(family="user", question=f"What is {i} + {i}?", answer=str(2 * i)) for i in range(40)]
TRAINED = of_split(PROBLEMS, "train")[:20]
FAST = ["--max-new-tokens", "4"]


def example(problem: Problem) -> Example:
    return Example.of(problem, reasoning="…", answer=problem.answer, sample=0, teacher="somebody")


@pytest.fixture
def student(tiny_student: Path, tmp_path: Path) -> Path:
    """A student that was trained on `TRAINED`."""
    folder = tmp_path / "student"
    shutil.copytree(tiny_student, folder)
    write_trained_on(folder, map(example, TRAINED), tiny_student)
    return folder


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"question": p.question, "answer": p.answer}) + "\n" for p in PROBLEMS))
    return path


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: Path | str) -> dict[str, Any]:
    assert main(["eval", *map(str, arguments), *FAST, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def test_what_a_student_was_trained_on_is_left_out_and_counted(
    student: Path, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate(capsys, student, "--problems", problems, "--out", tmp_path / "eval")
    assert result["problems"] == 20
    assert result["asked"] == {"split": "all", "given": 40, "trained": 20, "left_out": True, "unrecorded": []}
    asked = {json.loads(line)["id"] for line in (tmp_path / "eval" / "problems.jsonl").read_text().splitlines()}
    assert asked == {p.id for p in PROBLEMS} - {p.id for p in TRAINED}
    assert json.loads((tmp_path / "eval" / "manifest.json").read_text())["measured"]["asked"] == result["asked"]

    assert main(["eval", str(student), "--problems", str(problems), "--out", str(tmp_path / "eval"), *FAST]) == 0
    said = "asked: 20 of 40 problems; 20 of them were trained on and are left out (--include-trained asks them)"
    assert said in capsys.readouterr().out


def test_trained_problems_are_asked_on_demand_and_the_result_says_so(
    student: Path, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--problems", str(problems), "--include-trained", "--out", str(tmp_path / "eval")]
    result = evaluate(capsys, student, *asked)
    assert result["problems"] == 40
    assert result["asked"] == {"split": "all", "given": 40, "trained": 20, "left_out": False, "unrecorded": []}
    assert main(["eval", str(student), *asked, *FAST]) == 0
    assert "asked: 40 of 40 problems; 20 of them were trained on and are asked anyway" in capsys.readouterr().out


@pytest.mark.parametrize("split", SPLITS)
def test_each_part_of_the_users_problems_can_be_asked_alone(
    split: str, student: Path, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_part = {problem.id for problem in PROBLEMS if split_of(problem) == split}
    trained = of_part & {problem.id for problem in TRAINED}
    result = evaluate(capsys, student, "--problems", problems, "--split", split, "--out", tmp_path / "eval")
    assert result["problems"] == len(of_part - trained) > 0
    assert result["asked"]["given"] == len(of_part)
    assert result["asked"]["trained"] == len(trained)


def test_a_model_beside_it_leaves_out_its_own_as_well_and_one_without_a_record_is_named(
    student: Path, problems: Path, tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate(
        capsys, tiny_student, "--against", student, "--problems", problems, "--out", tmp_path / "compared"
    )
    assert result["problems"] == 20
    record = json.loads(next((tmp_path / "compared").glob("problems/*/manifest.json")).read_text())["measured"]
    assert record["asked"]["trained"] == 20
    assert record["asked"]["unrecorded"] == ["tiny_student"]


def test_of_two_students_whose_folders_are_called_the_same_both_are_left_out(
    student: Path, problems: Path, tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other" / "student"
    shutil.copytree(tiny_student, other)
    write_trained_on(other, map(example, of_split(PROBLEMS, "test")), tiny_student)
    for out, (first, second) in {"one": (other, student), "two": (student, other)}.items():
        words: list[Path | str] = [first, "--against", second, "--problems", problems, "--out", tmp_path / out]
        assert evaluate(capsys, *words)["problems"] == 20 - len(of_split(PROBLEMS, "test"))


def test_each_question_has_a_folder_of_its_own_which_the_same_question_finds_again(
    tiny_student: Path,
    problems: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "other"):
        shutil.copytree(tiny_student, tmp_path / "runs" / name / "student")
    asked: list[list[Path | str]] = [
        ["runs/mine/student", "--problems", problems],
        ["runs/other/student", "--problems", problems],
        ["runs/mine/student", "--problems", problems, "--split", "test"],
        ["runs/mine/student", "--problems", problems, "--split", "train"],
        ["runs/mine/student", "--problems", problems, "--split", "test", "--temperature", "1", "--seed", "1"],
        ["runs/mine/student", "--problems", problems, "--split", "test", "--temperature", "1", "--seed", "2"],
    ]
    folders = [evaluate(capsys, *words)["folder"] for words in asked]
    assert len({*folders}) == len(asked)
    assert folders[0].startswith("runs/eval/mine-student-problems-")
    assert folders[1].startswith("runs/eval/other-student-problems-")
    assert folders[2].startswith("runs/eval/mine-student-problems-test-")
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/eval/*/manifest.json")}
    again: list[Path | str] = [tmp_path / "runs/mine/student", "--problems", "problems.jsonl", "--split", "test"]
    assert evaluate(capsys, *again)["folder"] == folders[2], "by another way of writing the same"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/eval/*/manifest.json")} == made
    weights = tmp_path / "runs/mine/student/config.json"
    weights.write_text(weights.read_text() + "\n")
    assert evaluate(capsys, *again)["folder"] not in folders, "a student that was trained again is another one"


@pytest.mark.parametrize("arguments", [["--split", "test"], ["--include-trained"]])
def test_splits_of_the_ledgers_problems_are_refused(
    arguments: list[str], student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(student), *arguments]) == 2
    assert "choose among your own problems; give --problems" in capsys.readouterr().err


def test_nothing_left_to_ask_is_an_error_that_names_the_way_out() -> None:
    known = {"student": {question_digest(problem) for problem in TRAINED}}
    with pytest.raises(InputError, match=r"the model was trained on all of 20 problems; .* --include-trained"):
        choose(TRAINED, None, known)
    with pytest.raises(InputError, match="none of 20 problems is in the test split"):
        choose(TRAINED, "test", known)


def test_a_data_sets_own_test_part_is_asked_unless_another_is_named() -> None:
    given = [replace(problem, split="test" if i < 5 else "train") for i, problem in enumerate(PROBLEMS)]
    assert choose(given, None, {}).problems == given[:5]
    assert choose(given, "all", {}).problems == given
    assert Counter(problem.split for problem in choose(given, "train", {}).problems) == {"train": 35}


SAID = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
PLAIN = Problem.create(family="user", question="Où est le café ?\n  Ici.", answer="Ici")


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        (replace(PLAIN, id="another", family="geography", answer="here", split="test", metadata={"level": 3}), True),
        (replace(PLAIN, question="  où est le café ? ici.\r\n"), True),
        (replace(PLAIN, question="Ou\u0300 est le cafe\u0301 ?\n  Ici."), True),
        (replace(PLAIN, history=[{"role": "system", "content": "Answer briefly."}]), True),
        (replace(PLAIN, history=SAID), False),
        (replace(PLAIN, question="Où est le thé ?\n  Ici."), False),
    ],
)
def test_a_question_is_known_by_what_it_asks(other: Problem, is_same: bool) -> None:
    assert (question_digest(other) == question_digest(PLAIN)) is is_same


def test_a_student_of_a_student_knows_both_sets(student: Path, tmp_path: Path) -> None:
    later = tmp_path / "later"
    later.mkdir()
    write_trained_on(later, [example(PLAIN)], student)
    known = trained_questions(later)
    assert known == {question_digest(problem) for problem in [PLAIN, *TRAINED]}


def test_an_export_knows_what_its_student_was_trained_on(student: Path, tmp_path: Path) -> None:
    assert main(["export", str(student), "--out", str(tmp_path / "int4")]) == 0
    assert trained_questions(tmp_path / "int4") == trained_questions(student)


def test_a_student_from_before_the_record_is_known_by_its_training_set(student: Path, tiny_student: Path) -> None:
    known = trained_questions(student)
    (student / TRAINED_ON).unlink()
    write_records(student / TRAIN, [example(problem) for problem in TRAINED])
    assert trained_questions(student) == known
    assert trained_questions(tiny_student) is None


def test_a_broken_record_is_refused(student: Path) -> None:
    (student / TRAINED_ON).write_text('{"questions": 3}')
    with pytest.raises(InputError, match="must hold a list of 'questions'"):
        trained_questions(student)
