"""The list of a run's traces shows what was expected beside what was answered, at the width of a terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distill.curation.reasons import DROPPED, Dropped
from distill.teachers.trace_listing import TABLE_WIDTH, ListedTrace, listing, table
from tests.samples import TRACE
from toolkit.figures.ledger import PROBLEMS, TRACES
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


def test_a_failed_request_shows_what_the_server_said() -> None:
    row = ListedTrace(
        problem_id="a" * 16, sample=0, reason="HTTP 400", question="Why? " * 9, expected="42", said="not this one"
    )
    head, _, line = table([row], "failed").split("\n")
    assert head.endswith("the server said") and line.endswith("Why? Why? Why? …  not this one")
    assert table([], "failed") == "none"
