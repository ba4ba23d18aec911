"""The whole line on a tiny student: every stage leaves its folder, and a second run finds nothing to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distill import pipeline
from distill.problems.families import make_problems
from toolkit.decoders import open_decoder
from toolkit.demo import demo
from toolkit.ledger import read_ledger
from toolkit.records import Problem, Trace, write_records


def right_trace(problem: Problem) -> Trace:
    return Trace(
        problem_id=problem.id,
        sample=0,
        reasoning=f"It is {problem.answer}.",
        answer=problem.answer,
        finish_reason="stop",
        closed=True,
        prompt_tokens=10,
        reasoning_tokens=5,
        completion_tokens=9,
        teacher="test",
        request_hash="0",
    )


def test_the_line_runs_from_problems_to_report_and_a_second_time_does_nothing(
    tiny_student: Path, tmp_path: Path
) -> None:
    problems = make_problems("train", 20, 0, ("gcd", "chain_sum"))
    write_records(tmp_path / "problems.jsonl", problems)
    write_records(tmp_path / "traces.jsonl", [right_trace(problem) for problem in problems])
    config = replace(
        pipeline.demo(), teacher=str(tiny_student), student=str(tiny_student), traces=tmp_path / "traces.jsonl"
    )
    test_problems = make_problems("test", 2, 0, ("gcd", "chain_sum"))
    out = tmp_path / "run"
    ledger = demo(config, test_problems, out, open_decoder)
    assert list(ledger.rows) == ["teacher", "base", "student", "int4"]
    assert {row.problems for row in ledger.rows.values()} == {4}
    assert ledger.rows["int4"].bytes < ledger.rows["student"].bytes
    assert read_ledger(out / "ledger.json") == ledger
    assert "<html" in (out / "report.html").read_text()

    made = {path: path.stat().st_mtime_ns for path in out.glob("*/**/manifest.json")}
    assert len(made) == 6
    demo(config, test_problems, out, open_decoder)
    assert made == {path: path.stat().st_mtime_ns for path in out.glob("*/**/manifest.json")}
