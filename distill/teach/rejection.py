"""Makes a training set by rejection sampling (DeepSeek-R1 report, section 2.3.3): the model's own right and readable
answers, and requests.

    problems ─ samples ─> verdicts ─ right? ─ readable? ─ new? ─ among the first k? ─> texts, and the requests
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path

from distill.collecting.job import Job
from distill.collecting.traces import sample_traces
from distill.teach.corpus import CorpusText, request_texts
from distill.teach.teacher_recipe import RejectionRecipe
from distill.verification.rewards import completion_of, language_consistency, well_formed
from distill.verification.verdicts import grade
from toolkit.formats.chat_format import ChatFormat
from toolkit.generation.generate import Sampling
from toolkit.model.decoder import TorchDecoder
from toolkit.records import Problem, Trace
from toolkit.runs import folder_digest

ROLLOUTS = "rollouts.jsonl"
BATCH_SIZE = 128
MAX_NEW_TOKENS = 200


def write_training_set(
    writer: Path, problems: Sequence[Problem], recipe: RejectionRecipe, seed: int, folder: Path
) -> tuple[list[CorpusText], Mapping[str, int]]:
    """Sample the model in `writer` and keep what may be trained on; return the texts and the counts by fate.

    `folder` keeps the samples, and its whole batches are not drawn again: a row may depend on the rows beside it by a
    bit, and an interrupted run must end like an uninterrupted one.
    """
    _keep_whole_batches(folder / ROLLOUTS)
    job = Job(
        problems=problems,
        sampling=Sampling(temperature=recipe.temperature, top_p=1.0, max_new_tokens=MAX_NEW_TOKENS, seed=seed),
        samples=recipe.samples,
        batch_size=BATCH_SIZE,
        in_whole_batches=True,
        path=folder / ROLLOUTS,
        label="rejection sampling",
    )
    traces = sample_traces(
        partial(TorchDecoder.open, writer),
        ChatFormat.from_folder(writer),
        job,
        teacher=f"{writer.name}@{folder_digest(writer)}",
    )
    by_id = {problem.id: problem for problem in problems}
    kept: list[CorpusText] = []
    fates: Counter[str] = Counter()
    kept_of: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    for trace in traces:
        problem = by_id[trace.problem_id]
        fate = _fate(problem, trace)
        if fate == "kept" and (trace.problem_id, trace.reasoning) in seen:
            fate = "duplicate"
        elif fate == "kept" and kept_of[trace.problem_id] == recipe.kept_a_problem:
            fate = "surplus"
        fates[fate] += 1
        if fate == "kept":
            seen.add((trace.problem_id, trace.reasoning))
            kept_of[trace.problem_id] += 1
            kept.append(CorpusText(problem=problem, reasoning=trace.reasoning, answer=trace.answer))
    requests = islice(cycle(request_texts()), recipe.requests)
    return [*kept, *requests], dict(fates) | {"requests": recipe.requests}


def _keep_whole_batches(path: Path) -> None:
    """Cut a file of samples back to its last whole batch."""
    if path.exists():
        with path.open("rb") as file:
            lengths = [len(line) for line in file if line.endswith(b"\n")]
        os.truncate(path, sum(lengths[: len(lengths) // BATCH_SIZE * BATCH_SIZE]))


def _fate(problem: Problem, trace: Trace) -> str:
    if not grade(problem, trace).correct:
        return "wrong"
    completion = completion_of(trace)
    readable = well_formed(problem, completion) == 1.0 and language_consistency(problem, completion) == 1.0
    return "kept" if readable else "unreadable"
