"""Distill's own code reads, grades and keeps what a user approves or corrects."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.feedback import PROBLEMS, TRACES, keep
from apps.chat.conversation.turn import Turn
from apps.chat.view.page_messages import turn_of_message
from toolkit.errors import InputError
from toolkit.records import Example, Problem, Trace, read_records


def asked(*pairs: tuple[str, str]) -> Conversation:
    turns = [
        Turn(question=question, reasoning="So 4.", answer=answer, state="done", context_room=9, token_ids=[1, 2, 3])
        for question, answer in pairs
    ]
    for earlier, later in pairwise(turns):
        later.parent = earlier
    return Conversation(turns=turns, all_turns=turns)


def kept(folder: Path, conversation: Conversation, *, turn: int = 0, answer: str, reasoning: str) -> None:
    rated = conversation.all_turns[turn]
    keep(folder, conversation, rated, teacher="int4", answer=answer, reasoning=reasoning)


def curated(folder: Path) -> tuple[list[Example], dict[str, int]]:
    """Curate the folder as `toolkit distill --traces` does."""
    from distill.curation.curate import curate
    from distill.problems.problem_set import read_problems
    from distill.problems.splits import split_of
    from distill.verification.verdicts import grade

    problems, traces = read_problems(folder / PROBLEMS), read_records(folder / TRACES, Trace)
    by_id = {problem.id: problem for problem in problems}
    verdicts = [grade(by_id[trace.problem_id], trace) for trace in traces]
    curation = curate(
        problems,
        traces,
        verdicts,
        count_tokens=lambda example: len(example.answer),
        max_tokens=1000,
        per_problem=2,
        test_ids={problem.id for problem in problems if split_of(problem) == "test"},
    )
    return curation.examples, {reason: count for reason, count in curation.drops.items() if count}


def test_an_approved_answer_is_an_example_with_its_reasoning(tmp_path: Path) -> None:
    kept(tmp_path, asked(("2 + 2?", " 4\n")), answer=" 4\n", reasoning="So 4.")
    examples, drops = curated(tmp_path)
    assert [(e.question, e.reasoning, e.answer, e.teacher) for e in examples] == [
        ("2 + 2?", "So 4.", "4", "feedback@int4")
    ]
    assert drops == {}


def test_a_correction_takes_the_place_of_what_was_approved_before(tmp_path: Path) -> None:
    conversation = asked(("2 + 2?", "5"))
    kept(tmp_path, conversation, answer="5", reasoning="So 4.")
    kept(tmp_path, conversation, answer="4", reasoning="2 + 2 = 4")
    kept(tmp_path, asked(("3 + 3?", "6")), answer="6", reasoning="")
    examples, drops = curated(tmp_path)
    assert {(e.question, e.reasoning, e.answer) for e in examples} == {
        ("2 + 2?", "2 + 2 = 4", "4"),
        ("3 + 3?", "", "6"),
    }
    assert drops == {"wrong": 1}


def test_a_torn_last_line_costs_that_line_only(tmp_path: Path) -> None:
    kept(tmp_path, asked(("2 + 2?", "4")), answer="4", reasoning="a")
    with (tmp_path / TRACES).open("a") as file:
        file.write('{"problem_id": "to')
    kept(tmp_path, asked(("2 + 2?", "4")), answer="4", reasoning="b")
    assert [(trace.sample, trace.reasoning) for trace in read_records(tmp_path / TRACES, Trace)] == [(0, "a"), (1, "b")]


def test_a_later_answer_is_an_example_below_what_was_said_before_it(tmp_path: Path) -> None:
    conversation = asked(("2 + 2?", "4"), ("And twice that?", "8"), ("And half?", "4"))
    for turn in conversation.all_turns:
        turn.settings = {"system": "Be brief."}
    conversation.system = "Be long."  # of the next question
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
    ]
    kept(tmp_path, conversation, turn=1, answer="8", reasoning="2 times 4.")
    kept(tmp_path, asked(("And twice that?", "8")), answer="what?", reasoning="")
    conversation.turns = conversation.turns[:1]  # another version of the second question is shown
    kept(tmp_path, conversation, turn=1, answer="8.", reasoning="Twice 4.")
    examples, drops = curated(tmp_path)
    assert [(e.history, e.question, e.answer) for e in examples] == [
        (said, "And twice that?", "8"),
        ([], "And twice that?", "what?"),
        (said, "And twice that?", "8."),
    ]
    assert drops == {}


def test_an_empty_answer_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an empty answer cannot be kept"):
        kept(tmp_path, asked(("2 + 2?", "")), answer=" ", reasoning="")
    assert list(tmp_path.iterdir()) == []


def test_a_message_belongs_to_the_turn_that_it_is_shown_for() -> None:
    conversation = asked(("a", "b"), ("c", "d"))
    conversation.turns[1].reasoning = ""
    first, second = conversation.turns
    assert [turn_of_message(conversation, index) for index in range(5)] == [first, first, first, second, second]
    with pytest.raises(InputError, match="there is no message 6: the conversation has 5"):
        turn_of_message(conversation, 5)


def test_questions_that_differ_in_case_are_kept_beside_each_other(tmp_path: Path) -> None:
    for question, answer in (("First letter of Polish?", "P"), ("First letter of polish?", "p")) * 2:
        kept(tmp_path, asked((question, answer)), answer=answer, reasoning="Look.")
    problems, traces = read_records(tmp_path / PROBLEMS, Problem), read_records(tmp_path / TRACES, Trace)
    assert [problem.answer for problem in problems] == ["P", "p"]
    assert [(trace.problem_id, trace.sample) for trace in traces] == [
        (problem.id, sample) for sample in (0, 1) for problem in problems
    ]


@pytest.mark.parametrize("how", [{"state": "stopped"}, {"cut": "limit"}, {"cut": "context"}])
def test_an_answer_that_was_cut_is_kept_only_once_it_is_corrected(tmp_path: Path, how: dict[str, Any]) -> None:
    conversation = asked(("2 + 2?", "The answer is"))
    for name, value in how.items():
        setattr(conversation.turns[0], name, value)
    with pytest.raises(InputError, match="a truncated answer cannot be kept"):
        kept(tmp_path, conversation, answer=" The answer is ", reasoning="So 4.")
    assert list(tmp_path.iterdir()) == []
    kept(tmp_path, conversation, answer="The answer is 4.", reasoning="So 4.")
    assert [example.answer for example in curated(tmp_path)[0]] == ["The answer is 4."]
