"""Rows in exactly the columns of published data sets of traces; `distill.exchange.trace_forms` names their cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SUM = "What is 17 + 25?"
"""A question whose answer is 42."""
THOUGHT = "I add the tens, 10 + 20 = 30, then the ones, 7 + 5 = 12, which is 42 in all."
ANSWER = "The sum is \\boxed{42}."
THINK = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
OPEN_THOUGHTS = (
    f"<|begin_of_thought|>\n\n{THOUGHT}\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{ANSWER}\n\n"
    "<|end_of_solution|>"
)


def openr1(**changes: Any) -> dict[str, Any]:
    """Two generations, of which the second is wrong, though its publisher calls it right."""
    return {
        "problem": SUM,
        "solution": "17 + 25 = \\boxed{42}",
        "answer": "42",
        "problem_type": "Algebra",
        "question_type": "math-word-problem",
        "source": "olympiads",
        "uuid": "0e6a1b7c-0000-5000-8000-000000000001",
        "is_reasoning_complete": [True, True],
        "generations": [THINK, THINK.replace("42", "43").replace("12,", "13,")],
        "correctness_math_verify": [True, True],
        "correctness_llama": None,
        "finish_reasons": None,
        "correctness_count": 2,
        "messages": [{"content": SUM, "role": "user"}, {"content": THINK, "role": "assistant"}],
        **changes,
    }


def mixture_of_thoughts(**changes: Any) -> dict[str, Any]:
    messages = [{"content": SUM, "role": "user"}, {"content": THINK, "role": "assistant"}]
    return {"messages": messages, "num_tokens": 61, "source": "open-r1/OpenR1-Math-220k", **changes}


def open_thoughts_114k(**changes: Any) -> dict[str, Any]:
    said = [{"from": "user", "value": SUM}, {"from": "assistant", "value": OPEN_THOUGHTS}]
    return {"system": "Your role as an assistant involves thorough reasoning.", "conversations": said, **changes}


def open_thoughts_metadata(**changes: Any) -> dict[str, Any]:
    return {
        "problem": SUM,
        "deepseek_reasoning": THOUGHT,
        "deepseek_solution": ANSWER,
        "ground_truth_solution": "17 + 25 = \\boxed{42}",
        "domain": "math",
        "source": "numina_math",
        "test_cases": None,
        "starter_code": None,
        **changes,
    }


def open_thoughts_3(**changes: Any) -> dict[str, Any]:
    said = [{"from": "human", "value": SUM}, {"from": "gpt", "value": THINK}]
    return {
        "difficulty": 7,
        "source": "ai2-adapt-dev/openmath-2-math",
        "domain": "math",
        "conversations": said,
    } | changes


def s1k(**changes: Any) -> dict[str, Any]:
    return {
        "solution": "42",
        "question": SUM,
        "cot_type": "math",
        "source_type": "qfq/numinamath",
        "metadata": "{'source': 'made up'}",
        "cot": None,
        "thinking_trajectories": [THOUGHT],
        "attempt": ANSWER,
        **changes,
    }


def s1k_1_1(**changes: Any) -> dict[str, Any]:
    row = {name: value for name, value in s1k().items() if name not in ("cot", "thinking_trajectories", "attempt")}
    return row | {
        "gemini_thinking_trajectory": f"{THOUGHT} So it is.",
        "gemini_attempt": "The sum is 41.",
        "deepseek_thinking_trajectory": THOUGHT,
        "deepseek_attempt": ANSWER,
        "gemini_grade": "No",
        "gemini_grade_reason": "It is 42.",
        "deepseek_grade": "Yes",
        "deepseek_grade_reason": "The attempt matches.",
        **changes,
    }


def messages(**beside: Any) -> dict[str, Any]:
    """A conversation whose thought is in a field beside the content, if one is given, else in the content."""
    turn = {"role": "assistant", "content": ANSWER if beside else THINK, **beside}
    return {"messages": [{"role": "user", "content": SUM}, turn]}


def share_gpt() -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": SUM}, {"from": "gpt", "value": THINK}]}


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path
