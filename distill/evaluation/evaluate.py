"""Measures a model as a row of the ledger: the same frozen problems for teacher, base, student and int4 student.

Every model gets the question in its own chat template, its answer is read by the same rules, and the protocol is the
same. A model whose template opens no reasoning is graded on everything it writes.

Two speeds are measured separately. `tokens_per_s` is what one person experiences: one stream, prompt processing
excluded, a fixed number of tokens (end-of-text ignored, so that every model does the same work), the median over the
first few problems, which are the same for every row. `batch_tokens_per_s` is the speed of the evaluation itself.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from distill.collecting.job import Job
from distill.evaluation.several_samples import is_passed, samples_by_problem, votes_of
from distill.problems.problem_set import problems_digest
from distill.teachers.respondent import ModelFolder, Respondent
from distill.verification.verdicts import VERIFIER, VERSION, check_gradable, grade
from toolkit.errors import InputError
from toolkit.figures.intervals import mean_interval
from toolkit.figures.ledger import PROBLEMS, TRACES, VERDICTS, Evaluation, Score, correct_shares, read_evaluation
from toolkit.generation.generate import Decoder, Sampling, check_samples
from toolkit.records import Problem, write_records
from toolkit.runs import Stage, finish, is_complete, partial_folder, say_done
from toolkit.sources.made_card import note_result


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The protocol by which every row of a ledger is measured."""

    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0, max_new_tokens=320))
    samples: int = 1
    batch_size: int = 64
    """Changes how long an evaluation takes, not what it finds."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.batch_size < 1:
            raise InputError(f"samples ({self.samples}) and batch_size ({self.batch_size}) must be at least 1")
        check_samples(self.samples, self.sampling.temperature, self.sampling.top_k)


def evaluate_model(
    folder: Path, open_decoder: Callable[[Path], Decoder], problems: Sequence[Problem], config: EvalConfig, out: Path
) -> Evaluation:
    """Measure a model folder; see `evaluate`."""
    return evaluate(ModelFolder(folder, open_decoder, folder.name), problems, config, out)


def evaluate(
    respondent: Respondent,
    problems: Sequence[Problem],
    config: EvalConfig,
    out: Path,
    asked: Mapping[str, Any] = MappingProxyType({}),
    names: Mapping[str, str] = MappingProxyType({}),
) -> Evaluation:
    """Measure a model into the run folder `out`, or read the row if `out` holds it already.

    `asked`: how the problems were chosen, for the record (`distill.trained_on.ChosenProblems.facts`). `names`: what a
    person calls the inputs (`Stage`). An interrupted evaluation resumes where it stopped. Raises `FolderConflict` if
    `out` holds another run; `InputError` if the model folder has no tokenizer or template, the prompts do not fit, an
    endpoint fails, or a program may not be run.
    """
    stage = stage_of(problems, config, model=respondent.digest)
    stage = replace(stage, names={"model": respondent.name, **names})
    if is_complete(out, stage):
        say_done(out)
        return _noted(respondent, read_evaluation(out))
    check_gradable(problems)
    with respondent:
        respondent.load()
        partial = partial_folder(out, stage)
        write_records(partial / PROBLEMS, list(problems))
        measured = _measure(respondent, problems, config, partial)
        left_out = {"left_out_of_requests": respondent.left_out} if respondent.left_out else {}
        evaluation = replace(measured, asked={**asked, **left_out})
    finish(partial, out, stage, evaluation.to_dict())
    return _noted(respondent, evaluation)


def _noted(respondent: Respondent, evaluation: Evaluation) -> Evaluation:
    """Write the result into the model's card, if it has one of ours."""
    if isinstance(respondent, ModelFolder):
        note_result(respondent.folder, evaluation)
    return evaluation


def stage_of(problems: Sequence[Problem], config: EvalConfig, **inputs: str) -> Stage:
    """Describe an evaluation by its questions and its `model`, the digest of the respondent."""
    return Stage(
        name="eval",
        config={"samples": config.samples, **asdict(config.sampling), "verifier": f"{VERIFIER} {VERSION}"},
        inputs=inputs | {"problems": problems_digest(problems)},
    )


def _measure(respondent: Respondent, problems: Sequence[Problem], config: EvalConfig, folder: Path) -> Evaluation:
    """Measure an open model and write traces.jsonl and verdicts.jsonl into the existing folder."""
    resumed = (folder / TRACES).exists()
    started = time.perf_counter()
    traces = respondent.answer(
        Job(
            problems=problems,
            sampling=config.sampling,
            samples=config.samples,
            batch_size=config.batch_size,
            path=folder / TRACES,
            label=f"evaluating {respondent.name}",
        )
    )
    sampling_s = time.perf_counter() - started
    by_id = {problem.id: problem for problem in problems}
    verdicts = [grade(by_id[trace.problem_id], trace) for trace in traces]
    write_records(folder / VERDICTS, verdicts)
    tokens = [trace.completion_tokens for trace in traces if trace.completion_tokens is not None]
    shares = correct_shares(verdicts)
    return Evaluation(
        model=respondent.name,
        model_digest=respondent.digest,
        problems_digest=problems_digest(problems),
        problems=len(by_id),
        protocol={"samples": config.samples, **asdict(config.sampling)},
        accuracy=float(np.mean(list(shares.values()))),
        interval=mean_interval(list(shares.values())),
        families=family_scores(problems, shares),
        mean_reasoning_tokens=_mean_known(trace.reasoning_tokens for trace in traces),
        mean_completion_tokens=_mean_known(tokens),
        truncation_rate=float(np.mean([not trace.closed for trace in traces])),
        limit_rate=float(np.mean([trace.finish_reason == "length" for trace in traces])),
        tokens_per_s=respondent.tokens_per_s(problems),
        batch_tokens_per_s=None if resumed or len(tokens) < len(traces) else sum(tokens) / sampling_s,
        batch_size=config.batch_size,
        bytes=respondent.weight_bytes,
        at_k=_at_k(folder, config.samples),
    )


def _at_k(folder: Path, samples: int) -> dict[str, Score]:
    """Score what several samples of a problem find together; empty if there is only one of each."""
    if samples == 1:
        return {}
    by_problem = samples_by_problem(folder)
    values = {
        f"pass@{samples}": [float(is_passed(each)) for each in by_problem],
        f"maj@{samples}": [right for right, _ in votes_of(by_problem).values()],
    }
    return {name: _score(shares) for name, shares in values.items() if shares}


def _score(shares: Sequence[float]) -> Score:
    return Score(accuracy=float(np.mean(shares)), interval=mean_interval(shares), problems=len(shares))


def _mean_known(counts: Iterable[int | None]) -> float | None:
    known = [count for count in counts if count is not None]
    return float(np.mean(known)) if known else None


def family_scores(problems: Sequence[Problem], shares: dict[str, float]) -> dict[str, Score]:
    """Compute the accuracy by family, in the order in which the families first occur."""
    by_family = defaultdict(list)
    for problem in problems:
        by_family[problem.family].append(shares[problem.id])
    return {family: _score(values) for family, values in by_family.items()}
