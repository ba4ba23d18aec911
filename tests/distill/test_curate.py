"""Curation keeps what is right, new, short and allowed, and counts everything else."""

from __future__ import annotations

from collections.abc import Sequence

from distill.curate import DROPS, Curation, curate
from toolkit.records import Example, Problem, Trace, Verdict

PROBLEMS = [Problem.create(family="gcd", question=f"What is gcd({i}, 6)?", answer="2") for i in range(4)]


def trace(problem: Problem, sample: int, reasoning: str = "6 = 1 * 4 + 2") -> Trace:
    return Trace(
        problem_id=problem.id,
        sample=sample,
        reasoning=reasoning,
        answer="2",
        finish_reason="stop",
        closed=True,
        prompt_tokens=10,
        reasoning_tokens=5,
        completion_tokens=9,
        teacher="teacher",
        request_hash="0",
    )


def verdict(of: Trace, reason: str = "correct") -> Verdict:
    return Verdict.from_dict(
        {
            "problem_id": of.problem_id,
            "sample": of.sample,
            "correct": reason == "correct",
            "reason": reason,
            "score": float(reason == "correct"),
            "verifier": "v",
            "version": "1",
        }
    )


def curated(
    traces: Sequence[Trace],
    reasons: Sequence[str] | None = None,
    *,
    max_tokens: int = 100,
    per_problem: int = 9,
    test_ids: Sequence[str] = (),
) -> Curation:
    verdicts = [verdict(t, reason) for t, reason in zip(traces, reasons or ["correct"] * len(traces), strict=True)]

    def words(example: Example) -> int:
        return len(f"{example.question} {example.reasoning}".split())

    return curate(
        PROBLEMS,
        traces,
        verdicts,
        count_tokens=words,
        max_tokens=max_tokens,
        per_problem=per_problem,
        test_ids=test_ids,
    )


def test_every_trace_is_kept_or_counted_once() -> None:
    traces = [
        *(trace(PROBLEMS[0], i, f"way {i % 3}") for i in range(5)),
        *(trace(PROBLEMS[1], i, f"way {i}") for i in range(4)),
        trace(PROBLEMS[2], 0, "word " * 200),
        trace(PROBLEMS[3], 0),
    ]
    reasons = ["correct"] * 5 + ["truncated", "empty", "wrong", "correct"] + ["correct"] * 2
    result = curated(traces, reasons, per_problem=2, test_ids=[PROBLEMS[3].id])
    assert dict(result.drops) == {
        "test_split": 1,
        "truncated": 1,
        "empty": 1,
        "wrong": 1,
        "duplicate": 2,
        "too_long": 1,
        "surplus": 1,
    }
    assert len(result.examples) + sum(result.drops.values()) == len(traces) == result.traces
    assert result.counts()["kept"] == 3
    assert set(result.drops) == set(DROPS)


def test_a_test_problem_is_never_trained_on() -> None:
    result = curated([trace(problem, 0) for problem in PROBLEMS], test_ids=[PROBLEMS[1].id, PROBLEMS[2].id])
    assert [example.problem_id for example in result.examples] == [PROBLEMS[0].id, PROBLEMS[3].id]


def test_reasoning_that_differs_in_white_space_only_is_a_duplicate() -> None:
    result = curated([trace(PROBLEMS[0], 0, "a\n b"), trace(PROBLEMS[0], 1, "a b "), trace(PROBLEMS[1], 0, "a b")])
    assert [(example.problem_id, example.sample) for example in result.examples] == [
        (PROBLEMS[0].id, 0),
        (PROBLEMS[1].id, 0),
    ]
    assert result.drops["duplicate"] == 1


def test_an_example_of_exactly_the_longest_length_is_kept() -> None:
    made = [trace(PROBLEMS[0], 0, "one two three")]
    assert len(curated(made, max_tokens=7).examples) == 1
    assert curated(made, max_tokens=6).drops["too_long"] == 1


def test_the_summary_names_only_what_was_dropped() -> None:
    made = [trace(PROBLEMS[0], i) for i in range(3)]
    assert curated(made).summary() == "curation: 1 of 3 traces kept; dropped: 2 duplicate"
    assert curated(made[:1]).summary() == "curation: 1 of 1 traces kept; dropped: none"
