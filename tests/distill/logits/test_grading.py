"""Tests of turns beside a teacher's tokens, of a local teacher, and of stored candidates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from distill.local.causal_model import open_causal_model
from distill.logits.grading.local_teacher import LocalTeacher
from distill.logits.grading.stored_grades import StoredGrades
from distill.logits.grading.teacher_events import LogitsEvents
from distill.logits.grading.turns import Aligner, StudentTurn
from distill.logits.logits_trainer import teachers_turns
from distill.logits.vocabularies.bridge import build_bridge
from distill.store.logprobs import Candidate, ServerToken, TokenLogprobs
from distill.store.sharded_store import TraceStore
from tests.distill.logits.test_logits_trainer import EXAMPLES
from toolkit.errors import InputError
from toolkit.formats.chat_format import REASONING_TEMPLATE, ChatFormat, completion_text
from toolkit.records import Trace
from toolkit.sources.model_names import resolve


def aligner_of(student: ChatFormat, teacher: ChatFormat) -> Aligner:
    bridge = build_bridge(student.tokenizer, teacher.tokenizer, student.stop_ids, teacher.stop_ids, "the teacher")
    return Aligner(student, teacher, bridge)


def turn_of(student: ChatFormat, text: str, *, ended: bool = True) -> StudentTurn:
    ids = student.encode(text) + ([2] if ended else [])
    return StudentTurn(messages=EXAMPLES[0].messages, prompt=[1], completion=ids, is_teachers=False)


@pytest.fixture(scope="module")
def student(tiny_student: Path) -> ChatFormat:
    return ChatFormat.from_folder(tiny_student)


@pytest.fixture(scope="module")
def teacher() -> ChatFormat:
    return ChatFormat.from_folder(resolve("builtin"))


@pytest.mark.parametrize("text", [completion_text("2 and 2 = 4", "4"), "cut in its thou", "é 你 🙂 </think> odd\n"])
def test_each_token_of_a_turn_is_in_one_span_of_the_same_bytes(
    student: ChatFormat, teacher: ChatFormat, text: str
) -> None:
    aligner = aligner_of(student, teacher)
    turn = turn_of(student, text)
    places = aligner.places(turn)
    assert places is not None and places.ends
    covered = [n for span in places.spans for n in range(span.student_begin, span.student_end)]
    assert covered == list(range(len(turn.completion)))
    for span in places.spans[:-1]:
        ours = [aligner.bridge.student_bytes[id] for id in turn.completion[span.student_begin : span.student_end]]
        theirs = [aligner.bridge.teacher_bytes[id] for id in places.teacher[span.teacher_begin : span.teacher_end]]
        assert b"".join(filter(None, ours)) == b"".join(filter(None, theirs)) != b""
    end = places.spans[-1]
    assert (end.teacher_begin, end.teacher_end) == (len(places.teacher),) * 2


def test_a_turn_in_the_students_own_vocabulary_is_graded_token_by_token(student: ChatFormat) -> None:
    aligner = aligner_of(student, student)
    turn = turn_of(student, completion_text("2 and 2 = 4", "4"))
    places = aligner.places(turn)
    assert places is not None and list(places.teacher) == list(turn.completion[:-1])
    assert all(span.is_one_to_one for span in places.spans[:-1])
    facts = aligner.facts(turn, places)
    assert facts.own_P.tolist() == list(turn.completion)
    assert not facts.is_span_P.any() and (facts.merged_P == -1).all()


def test_a_turn_that_did_not_end_has_no_end_to_grade(student: ChatFormat, teacher: ChatFormat) -> None:
    places = aligner_of(student, teacher).places(turn_of(student, "2 and", ended=False))
    assert places is not None and not places.ends
    assert all(span.teacher_end > span.teacher_begin for span in places.spans)


def test_bytes_that_are_no_text_are_not_graded(student: ChatFormat, teacher: ChatFormat) -> None:
    aligner = aligner_of(student, teacher)
    half = [list(aligner.bridge.student_bytes).index(b"\xe4"), list(aligner.bridge.student_bytes).index(b"\xbd")]
    good = student.encode("ab")
    turn = replace(turn_of(student, ""), completion=[*good, *half, 2])
    places = aligner.places(turn)
    assert places is not None and not places.ends
    assert [span.student_end for span in places.spans] == [1, 2]


def test_what_follows_a_control_token_is_not_graded(student: ChatFormat, teacher: ChatFormat) -> None:
    good = student.encode("ab")
    turn = replace(turn_of(student, ""), completion=[*good, 1, *good, 2])
    places = aligner_of(student, teacher).places(turn)
    assert places is not None and not places.ends
    assert [span.student_end for span in places.spans] == [1, 2]


def test_an_opening_tag_that_one_side_has_in_its_prompt_is_left_out(student: ChatFormat, teacher: ChatFormat) -> None:
    """A template without it leaves the tag to the model."""
    plain = REASONING_TEMPLATE.replace("assistant\\n<think>\\n", "assistant\\n")
    opens_itself = ChatFormat(student.tokenizer, plain, student.stop_ids, {"eos_token": "<|im_end|>"})
    assert not opens_itself.opens_reasoning
    text = completion_text("2 and 2", "4")
    places = aligner_of(opens_itself, teacher).places(turn_of(student, f"<think>\n{text}"))
    assert places is not None
    tag = len(student.encode("<think>\n"))
    assert places.spans[0].student_begin == tag and places.spans[0].teacher_begin == 0
    places = aligner_of(student, opens_itself).places(turn_of(student, text))
    assert places is not None
    assert places.spans[0].student_begin == 0 and places.spans[0].teacher_begin == tag


def test_a_teachers_events_sum_to_one_and_equal_its_tokens_probabilities(
    student: ChatFormat, teacher: ChatFormat
) -> None:
    """An oracle reads one turn alone, without padding, and adds up what it says token by token."""
    model = open_causal_model(resolve("builtin"), torch.float32).model
    aligner = aligner_of(student, teacher)
    grader = LocalTeacher(model, aligner, temperature=1.0)
    turns = teachers_turns(EXAMPLES[:4], student, [""] * 4)
    for turn, grades in zip(turns, grader.grade(turns), strict=True):
        places = aligner.places(turn)
        assert grades is not None and places is not None and isinstance(grades.events, LogitsEvents)
        masses = grades.events.probabilities(0, len(places.spans))
        torch.testing.assert_close(masses.sum(1) + grades.events.span_P, torch.ones(len(places.spans)))
        ids = [*teacher.prompt_ids(list(turn.messages)), *places.teacher]
        begin = len(ids) - len(places.teacher)
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], dim=-1)
        for place, span in enumerate(places.spans):
            expected = sum(
                float(log_p[begin + at - 1, places.teacher[at]]) for at in range(span.teacher_begin, span.teacher_end)
            )
            if grades.facts.is_span_P[place]:
                assert float(grades.events.span_P[place].log()) == pytest.approx(expected, abs=1e-3)
            elif span.teacher_end > span.teacher_begin:
                assert float(masses[place, grades.facts.own_P[place]].log()) == pytest.approx(expected, abs=1e-3)


def trace_of(number: int) -> Trace:
    return Trace(
        problem_id=EXAMPLES[number].problem_id,
        sample=0,
        reasoning=EXAMPLES[number].reasoning,
        answer=EXAMPLES[number].answer,
        finish_reason="stop",
        closed=True,
        prompt_tokens=1,
        reasoning_tokens=1,
        completion_tokens=1,
        teacher="t",
        request_hash=f"{number + 1:016x}",
    )


def said_by(tokenizer: Tokenizer, text: str, end: str) -> list[TokenLogprobs]:
    """What a server says that gives each token 60 %, another one 30 %, and 10 % to all others."""
    ids: list[int] = [*tokenizer.encode(text).ids, tokenizer.get_vocab()[end]]
    tokens = [ServerToken(tokenizer.decode([id], skip_special_tokens=False)) for id in ids]
    other = Candidate(ServerToken("7"), torch.tensor(0.3).log().item())
    return [
        TokenLogprobs(sampled := Candidate(token, torch.tensor(0.6).log().item()), [sampled, other]) for token in tokens
    ]


def store_of(folder: Path, tokenizer: Tokenizer, count: int, tags: str = "") -> Path:
    with TraceStore(folder).writer() as writer:
        for number in range(4):
            text = tags + completion_text(EXAMPLES[number].reasoning, EXAMPLES[number].answer)
            writer.append(trace_of(number), said_by(tokenizer, text, "<|im_end|>") if number < count else None)
    return folder


SOURCES = [trace_of(number).request_hash for number in range(4)]


@pytest.mark.parametrize("tags", ["", "<think>\n"])
def test_stored_candidates_of_the_students_vocabulary_are_its_tokens(
    student: ChatFormat, tmp_path: Path, tags: str
) -> None:
    grader = StoredGrades(store_of(tmp_path / "store", student.tokenizer, 4, tags), SOURCES, student)
    turns = teachers_turns(EXAMPLES[:4], student, SOURCES)
    for turn, grades in zip(turns, grader.grade(turns), strict=True):
        assert grades is not None
        masses = grades.events.probabilities(0, len(grades.facts.start_P))
        torch.testing.assert_close(masses.sum(1), torch.ones(len(masses)), atol=1e-5, rtol=0)
        torch.testing.assert_close(masses[:, -1].max(), torch.tensor(0.4 if tags else 0.1), atol=0.31, rtol=0)
        own = {int(grader.bridge.student_class_V[id]) for id in turn.completion}
        assert set(grades.facts.own_P.tolist()) <= own
        if not tags:
            assert len(grades.facts.start_P) == len(turn.completion)


def test_stored_candidates_of_another_vocabulary_are_spans(
    student: ChatFormat, teacher: ChatFormat, tmp_path: Path
) -> None:
    """The student's tokenizer plays the server; the student is the built-in teacher's."""
    grader = StoredGrades(store_of(tmp_path / "store", student.tokenizer, 4), SOURCES, teacher)
    turns = teachers_turns(EXAMPLES[:4], teacher, SOURCES)
    for turn, grades in zip(turns, grader.grade(turns), strict=True):
        assert grades is not None
        masses = grades.events.probabilities(0, len(grades.facts.start_P))
        torch.testing.assert_close(masses.sum(1) + grades.events.span_P, torch.ones(len(masses)), atol=1e-5, rtol=0)
        assert int(grades.facts.length_P.sum()) == len(turn.completion)


def test_traces_without_candidates_are_counted_and_a_store_without_any_is_refused(
    student: ChatFormat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grader = StoredGrades(store_of(tmp_path / "some", student.tokenizer, 3), SOURCES, student)
    assert "1 of 4 traces lack log-probabilities" in capsys.readouterr().err
    turns = teachers_turns(EXAMPLES[:4], student, SOURCES)
    assert [grades is None for grades in grader.grade(turns)] == [False, False, False, True]
    with pytest.raises(InputError, match="4 of 4 traces lack log-probabilities, so none has any; collect them with"):
        StoredGrades(store_of(tmp_path / "none", student.tokenizer, 0), SOURCES, student)
