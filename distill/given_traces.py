"""Reads the traces that a run is given instead of a teacher, and the problems that they answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.curation.chosen import chosen_traces, is_chosen
from distill.problems.problem_set import is_without_reference
from distill.problems.sources import check_traces
from toolkit.errors import InputError
from toolkit.figures.ledger import PROBLEMS
from toolkit.records import Problem, Trace, read_jsonl, read_records
from toolkit.terminal import counted, say


def traces_from_before(path: Path | None, problems: Path | None) -> list[Trace] | None:
    """Read the traces file, if one is named; raises `InputError` if it cannot be trained on."""
    if path is None:
        return None
    check_traces(path, problems)
    return chosen_traces(path) if is_chosen(path) else read_records(path, Trace)


def answers_to(problems: Sequence[Problem], traces: list[Trace], path: Path, place: Path | None) -> list[Trace]:
    """Return the traces, without those whose problems have no reference; raises `InputError` if one of them answers
    none of the problems."""
    known = {problem.id for problem in problems}
    if unknown := {trace.problem_id for trace in traces} - known:
        unverifiable = unknown & _without_reference(path, place)
        traces, all_traces = [trace for trace in traces if trace.problem_id not in unverifiable], traces
        if len(traces) < len(all_traces):
            left_out = counted(len(all_traces) - len(traces), "trace")
            say(f"traces: {left_out} of problems without a reference, which cannot be verified, left out")
    for trace in traces:
        if trace.problem_id not in known:
            raise InputError(
                f"{path} holds a trace of an unknown problem: {trace.problem_id}; name the file of "
                "its problems with --problems"
            )
    return traces


def _without_reference(path: Path, place: Path | None) -> set[str]:
    """Return the ids of problems beside the traces that have no reference."""
    beside = path.with_name(PROBLEMS)
    if place is not None or not beside.is_file():
        return set()
    return {values["id"] for _, values in read_jsonl(beside) if is_without_reference(values)}
