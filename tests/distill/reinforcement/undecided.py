"""A student that is right half of the time: what reinforcement can teach something within seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from distill.problems.splits import split_of
from distill.reinforcement.rl_config import RlConfig
from distill.training.train import train
from tests.distill.test_train import tiny_recipe
from toolkit.records import Example, Problem

QUICK = RlConfig(updates=4, problems=4, samples=4, turns_at_once=8, learning_rate=1e-3, max_new_tokens=20)
"""Some updates of small groups."""


def problems(count: int = 16) -> list[Problem]:
    """Problems of the training split, all of which have the answer 1."""
    made = (Problem.create(family="user", question=f"times {n}", answer="1") for n in range(2 * count))
    return [problem for problem in made if split_of(problem) == "train"][:count]


def write_problems(path: Path) -> Path:
    path.write_text(
        "".join(json.dumps({"question": each.question, "answer": each.answer}) + "\n" for each in problems())
    )
    return path


def write_undecided(tiny_student: Path, folder: Path) -> Path:
    """Train the tiny student on answers of which half are 1 and half are 2, whatever the question."""
    folder.mkdir()
    made = [
        Example(
            problem_id=problem.id,
            family="user",
            question=problem.question,
            reasoning=answer,
            answer=answer,
            sample=0,
            teacher="program",
        )
        for problem in problems()
        for answer in ("1", "2")
    ]
    train(tiny_student, made, replace(tiny_recipe(), epochs=12, learning_rate=1e-2), folder)
    return folder
