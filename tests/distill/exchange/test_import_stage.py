"""Published data sets of traces become runs: each form, its samples, its verdicts, and all that is left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.exchange.exported_rows import row_of
from distill.exchange.import_stage import LEFT_OUT, PUBLISHED, SCRATCH, ImportConfig, import_traces, read_row
from distill.exchange.trace_forms import TRACE_FORMS, TraceRow
from distill.problems.conversations import LeftOut
from distill.problems.files import FileRow
from distill.problems.problem_set import read_problems
from distill.problems.splits import split_of
from tests.distill.exchange import published_rows as published
from tests.distill.exchange.published_rows import ANSWER, SUM, THINK, THOUGHT, write_parquet
from tests.samples import TRACE
from toolkit.errors import InputError
from toolkit.figures.ledger import PROBLEMS, TRACES, VERDICTS
from toolkit.records import Problem, Trace, Verdict, read_jsonl, read_records
from toolkit.runs import read_manifest


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def imported(place: Path, out: Path, **options: Any) -> tuple[list[Problem], list[Trace], list[Verdict]]:
    import_traces(ImportConfig(place=place, **options), out)
    return (
        read_records(out / PROBLEMS, Problem),
        read_records(out / TRACES, Trace),
        read_records(out / VERDICTS, Verdict),
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [values for _, values in read_jsonl(path)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("row", "teachers", "reference"),
    [
        (published.openr1(), ["DeepSeek-R1", "DeepSeek-R1"], "42"),
        (published.mixture_of_thoughts(), ["DeepSeek-R1"], ""),
        (published.open_thoughts_114k(), ["DeepSeek-R1"], ""),
        (published.open_thoughts_metadata(), ["DeepSeek-R1"], "42"),
        (published.open_thoughts_3(), ["QwQ-32B"], ""),
        (published.s1k(), ["gemini-2.0-flash-thinking-exp"], "42"),
        (published.s1k_1_1(), ["DeepSeek-R1", "gemini-2.0-flash-thinking-exp"], "42"),
        (published.messages(), ["unknown"], ""),
        (published.messages(reasoning_content=THOUGHT), ["unknown"], ""),
        (published.messages(reasoning=THOUGHT), ["unknown"], ""),
        (published.messages(reasoning=THOUGHT) | {"ground_truth": "42"}, ["unknown"], "42"),
        (published.share_gpt(), ["unknown"], ""),
    ],
)
def test_each_published_form_becomes_problems_and_traces(
    tmp_path: Path, kind: str, row: dict[str, Any], teachers: list[str], reference: str
) -> None:
    place = tmp_path / f"rows.{kind}"
    write_parquet(place, [row]) if kind == "parquet" else written(place, row)
    problems, traces, verdicts = imported(place, tmp_path / "run")
    assert [(problem.question, problem.answer) for problem in problems] == [(SUM, reference)]
    assert [trace.teacher.partition("@")[0].split("/")[-1] for trace in traces] == teachers
    assert (traces[0].reasoning, traces[0].answer) == (THOUGHT, ANSWER)
    assert all((t.problem_id, t.finish_reason, t.closed) == (problems[0].id, "stop", True) for t in traces)
    assert [trace.sample for trace in traces] == list(range(len(teachers)))
    assert len(verdicts) == (len(traces) if reference else 0)
    assert not (tmp_path / "run" / SCRATCH).exists()


def test_verdicts_are_made_here_and_the_publishers_are_kept_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = written(tmp_path / "rows.jsonl", published.openr1())
    _, traces, verdicts = imported(place, tmp_path / "run")
    assert [verdict.correct for verdict in verdicts] == [True, False]
    said = lines(tmp_path / "run" / PUBLISHED)
    assert [each["said"]["correctness_math_verify"] for each in said] == [True, True]
    assert [each["where"] for each in said] == [f"{place} line 1"] * 2
    assert "verdicts that differ from the publisher's: 1 that it calls right" in capsys.readouterr().err
    measured = (read_manifest(tmp_path / "run") or {})["measured"]
    assert measured["verdicts"] == {"correct": 1, "wrong": 1} and measured["contradicted"] == {"right": 1}
    assert len({trace.request_hash for trace in traces}) == 2


def test_short_columns_about_an_answer_are_kept_and_others_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [published.open_thoughts_3(), published.s1k_1_1(deepseek_grade_reason="It is so. " * 80)]
    imported(written(tmp_path / "rows.jsonl", *rows), tmp_path / "run")
    said = [each["said"] for each in lines(tmp_path / "run" / PUBLISHED)]
    assert said[0] == {"difficulty": 7, "source": "ai2-adapt-dev/openmath-2-math", "domain": "math"}
    assert (said[1]["deepseek_grade"], said[2]["gemini_grade"]) == ("Yes", "No")
    assert said[1]["source_type"] == "qfq/numinamath" and "deepseek_grade_reason" not in said[1]
    assert "columns that are kept nowhere, with their rows: deepseek_grade_reason (1)" in capsys.readouterr().err


def test_verdicts_may_be_left_to_later_commands(tmp_path: Path) -> None:
    place = written(tmp_path / "rows.jsonl", published.openr1())
    import_traces(ImportConfig(place=place, verify=False), tmp_path / "run")
    assert not (tmp_path / "run" / VERDICTS).exists()
    assert (read_manifest(tmp_path / "run") or {})["measured"]["verdicts"] == {"not verified": 2}


def test_a_generation_that_was_cut_is_a_trace_that_is_not_whole(tmp_path: Path) -> None:
    cut = published.openr1(generations=[THINK, f"<think>\n{THOUGHT}"], is_reasoning_complete=[True, False])
    _, traces, verdicts = imported(written(tmp_path / "rows.jsonl", cut), tmp_path / "run")
    assert [(trace.finish_reason, trace.closed) for trace in traces] == [("stop", True), ("length", False)]
    assert [verdict.reason for verdict in verdicts] == ["correct", "truncated"]


def test_a_proof_has_no_reference_and_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proof = published.openr1(question_type="proof", answer="proof")
    problems, traces, verdicts = imported(written(tmp_path / "rows.jsonl", proof), tmp_path / "run")
    assert (problems[0].answer, len(traces), verdicts) == ("", 2, [])
    assert "problems without a reference, whose traces get no verdict: 1 (rows: proof (1))" in capsys.readouterr().err


def test_programs_whose_tests_have_another_form_get_no_verdict(tmp_path: Path) -> None:
    code = published.open_thoughts_metadata(test_cases='{"inputs": ["1"], "outputs": ["2"]}', domain="code")
    problems, _, verdicts = imported(written(tmp_path / "rows.jsonl", code), tmp_path / "run")
    assert problems[0].answer == "" and not verdicts


def test_answers_to_one_question_in_several_rows_are_its_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = [{"from": "human", "value": SUM}, {"from": "gpt", "value": THINK.replace("tens", "big digits")}]
    place = written(
        tmp_path / "rows.jsonl",
        published.open_thoughts_3(),
        published.open_thoughts_3(conversations=other),
        published.open_thoughts_3(),
    )
    problems, traces, _ = imported(place, tmp_path / "run")
    assert len(problems) == 1 and [trace.sample for trace in traces] == [0, 1]
    assert lines(tmp_path / "run" / LEFT_OUT) == [{"where": f"{place} line 3", "reason": "equal to an earlier answer"}]
    err = capsys.readouterr().err
    assert "merged: equal to another row (2)" in err
    assert f"left out: equal to an earlier answer (1, first {place} line 3)" in err


def test_a_question_takes_the_reference_of_an_equal_one(tmp_path: Path) -> None:
    place = written(tmp_path / "rows.jsonl", published.messages(), published.openr1())
    problems, traces, verdicts = imported(place, tmp_path / "run")
    assert [problem.answer for problem in problems] == ["42"]
    assert len(verdicts) == len(traces) == 3


def test_variants_of_a_question_are_problems_of_their_own(tmp_path: Path) -> None:
    place = written(tmp_path / "rows.jsonl", published.s1k(), published.s1k(question=SUM.upper()))
    problems, traces, _ = imported(place, tmp_path / "run")
    assert len({problem.id for problem in problems}) == 2
    assert [trace.problem_id for trace in traces] == [problem.id for problem in problems]


def test_references_that_contradict_each_other_are_refused_or_left_out(tmp_path: Path) -> None:
    place = written(tmp_path / "rows.jsonl", published.openr1(), published.openr1(answer="43"), published.s1k_1_1())
    with pytest.raises(InputError, match=r"rows.jsonl line 1 and .*line 2 give one question different answers"):
        imported(place, tmp_path / "run")
    place = written(place, published.openr1(), published.openr1(answer="43"), published.s1k(question="What is 40 + 2?"))
    problems, traces, _ = imported(place, tmp_path / "run", conflicts="leave-out")
    assert [problem.question for problem in problems] == ["What is 40 + 2?"] and len(traces) == 1
    reasons = {each["reason"] for each in lines(tmp_path / "run" / LEFT_OUT)}
    assert reasons == {"its question was left out"}


@pytest.mark.parametrize(
    ("row", "lacks"),
    [
        ({**published.openr1(generations=None), "messages": None}, "'generations' is empty"),
        ({key: value for key, value in published.s1k().items() if key != "attempt"}, "no 'attempt'"),
        (published.openr1(correctness_math_verify=[True]), "correctness_math_verify"),
        ({"messages": "Hello"}, "must be a list of objects"),
        ({"prompt": "What?", "completion": "That."}, "has no known form of traces"),
        (published.s1k(question="  "), "'question' is empty"),
    ],
)
def test_a_row_that_lacks_a_field_is_named_with_what_to_do(tmp_path: Path, row: dict[str, Any], lacks: str) -> None:
    place = written(tmp_path / "rows.jsonl", published.s1k(), row)
    with pytest.raises(InputError) as error:
        imported(place, tmp_path / "run")
    assert f"{place} line 2" in str(error.value) and lacks in str(error.value) and ";" in str(error.value)
    assert not (tmp_path / "run").exists()
    problems, traces, _ = imported(place, tmp_path / "run", broken="leave-out")
    assert len(problems) == len(traces) == 1
    (left,) = lines(tmp_path / "run" / LEFT_OUT)
    assert left["where"] == f"{place} line 2" and lacks in left["reason"]


WRONG: list[Any] = [
    *(None, "", " ", '{"tests": 3}', -1, 3, 2**62, True),
    *([], {}, [None], ["x"], [{}], {"role": 1}, [{"role": "user", "content": 3}]),
]


@pytest.mark.parametrize(
    "row",
    [
        published.openr1(),
        published.mixture_of_thoughts(),
        published.open_thoughts_114k(),
        published.open_thoughts_metadata(),
        published.open_thoughts_3(),
        published.s1k(),
        published.s1k_1_1(),
        published.messages(reasoning=THOUGHT),
        row_of(Problem.create(family="user", question=SUM, answer="42"), replace(TRACE, reasoning=THOUGHT), None),
    ],
)
def test_a_wrong_value_is_read_or_refused_and_never_breaks_an_import(row: dict[str, Any]) -> None:
    for column in row:
        for value in WRONG:
            for _, read in _reads({**row, column: value}):
                assert read.traces and all(isinstance(each.read(), Trace) for each in read.traces)


def _reads(row: dict[str, Any]) -> Iterator[tuple[str, TraceRow]]:
    try:
        form, read, asked = read_row(
            FileRow(where="rows.jsonl line 1", values=row), None, ImportConfig(place=Path("x"))
        )
    except LeftOut:
        return
    except InputError as error:
        assert "rows.jsonl line 1" in str(error)
        return
    assert asked.problem.question.strip()
    yield form, read


def test_a_conversation_keeps_what_was_said_before_its_last_question(tmp_path: Path) -> None:
    before = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": f"<think>{THOUGHT}</think>Hello to you."}]
    row = {"system": "Be brief.", "conversations": [*before, *published.share_gpt()["conversations"]]}
    problems, traces, _ = imported(written(tmp_path / "rows.jsonl", row), tmp_path / "run")
    assert [said["content"] for said in problems[0].history] == ["Be brief.", "Hello", "Hello to you."]
    assert (problems[0].question, traces[0].answer) == (SUM, ANSWER)


def test_conversations_that_cannot_be_asked_again_are_left_out(tmp_path: Path) -> None:
    tool = {"messages": [*published.messages()["messages"][:1], {"role": "tool", "content": "42"}]}
    unanswered = {"messages": published.messages()["messages"][:1]}
    place = written(tmp_path / "rows.jsonl", published.messages(), tool, unanswered)
    _, traces, _ = imported(place, tmp_path / "run")
    assert len(traces) == 1
    assert [each["reason"] for each in lines(tmp_path / "run" / LEFT_OUT)] == [
        "'tool' speaks or calls tools",
        "no answer to the last question",
    ]


def test_test_rows_of_a_data_set_stay_test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "set" / "data"
    write_parquet(data / "train-00000-of-00001.parquet", [published.s1k()])
    held_out = published.s1k(question="What is 40 + 2?")
    write_parquet(data / "test-00000-of-00001.parquet", [held_out, published.s1k()])
    problems, traces, _ = imported(tmp_path / "set", tmp_path / "run")
    assert {problem.split for problem in problems} == {"test"} and len(traces) == 2
    assert "traces of the data's own test split: 2" in capsys.readouterr().err


def test_parts_that_are_no_splits_are_read_one_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from datasets import Dataset, DatasetDict

    parts = {name: Dataset.from_list([published.openr1(problem=f"In {name}?")]) for name in ("default", "extended")}
    DatasetDict(parts).save_to_disk(tmp_path / "all")
    problems, traces, _ = imported(tmp_path / "all", tmp_path / "run")
    assert [problem.question for problem in problems] == ["In default?", "In extended?"] and len(traces) == 4
    assert "(default, extended) is named after a split; the hash of each question decides" in capsys.readouterr().err


def test_a_limit_counts_rows(tmp_path: Path) -> None:
    rows = [published.s1k(question=f"What is {n} + {42 - n}?") for n in range(10)]
    place = written(tmp_path / "rows.jsonl", *rows)
    problems, traces, _ = imported(place, tmp_path / "run", limit=3)
    assert len(problems) == len(traces) == 3


def test_the_teacher_and_the_reference_may_be_named(tmp_path: Path) -> None:
    place = written(tmp_path / "rows.jsonl", published.messages() | {"gold": "42"})
    _, traces, verdicts = imported(place, tmp_path / "run", teacher="my/teacher", reference_field="gold")
    assert traces[0].teacher == "my/teacher@import" and verdicts[0].correct
    with pytest.raises(InputError, match=r"--reference-field: .*line 1 has no column 'silver'"):
        imported(place, tmp_path / "other", reference_field="silver")


def test_a_finished_import_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = written(tmp_path / "rows.jsonl", published.s1k())
    imported(place, tmp_path / "run")
    capsys.readouterr()
    imported(place, tmp_path / "run")
    assert "already done" in capsys.readouterr().err


def test_problems_of_an_import_are_read_as_they_are(tmp_path: Path) -> None:
    place = written(tmp_path / "rows.jsonl", published.openr1(), published.s1k(question=SUM.upper()))
    problems, _, _ = imported(place, tmp_path / "run")
    again = read_problems(tmp_path / "run" / PROBLEMS)
    assert again == problems and [split_of(problem) for problem in again]


def test_data_without_traces_is_refused(tmp_path: Path) -> None:
    place = written(tmp_path / "rows.jsonl", {"messages": published.messages()["messages"][:1]})
    with pytest.raises(InputError, match=r"holds no trace; left out: no answer to the last question \(1, first "):
        imported(place, tmp_path / "run")


def test_each_form_stands_in_the_document() -> None:
    text = (Path(__file__).parents[3] / "docs/how-to/exchange-traces.md").read_text()
    assert [form.name for form in TRACE_FORMS if form.name not in text] == []
