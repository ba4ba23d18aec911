"""Writes small run folders of traces, and thoughts that differ as much as a test wants."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.samples import TRACE
from toolkit.records import Problem, Trace, write_records

WORDS = [
    f"{first}{last}" for first in ("ba", "do", "fe", "gi", "ku", "lo", "mi") for last in ("ra", "sen", "tal", "vo")
]


def problems(count: int, *, answer: str = "7") -> list[Problem]:
    return [
        Problem.create(family="user", question=f"What is {i} + {7 - i}, please?", answer=answer, split="train")
        for i in range(count)
    ]


def thought(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def trace(problem: Problem, sample: int = 0, **changes: Any) -> Trace:
    values: dict[str, Any] = {
        "problem_id": problem.id,
        "sample": sample,
        "reasoning": thought(int(problem.id[:12], 16) + sample),
        "answer": f"The answer is {problem.answer or 7}.",
        "reasoning_tokens": 60,
        "completion_tokens": 70,
        "prompt_tokens": 10,
    }
    return replace(TRACE, **(values | changes))


def write_run(folder: Path, asked: Sequence[Problem], traces: Sequence[Trace], *, shard: str = "traces.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / "problems.jsonl", list(asked))
    write_records(folder / shard, list(traces))
    return folder
