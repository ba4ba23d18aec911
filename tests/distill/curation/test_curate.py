"""Curation keeps what is right, new, short and allowed, and counts everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from distill.curation.curate import Curation, curate
from distill.curation.reasons import DROPS
from tests.samples import TRACE
from toolkit.records import Example, Problem, Trace, Verdict

PROBLEMS = [Problem.create(family="gcd", question=f"What is gcd({i}, 6)?", answer="2") for i in range(4)]


def trace(problem: Problem, sample: int, reasoning: str = "6 = 1 * 4 + 2") -> Trace:
    return replace(
        TRACE,
        problem_id=problem.id,
        sample=sample,
        reasoning=reasoning,
        answer="2",
        reasoning_tokens=5,
        completion_tokens=9,
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
        replace(trace(PROBLEMS[1], 0, "way 0"), finish_reason="length"),
        replace(trace(PROBLEMS[1], 1, "way 1"), answer=" \n"),
        trace(PROBLEMS[1], 2, "way 2"),
        trace(PROBLEMS[1], 3, "way 3"),
        trace(PROBLEMS[2], 0, "a long way"),
        trace(PROBLEMS[3], 0),
    ]
    reasons = ["correct"] * 5 + ["truncated", "empty", "wrong", "correct"] + ["correct"] * 2
    result = curated(traces, reasons, per_problem=2, test_ids=[PROBLEMS[3].id], max_tokens=6)
    assert {reason: count for reason, count in result.drops.items() if count} == {
        "test_split": 1,
        "truncated": 1,
        "empty": 1,
        "wrong": 1,
        "duplicate": 2,
        "too_long": 1,
        "surplus": 1,
    }
    assert len(result.examples) + sum(result.drops.values()) == len(traces) == result.traces
    assert [(each.problem_id, each.sample) for each in result.dropped if each.reason == "duplicate"] == [
        (PROBLEMS[0].id, 3),
        (PROBLEMS[0].id, 4),
    ]
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
    assert curated(made).summary() == (
        "curation: 1 of 3 traces kept; dropped: 2 duplicate (with the same thought as another one)"
    )
    assert curated(made[:1]).summary() == "curation: 1 of 1 trace kept; dropped: none"


def test_the_summary_says_what_helps_where_many_were_too_long() -> None:
    whole = [trace(problem, 0) for problem in PROBLEMS[:2]]
    cut = [replace(trace(PROBLEMS[2], 0), finish_reason="length")]
    assert curated([*whole, *cut]).summary() == (
        "curation: 2 of 3 traces kept; dropped: 1 truncated (cut by the limit); if too many are truncated, raise "
        "--max-new-tokens"
    )
    assert curated(whole, max_tokens=1).summary() == (
        "curation: 0 of 2 traces kept; dropped: 2 too_long (longer than --max-tokens); if too many are too_long, raise "
        "--max-tokens, or let the teacher think less"
    )


def test_one_word_names_a_reason_in_the_summary_and_in_the_list() -> None:
    texts = {"a": "one", "b": "", "c": "two", "d": "three"}
    made = [trace(PROBLEMS[0], sample, thought) for sample, thought in enumerate(texts.values())]
    result = curated(made, per_problem=1)
    assert {dropped.reason for dropped in result.dropped} == {"no_thought", "surplus"}
    assert "1 no_thought (without a thought), 2 surplus (beyond --per-problem)" in result.summary()


def test_the_remedy_is_that_of_the_most_frequent_reason() -> None:
    unthought = [trace(problem, 0, "") for problem in PROBLEMS[:3]]
    cut = [replace(trace(problem, 0), finish_reason="length") for problem in PROBLEMS[:3]]
    for traces, count, remedy in (
        ([*unthought, cut[0]], "3 no_thought (without a thought)", "choose a teacher that thinks"),
        ([*cut, unthought[0]], "3 truncated (cut by the limit)", "raise --max-new-tokens"),
    ):
        message = curated(traces).nothing_left()
        assert "none of the teacher's 4 traces is correct and fit to train on" in message
        assert count in message and remedy in message.rsplit("; ", 1)[1]
    long = [trace(problem, 0, "word after other word " * 3) for problem in PROBLEMS]
    assert ": 4 too_long (longer than --max-tokens); raise --max-tokens" in curated(long, max_tokens=9).nothing_left()
    assert (
        ": 4 wrong (with another answer than the problem's); choose an abler teacher"
        in curated(long, ["wrong"] * 4).nothing_left()
    )


def test_a_fault_that_makes_an_answer_wrong_is_named_in_its_place() -> None:
    left = replace(trace(PROBLEMS[0], 0, ""), answer="It is 3. <think> No, 2.")
    assert curated([left], ["wrong"]).drops["thought_tags"] == 1


def test_a_person_may_want_an_answer_without_a_thought() -> None:
    wanted = replace(trace(PROBLEMS[0], 0, ""), teacher="feedback@int4")
    assert len(curated([wanted]).examples) == 1
    assert curated([trace(PROBLEMS[0], 0, "")]).drops["no_thought"] == 1
