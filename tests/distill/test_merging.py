"""Rows that share a question are one problem, separate problems, or an error; nothing is dropped silently."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from distill.problems.merging import ProblemRow, merge
from distill.problems.own_form import ReadingOptions
from distill.problems.problem_set import read_problems
from distill.problems.splits import of_split, split_of
from toolkit.cli.main import main
from toolkit.errors import InputError
from toolkit.records import SPLITS, Problem, content_hash, read_records, write_records


def row(question: str, answer: Any, **others: Any) -> dict[str, Any]:
    return {"question": question, "answer": answer, **others}


def read(folder: Path, *rows: dict[str, Any], reading: ReadingOptions | None = None) -> list[Problem]:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return read_problems(path, reading)


FIRST_LETTERS = row("What is the first letter of Polish?", "P"), row("What is the first letter of polish?", "p")
INDENTED = (
    row("What does this print?\nif 0:\n    print(1)\n    print(2)", ""),
    row("What does this print?\nif 0:\n    print(1)\nprint(2)", "2"),
)


def test_questions_that_differ_in_case_or_indentation_are_two_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rows in (FIRST_LETTERS, (row(INDENTED[0]["question"], "nothing"), INDENTED[1])):
        first, second = read(tmp_path, *rows)
        assert [first.question, second.question] == [one["question"] for one in rows]
        assert first.id == content_hash(first.question) != second.id
        assert second.id.startswith(first.id + "-")
        assert split_of(first) == split_of(second)
        assert "only in case or white space: 1" in capsys.readouterr().err


def test_problems_that_were_read_keep_their_ids_whatever_stands_beside_them(tmp_path: Path) -> None:
    first, second = read(tmp_path, *FIRST_LETTERS)
    write_records(tmp_path / "problems.jsonl", [second])
    assert read_problems(tmp_path / "problems.jsonl") == read_records(tmp_path / "problems.jsonl", Problem) == [second]
    write_records(tmp_path / "problems.jsonl", [second, first])
    assert read_problems(tmp_path / "problems.jsonl") == [second, first]
    other = Problem.create(family="user", question="Why?", answer="So.")
    assert read(tmp_path, *FIRST_LETTERS, row("Why?", "So."))[2] == other


def test_equal_rows_are_merged_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        row("Où est-ce?", "Paris"),
        row("Où est-ce?", "Paris"),
        row("  Où est-ce?\r\n", "Paris "),
        row("1/2?", "0.5"),
    ]
    rows += [row("1/2?", "1/2"), row(unicodedata.normalize("NFD", "Où est-ce?"), "Paris")]
    assert [problem.answer for problem in read(tmp_path, *rows)] == ["Paris", "0.5"]
    assert "2 of 6 rows" in (said := capsys.readouterr().err)
    assert "merged: equal to another row (3), equal in meaning (1)" in said


def test_one_question_with_two_answers_is_an_error_with_both_lines(tmp_path: Path) -> None:
    rows = row("Capital?", "Paris"), row("Else?", "x"), row("Capital?", "Rome")
    with pytest.raises(InputError, match=r"line 1 and .*line 3 give .*\('Paris' and 'Rome'\): 'Capital\?'; correct"):
        read(tmp_path, *rows)
    code = [row("Echo.", "print(input())", metadata={"tests": [{"stdin": text, "stdout": text}]}) for text in "ab"]
    with pytest.raises(InputError, match=r"line 1 and .*line 2 give one question different tests"):
        read(tmp_path, *code)
    assert len(read(tmp_path, code[0], code[0] | {"answer": "print('a')"})) == 1


def test_conflicts_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("Capital?", "Paris"), row("Else?", "x"), row("Capital?", "Rome"), row("Capital?", "Paris")]
    assert [problem.answer for problem in read(tmp_path, *rows, reading=ReadingOptions(conflicts="leave-out"))] == ["x"]
    assert (
        "merged: equal to another row (1); left out: another answer to the same question (2)" in capsys.readouterr().err
    )


def test_a_question_in_train_and_test_stays_in_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("2 + 2?", "4", split="train"), row("3 + 3?", "6", split="train"), row("2 + 2?", "4", split="test")]
    rows += [row("Name it.", "x", split="validation"), row("name  it.", "x", split="train")]
    problems = read(tmp_path, *rows)
    assert {problem.question: problem.split for problem in problems} == {
        "2 + 2?": "test",
        "3 + 3?": "train",
        "Name it.": "validation",
    }
    said = capsys.readouterr().err
    assert "left out: in train and in test too, where it stays (1), in train and in validation too, where it" in said
    assert [problem.question for problem in of_split(problems, "train")] == ["3 + 3?"]


@pytest.mark.parametrize("seed", range(100))
def test_every_row_is_kept_merged_or_left_out_and_no_question_is_trained_on_and_tested(seed: int) -> None:
    rng = random.Random(seed)
    texts = ["Polish?", "polish?", "POLISH?", " Polish? ", "a\n  b", "a\nb", "a  b", "Zürich?", "Zu\u0308rich?"]
    found = []
    for _ in range(rng.randint(1, 25)):
        question, split = rng.choice(texts), rng.choice((None, *SPLITS))
        answer = rng.choice("xy") if question.strip() in ("a\nb", "POLISH?") else "x"
        problem = Problem.create(family="user", question=question, answer=answer, split=split)
        found.append(ProblemRow(problem=problem, where="", id=""))
    merged = merge(found, leave_conflicts_out=True)
    assert len(found) == len(merged.problems) + merged.merged.total() + merged.left_out.total()
    assert len({problem.id for problem in merged.problems}) == len(merged.problems)
    for one in merged.problems:
        for other in merged.problems:
            if content_hash(one.question) == content_hash(other.question) and one.answer == other.answer:
                assert split_of(one) == split_of(other)


def test_variants_with_other_answers_stay_where_their_data_set_put_them(tmp_path: Path) -> None:
    first, second = (one | {"split": split} for one, split in zip(FIRST_LETTERS, ("train", "test"), strict=True))
    assert [problem.split for problem in read(tmp_path, first, second)] == ["train", "test"]


def test_answers_that_look_like_missing_ones_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(read(tmp_path, row("How many?", "None"), row("Which?", "nan"), row("Who?", "Nan Shepherd"))) == 3
    assert "answers that look missing: 2, for example 'None' in " in capsys.readouterr().err


def test_a_teacher_is_not_asked_what_a_data_set_keeps_for_testing(
    tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"Add {i} and 1.,{i + 1},{'test' if i % 2 else 'train'}\n" for i in range(6))
    (tmp_path / "sums.csv").write_text("prompt,truth,split\n" + rows)
    words = [
        "traces",
        "--teacher",
        str(tiny_student),
        "--problems",
        str(tmp_path / "sums.csv"),
        "--max-new-tokens",
        "2",
    ]
    words += ["--out", str(tmp_path / "out")]
    assert main([*words, "--question-field", "prompt", "--answer-field", "truht"]) == 2
    assert "has no column 'truht'; it has" in (said := capsys.readouterr().err)
    assert "it has prompt, truth, split; did you mean 'truth'?" in said
    assert main([*words, "--question-field", "prompt", "--answer-field", "truth"]) == 0
    said = capsys.readouterr().err
    assert "6 of 6 rows" in said and "3 train, 3 test (by the data set's own splits)" in said
    assert "3 of 6 are of the test split, which no student learns from, and are not asked" in said
    asked = read_problems(tmp_path / "out")
    assert [(problem.question, problem.split) for problem in asked] == [(f"Add {i} and 1.", "train") for i in (0, 2, 4)]
    assert main(["traces", "--answer-field", "truth", "--out", str(tmp_path / "other")]) == 2
    assert "need --problems; add it, or leave them out" in capsys.readouterr().err
    (tmp_path / "sums.csv").write_text("question,answer,split\n2 + 2?,4,test\n")
    assert main(words) == 2
    assert (
        "the test split, which is never learned from, holds all of 1 problem; give others, or"
        in capsys.readouterr().err
    )
