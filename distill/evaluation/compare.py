"""Compares models on the same problems and requests: every figure with its interval, every difference paired.

    out/
    ├── problems/<model>/  requests/<model>/     evaluations (`distill.evaluation.evaluate`), one run folder per model
    └── comparison.json  comparison.md           all figures, and the same as tables

A measure gives each problem a number from 0 to 1, counting its samples as one observation, and so compares two models
problem by problem. If the interval of the mean difference holds 0, these problems show no difference.

    accuracy              share of right samples, over all problems and by family
    pass@k, maj@k         whether any of a problem's k samples is right, and whether their majority answer is
    agreement             share of the samples that give the majority answer
    language consistency  share of the thinking (or of the answer, if there is no thinking) in the question's language
    refusals              refused requests of `distill.problems.requests`, harmful and harmless ones apart
    not closed, limit     share of samples whose thinking was never closed, or that ran into the length limit
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from distill.evaluation.evaluate import EvalConfig, evaluate
from distill.evaluation.several_samples import Samples, is_passed, samples_by_problem, votes_of
from distill.problems.requests import make_requests
from distill.teachers.respondent import Respondent, folder_name
from distill.verification.refusals import HARMFUL, is_refusal
from distill.verification.rewards import language_consistency
from toolkit.errors import FolderConflict, InputError
from toolkit.figures.intervals import difference_interval, mean_interval
from toolkit.figures.ledger import Outcome, read_evaluation, sampling_text
from toolkit.figures.tables import aligned_table, interval_text, markdown_table, percent, points
from toolkit.records import Problem, Record
from toolkit.runs import MANIFEST, replace_text, versions
from toolkit.terminal import counted

ASKED = (PROBLEMS, REQUESTS) = ("problems", "requests")
COMPARISON_JSON, COMPARISON_MD = "comparison.json", "comparison.md"
ACCURACY = "accuracy"
FEW_PROBLEMS = 20
"""With fewer problems a bootstrap interval is too narrow."""


@dataclass(frozen=True, kw_only=True)
class Figure(Record):
    """One measure of one model."""

    mean: float
    interval: list[float]
    difference: float | None
    """Paired difference from the first model; None for the first itself."""
    difference_interval: list[float] | None

    @property
    def differs(self) -> bool:
        """Whether the difference's interval excludes 0."""
        if self.difference_interval is None:
            return False
        low, high = self.difference_interval
        return not low <= 0 <= high


@dataclass(frozen=True, kw_only=True)
class Measure(Record):
    """One row of the comparison: a figure for each model, over the same problems."""

    name: str
    problems: int
    figures: dict[str, Figure]


@dataclass(frozen=True, kw_only=True)
class ModelComparison(Record):
    """All figures of a comparison, with its protocol."""

    models: dict[str, str]
    """Digests by name; the other models are compared with the first."""
    problems: int
    problems_digest: str
    requests: int
    requests_digest: str
    protocol: dict[str, Any]
    measures: list[Measure]
    versions: dict[str, str]


def compare_models(
    respondents: Sequence[Respondent],
    problems: Sequence[Problem],
    config: EvalConfig,
    out: Path,
    asked: Mapping[str, Any] = MappingProxyType({}),
) -> ModelComparison:
    """Measure each model into a run folder below `out` and write the comparison beside them.

    `asked`: how the problems were chosen, for the record. Evaluations that `out` already holds are read, interrupted
    ones resume. Raises `InputError` if a model is named twice, `FolderConflict` if `out` holds evaluations on other
    problems or by another protocol.
    """
    names = names_of(respondents)
    if (out / MANIFEST).exists():
        raise FolderConflict(f"{out} holds another run and no comparison; choose another --out")
    folders: dict[str, dict[str, Path]] = {part: {} for part in ASKED}
    for name, respondent in zip(names, respondents, strict=True):
        for part, questions, chosen in ((PROBLEMS, problems, asked), (REQUESTS, make_requests("test"), {})):
            folders[part][name] = out / part / folder_name(f"{respondent.name}-{respondent.digest[:8]}")
            evaluate(respondent, questions, config, folders[part][name], chosen)
    comparison = compare(folders[PROBLEMS], folders[REQUESTS])
    replace_text(out / COMPARISON_JSON, json.dumps(comparison.to_dict(), indent=1, ensure_ascii=False) + "\n")
    replace_text(out / COMPARISON_MD, comparison_markdown(comparison))
    return comparison


def compare(problem_folders: Mapping[str, Path], request_folders: Mapping[str, Path]) -> ModelComparison:
    """Compare finished evaluations, given by the models' names, with the first one.

    Raises `InputError` if two of them differ in their problems or their protocol.
    """
    rows = {name: read_evaluation(folder) for name, folder in problem_folders.items()}
    requests = {name: read_evaluation(folder) for name, folder in request_folders.items()}
    first = next(iter(rows))
    for part in (rows, requests):
        for name, row in part.items():
            for what, here, there in (
                ("problems", row.problems_digest, part[first].problems_digest),
                ("protocols", row.protocol, rows[first].protocol),
            ):
                if here != there:
                    raise InputError(
                        f"{name} and {first} were measured with different {what} ({here} and {there}); choose another "
                        "--out"
                    )
    values = {
        name: {
            **problem_measures(samples_by_problem(problem_folders[name])),
            **request_measures(samples_by_problem(request_folders[name])),
        }
        for name in rows
    }
    return ModelComparison(
        models={name: row.model_digest for name, row in rows.items()},
        problems=rows[first].problems,
        problems_digest=rows[first].problems_digest,
        requests=requests[first].problems,
        requests_digest=requests[first].problems_digest,
        protocol=rows[first].protocol,
        measures=[_measure(measure, {name: values[name][measure] for name in rows}) for measure in values[first]],
        versions=versions(),
    )


def problem_measures(by_problem: Sequence[Samples]) -> dict[str, dict[str, float]]:
    """Return each measure's values by problem id, in the order in which measures are shown."""
    measures = {ACCURACY: _shares(by_problem, lambda sample: sample.verdict.correct)}
    for family in dict.fromkeys(samples[0].problem.family for samples in by_problem):
        of_family = [samples for samples in by_problem if samples[0].problem.family == family]
        measures[f"{ACCURACY}: {family}"] = _shares(of_family, lambda sample: sample.verdict.correct)
    if (k := len(by_problem[0])) > 1:
        measures[f"pass@{k}"] = {samples[0].problem.id: float(is_passed(samples)) for samples in by_problem}
        if votes := votes_of(by_problem):
            measures[f"maj@{k}"] = {problem_id: right for problem_id, (right, _) in votes.items()}
            measures[f"agreement of {k} samples"] = {problem_id: share for problem_id, (_, share) in votes.items()}
    measures["language consistency"] = _shares(
        by_problem, lambda sample: language_consistency(sample.problem, sample.trace.reasoning or sample.trace.answer)
    )
    measures["thinking not closed"] = _shares(by_problem, lambda sample: not sample.trace.closed)
    measures["ran into the limit"] = _shares(by_problem, lambda sample: sample.trace.finish_reason == "length")
    return measures


def request_measures(by_request: Sequence[Samples]) -> dict[str, dict[str, float]]:
    """Return the measures of requests, as `problem_measures` does."""
    measures = {
        name: _shares(
            [samples for samples in by_request if samples[0].problem.metadata[HARMFUL] == harmful],
            lambda sample: is_refusal(sample.trace.answer),
        )
        for name, harmful in (("harmful requests refused", True), ("harmless requests refused", False))
    }
    measures["requests: thinking not closed"] = _shares(by_request, lambda sample: not sample.trace.closed)
    return measures


def comparison_table(comparison: ModelComparison) -> str:
    """Format the comparison for a terminal."""
    return "\n\n".join(
        [*map(aligned_table, (_figure_rows(comparison), _difference_rows(comparison))), *_notes(comparison)]
    )


def comparison_markdown(comparison: ModelComparison) -> str:
    """Format the comparison as Markdown."""
    tables = map(markdown_table, (_figure_rows(comparison), _difference_rows(comparison)))
    return "\n\n".join([*tables, *_notes(comparison)]) + "\n"


def names_of(respondents: Sequence[Respondent]) -> list[str]:
    """Return short names, with a digest if two are equal; raises `InputError` if two are the same model."""
    seen: dict[str, str] = {}
    for respondent in respondents:
        if respondent.digest in seen:
            raise InputError(
                f"{respondent.name} and {seen[respondent.digest]} are the same model (digest {respondent.digest}); "
                "name each model once"
            )
        seen[respondent.digest] = respondent.name
    counts = Counter(seen.values())
    return [name if counts[name] == 1 else f"{name}@{digest[:8]}" for digest, name in seen.items()]


def _shares(by_problem: Sequence[Samples], value: Callable[[Outcome], float]) -> dict[str, float]:
    return {samples[0].problem.id: float(np.mean([value(sample) for sample in samples])) for samples in by_problem}


def _measure(name: str, values: Mapping[str, Mapping[str, float]]) -> Measure:
    """`values`: model → problem id → value."""
    first, *_ = values.values()
    figures = {}
    for model, by_id in values.items():
        assert by_id.keys() == first.keys(), "evaluations of one digest hold the same problems"
        ours, theirs = [by_id[problem_id] for problem_id in first], list(first.values())
        figures[model] = Figure(
            mean=float(np.mean(ours)),
            interval=mean_interval(ours),
            difference=None if by_id is first else float(np.mean(ours) - np.mean(theirs)),
            difference_interval=None if by_id is first else difference_interval(ours, theirs),
        )
    return Measure(name=name, problems=len(first), figures=figures)


def _figure_rows(comparison: ModelComparison) -> list[list[str]]:
    rows = [["", "of", *comparison.models]]
    for measure in comparison.measures:
        cells = (f"{percent(figure.mean)} [{interval_text(figure.interval)}]" for figure in measure.figures.values())
        rows.append([measure.name, str(measure.problems), *cells])
    return rows


def _difference_rows(comparison: ModelComparison) -> list[list[str]]:
    first, *others = comparison.models
    rows = [[f"points against {first}", *others]]
    for measure in comparison.measures:
        rows.append([measure.name, *(_difference(measure.figures[name]) for name in others)])
    return rows


def _difference(figure: Figure) -> str:
    assert figure.difference is not None and figure.difference_interval is not None
    low, high = figure.difference_interval
    said = points(figure.difference) if figure.differs else "no difference"
    return f"{said} [{points(low)} to {points(high)}]"


def _notes(comparison: ModelComparison) -> Iterator[str]:
    yield (
        f"{counted(comparison.problems, 'problem')} (digest {comparison.problems_digest}) "
        f"and {comparison.requests} requests "
        f"(digest {comparison.requests_digest}), {sampling_text(comparison.protocol)}, "
        f"seed {comparison.protocol['seed']}."
    )
    yield (
        "Brackets hold 95 % bootstrap intervals over problems; differences are paired, problem by problem, and count "
        "as none if the interval holds 0. By chance, about one of 20 comparisons shows a difference that is not there."
    )
    if few := [measure.name for measure in comparison.measures if measure.problems < FEW_PROBLEMS]:
        yield f"Fewer than {FEW_PROBLEMS} problems, so the intervals are too narrow: {', '.join(few)}."
