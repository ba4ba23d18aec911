"""What a user approves or corrects is read, graded and kept by distill's own code."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from apps.conversation import Conversation, Turn
from apps.feedback import PROBLEMS, TRACES, keep, turn_of_message
from toolkit.errors import InputError
from toolkit.records import Example, Trace, read_records


def asked(*pairs: tuple[str, str]) -> Conversation:
    turns = [
        Turn(question=question, reasoning="So 4.", answer=answer, state="done", context_room=9, token_ids=[1, 2, 3])
        for question, answer in pairs
    ]
    for earlier, later in pairwise(turns):
        later.parent = earlier
    return Conversation(turns=turns, all_turns=turns)


def curated(folder: Path) -> tuple[list[Example], dict[str, int]]:
    """What `toolkit distill --traces` makes of the folder."""
    from distill.curate import curate
    from distill.problems import read_problems, split_of
    from distill.verify import grade

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
    keep(tmp_path, asked(("2 + 2?", " 4\n")).turns[0], system="", teacher="int4", answer=" 4\n", reasoning="So 4.")
    examples, drops = curated(tmp_path)
    assert [(e.question, e.reasoning, e.answer, e.teacher) for e in examples] == [
        ("2 + 2?", "So 4.", "4", "feedback@int4")
    ]
    assert drops == {}


def test_a_correction_takes_the_place_of_what_was_approved_before(tmp_path: Path) -> None:
    conversation = asked(("2 + 2?", "5"))
    keep(tmp_path, conversation.turns[0], system="", teacher="int4", answer="5", reasoning="So 4.")
    keep(tmp_path, conversation.turns[0], system="", teacher="int4", answer="4", reasoning="2 + 2 = 4")
    keep(tmp_path, asked(("3 + 3?", "6")).turns[0], system="", teacher="int4", answer="6", reasoning="")
    examples, drops = curated(tmp_path)
    assert {(e.question, e.reasoning, e.answer) for e in examples} == {
        ("2 + 2?", "2 + 2 = 4", "4"),
        ("3 + 3?", "", "6"),
    }
    assert drops == {"wrong": 1}


def test_a_torn_last_line_costs_that_line_only(tmp_path: Path) -> None:
    keep(tmp_path, asked(("2 + 2?", "4")).turns[0], system="", teacher="int4", answer="4", reasoning="a")
    with (tmp_path / TRACES).open("a") as file:
        file.write('{"problem_id": "to')
    keep(tmp_path, asked(("2 + 2?", "4")).turns[0], system="", teacher="int4", answer="4", reasoning="b")
    assert [(trace.sample, trace.reasoning) for trace in read_records(tmp_path / TRACES, Trace)] == [(0, "a"), (1, "b")]


def test_what_cannot_stand_alone_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    conversation = asked(("2 + 2?", "4"), ("And twice that?", "8"))
    with pytest.raises(InputError, match="not to a later one"):
        keep(tmp_path, conversation.turns[1], system="", teacher="int4", answer="8", reasoning="")
    with pytest.raises(InputError, match="not to a question under a system prompt"):
        keep(tmp_path, conversation.turns[0], system="Be brief.", teacher="int4", answer="4", reasoning="")
    with pytest.raises(InputError, match="must not be empty"):
        keep(tmp_path, asked(("2 + 2?", "")).turns[0], system="", teacher="int4", answer=" ", reasoning="")
    assert list(tmp_path.iterdir()) == []


def test_a_message_belongs_to_the_turn_that_it_is_shown_for() -> None:
    conversation = asked(("a", "b"), ("c", "d"))
    conversation.turns[1].reasoning = ""
    first, second = conversation.turns
    assert [turn_of_message(conversation, index) for index in range(5)] == [first, first, first, second, second]
    with pytest.raises(InputError, match="message 6 must be one of the conversation's 5"):
        turn_of_message(conversation, 5)
