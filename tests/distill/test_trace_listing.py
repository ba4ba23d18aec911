"""The list of a run's traces shows what was expected beside what was answered, at the width of a terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distill.curation.reasons import DROPPED, Dropped
from distill.teachers.trace_listing import TABLE_WIDTH, ListedTrace, listing, table
from distill.verification.verdicts import grade
from tests.samples import TRACE
from toolkit.figures.ledger import PROBLEMS, TRACES, VERDICTS
from toolkit.records import Problem, write_records


def test_what_was_expected_stands_beside_what_was_answered_below_a_head(tmp_path: Path) -> None:
    asked = Problem.create(family="user", question="Which part of pump P-401 is checked first? " * 3, answer="seal")
    trace = replace(TRACE, problem_id=asked.id, answer="I looked it up.\n\nThe answer is **filter**")
    write_records(tmp_path / PROBLEMS, [asked])
    write_records(tmp_path / TRACES, [trace])
    write_records(tmp_path / DROPPED, [Dropped(problem_id=asked.id, sample=trace.sample, reason="wrong")])
    rows = listing(tmp_path, "dropped")
    assert [(row.expected, row.said) for row in rows] == [("seal", "filter")]
    head, rule, line = table(rows, "dropped").split("\n")
    assert head.split() == ["problem", "sample", "reason", "expected", "answered", "question"]
    assert line.split()[:6] == [asked.id, str(trace.sample), "wrong", "seal", "filter", "Which"]
    assert len(line) == len(rule) == TABLE_WIDTH and line.endswith("…")


def test_all_traces_show_how_each_ended_and_which_are_wrong_once_they_are_graded(tmp_path: Path) -> None:
    asked = Problem.create(family="user", question="Which part\nof pump P-401 is checked first? " * 3, answer="seal")
    traces = [replace(TRACE, problem_id=asked.id, sample=i, answer=said) for i, said in enumerate(("seal", "filter"))]
    write_records(tmp_path / PROBLEMS, [asked])
    write_records(tmp_path / TRACES, traces)
    heads = [table(listing(tmp_path, "all"), "all").split("\n")[0].split()]
    write_records(tmp_path / VERDICTS, [grade(asked, trace) for trace in traces])
    head, _, *lines = table(listing(tmp_path, "all"), "all").split("\n")
    assert heads == [["problem", "sample", "ended", "expected", "answered", "question"]]
    assert head.split() == ["problem", "sample", "ended", "verdict", "expected", "answered", "question"]
    assert [line.split()[2:6] for line in lines] == [
        ["stop", "correct", "seal", "seal"],
        ["stop", "wrong", "seal", "filter"],
    ]
    whole = listing(tmp_path, "all", whole=True)
    assert {(row.question, row.thought) for row in whole} == {(asked.question, TRACE.reasoning)}
    assert [row.verdict for row in whole] == ["correct", "wrong"]


def test_a_failed_request_shows_what_the_server_said() -> None:
    row = ListedTrace(
        problem_id="a" * 16, sample=0, reason="HTTP 400", question="Why? " * 9, expected="42", said="not this one"
    )
    head, _, line = table([row], "failed").split("\n")
    assert head.endswith("the server said") and line.endswith("Why? Why? Why? …  not this one")
    assert table([], "failed") == "none"
