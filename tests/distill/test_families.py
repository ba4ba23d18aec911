"""Problems and their splits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.problems.families import FAMILIES, ledger_problems, make_problems
from distill.problems.problem_set import problems_digest, read_problems
from distill.problems.splits import of_split, split_of
from toolkit.errors import InputError
from toolkit.records import SPLITS, Problem, read_records


def test_splits_share_no_question_whatever_the_seed() -> None:
    ids = {
        split: {problem.id for seed in (0, 1, 2) for problem in make_problems(split, 40, seed)}
        for split in ("train", "validation", "test")
    }
    assert not ids["train"] & ids["test"]
    assert not ids["train"] & ids["validation"]
    assert not ids["validation"] & ids["test"]


def test_white_space_and_case_do_not_move_a_question_to_another_split() -> None:
    first = Problem.create(family="user", question="What is 2 + 2?", answer="4")
    second = Problem.create(family="user", question="  what is\n2 + 2? ", answer="4")
    assert first.id == second.id
    assert split_of(first) == split_of(second)


def test_a_problem_keeps_the_split_that_its_data_set_gave_it() -> None:
    problem = Problem.create(family="user", question="What is 2 + 2?", answer="4")
    told = [Problem.create(family="user", question="What is 2 + 2?", answer="4", split=split) for split in SPLITS]
    assert [split_of(one) for one in told] == list(SPLITS)
    assert [of_split(told, split) for split in SPLITS] == [[one] for one in told]
    assert [Problem.from_dict(one.to_dict()) for one in (problem, *told)] == [problem, *told]
    assert "split" not in problem.to_dict()
    with pytest.raises(InputError, match=r"split \('dev'\) must be one of train, validation, test"):
        Problem.from_dict(problem.to_dict() | {"split": "dev"})


def test_problems_of_the_demo_ledger_have_the_digest_that_the_readme_prints() -> None:
    assert problems_digest(ledger_problems()) == "5f0d52e3c845a861"


def test_same_seed_draws_the_same_problems_and_another_seed_others() -> None:
    first, again, other = (make_problems("test", 10, seed) for seed in (3, 3, 4))
    assert first == again
    assert {p.id for p in first} != {p.id for p in other}


def test_families_are_mixed_and_complete() -> None:
    problems = make_problems("validation", 3, 0)
    assert [p.family for p in problems[: len(FAMILIES)]] == list(FAMILIES)
    assert len(problems) == 3 * len(FAMILIES)


def test_unknown_family_is_named_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown family 'sudoku'; known are chain_sum"):
        make_problems("train", 1, 0, ["sudoku"])


def test_a_problem_may_follow_what_was_said_before_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    said = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    rows = [{"question": "And twice that?", "answer": "8", "history": history} for history in (said, [])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    after, alone = read_problems(path)
    assert after.messages == [*said, *alone.messages]
    assert after.id != alone.id == Problem.create(family="user", question="And twice that?", answer="8").id
    for history in (5, "2 + 2?", ["2 + 2?"], [{"role": "tool", "content": "4"}], [{"content": "4"}]):
        path.write_text(json.dumps(rows[0] | {"history": history}))
        with pytest.raises(InputError, match="line 1 is not a problem: its history"):
            read_problems(path)
        path.write_text(json.dumps({"id": "a", "family": "user"} | rows[0] | {"history": history}))
        with pytest.raises(InputError, match="line 1: history"):
            read_records(path, Problem)


def test_users_jsonl_is_read_and_a_line_that_is_no_problem_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "Capital of France?", "answer": "Paris"}\n{"question": "2 + 2?", "answer": 4}\n')
    problems = read_problems(path)
    assert [(p.family, p.answer) for p in problems] == [("user", "Paris"), ("user", "4")]
    path.write_text(path.read_text() + '{"question": "Why?"}\n')
    with pytest.raises(
        InputError, match="line 3 is not a problem: it has no 'answer'; each needs a question and an answer"
    ):
        read_problems(path)
    path.write_text("not json\n")
    with pytest.raises(InputError, match="line 1 must be JSON"):
        read_problems(path)
