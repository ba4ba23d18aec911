"""Asks a model behind an endpoint for ratings, and keeps its answers, so that none is paid for twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.collecting.job import Job
from distill.endpoints.remote_teacher import Endpoint
from distill.verification.ratings import MOST_JUDGED_TOKENS, digest_of, read_score
from toolkit.generation.generate import Sampling
from toolkit.records import Problem


def ask_ratings(endpoint: Endpoint, prompts: Sequence[str], folder: Path) -> dict[str, float | None]:
    """Return the score that each prompt is answered with, from 0 to 1; None for an answer without a score.

    `folder` keeps one file for each batch of prompts. Raises `InputError` if the server does not answer after several
    tries.
    """
    if not prompts:
        return {}
    questions = [Problem(id=digest_of(prompt), family="judge", question=prompt, answer="") for prompt in prompts]
    name = digest_of("\n".join([endpoint.name, *(question.id for question in questions)]))
    folder.mkdir(parents=True, exist_ok=True)
    traces = endpoint.answer(
        Job(
            problems=questions,
            sampling=Sampling(temperature=0.0, max_new_tokens=MOST_JUDGED_TOKENS),
            samples=1,
            batch_size=len(questions),
            path=folder / f"{name}.jsonl",
            label="judge",
        )
    )
    return {prompt: read_score(trace.answer) for prompt, trace in zip(prompts, traces, strict=True)}
