"""Tabulates what each of the teacher's stages does: all stages and seeds on the same held-out problems and requests.

A problem's mean covers its samples under every seed, and the problems are resampled; so an interval says what other
problems of the kind would have shown, and the spread of the seeds is given beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.teach.stages import STAGES, TITLES
from distill.verification.refusals import HARMFUL, is_refusal
from distill.verification.rewards import completion_of, language_consistency, well_formed
from toolkit.figures.intervals import difference_interval, mean_interval
from toolkit.figures.ledger import Outcome, read_outcomes
from toolkit.figures.tables import interval_text, markdown_table, percent, points
from toolkit.records import Problem

LIFTED, LIFTED_FROM = "reason_rl", "cold_start"


def _is_request(problem: Problem) -> bool:
    return HARMFUL in problem.metadata


_MEASURES: Mapping[str, tuple[Callable[[Problem], bool], Callable[[Outcome], float]]] = {
    "accuracy": (lambda p: not _is_request(p), lambda o: o.verdict.correct),
    "format": (lambda p: True, lambda o: well_formed(o.problem, completion_of(o.trace))),
    "language": (lambda p: True, lambda o: language_consistency(o.problem, completion_of(o.trace))),
    "harmful refused": (lambda p: p.metadata.get(HARMFUL) is True, lambda o: is_refusal(o.trace.answer)),
    "harmless refused": (lambda p: p.metadata.get(HARMFUL) is False, lambda o: is_refusal(o.trace.answer)),
    "harmless answered": (lambda p: p.metadata.get(HARMFUL) is False, lambda o: o.verdict.correct),
}
"""For each measure the problems that it covers, and the value of one sample."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """A mean over problems with its interval, and the mean of each seed alone."""

    mean: float
    interval: list[float]
    by_seed: list[float]


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One stage under all seeds."""

    stage: str
    measures: Mapping[str, Share]
    families: Mapping[str, Share]
    reasoning_tokens: float


@dataclass(frozen=True, kw_only=True)
class Lift:
    """The gain in accuracy of `LIFTED` over `LIFTED_FROM` on one family, paired problem by problem."""

    family: str
    before: float
    difference: float
    interval: list[float]

    @property
    def is_certain(self) -> bool:
        return self.interval[0] > 0


@dataclass(frozen=True, kw_only=True)
class StageTable:
    """All stages, and the gains of reinforcement."""

    rows: list[StageRow]
    lifts: list[Lift]
    seeds: int

    def markdown(self) -> str:
        """Render the table of stages, then that of families."""
        head = ["stage", *self.rows[0].measures, "reasoning tokens"]
        lines = [
            [
                TITLES[row.stage],
                *(f"{percent(share.mean)} {interval_text(share.interval)}" for share in row.measures.values()),
                f"{row.reasoning_tokens:.0f}",
            ]
            for row in self.rows
        ]
        families = [
            [family, *(percent(row.families[family].mean) for row in self.rows), *self._lift_cells(family)]
            for family in self.rows[0].families
        ]
        spread = [
            ["each seed", *(", ".join(percent(s) for s in row.measures["accuracy"].by_seed) for row in self.rows)]
            + [""] * bool(self.lifts)
        ]
        family_head = ["accuracy", *(TITLES[row.stage] for row in self.rows)]
        if self.lifts:
            family_head.append(f"{TITLES[LIFTED]} − {TITLES[LIFTED_FROM]}")
        return f"{markdown_table([head, *lines])}\n\n{markdown_table([family_head, *families, *spread])}"

    def _lift_cells(self, family: str) -> list[str]:
        lifts = [lift for lift in self.lifts if lift.family == family]
        return [
            f"{points(lift.difference)} ({points(lift.interval[0])} to {points(lift.interval[1])})" for lift in lifts
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "seeds": self.seeds,
            "stages": {
                row.stage: {
                    "measures": {name: vars(share) for name, share in row.measures.items()},
                    "families": {name: vars(share) for name, share in row.families.items()},
                    "reasoning_tokens": row.reasoning_tokens,
                }
                for row in self.rows
            },
            "lifts": [vars(lift) for lift in self.lifts],
        }


def stage_table(evaluations: Mapping[str, Sequence[Path]]) -> StageTable:
    """Make the table from finished evaluation folders, one per seed of each stage, in the same order of seeds."""
    outcomes = {
        stage: [read_outcomes(folder) for folder in evaluations[stage]] for stage in STAGES if stage in evaluations
    }
    rows = [_row(stage, seeds) for stage, seeds in outcomes.items()]
    lifts = _lifts(outcomes[LIFTED_FROM], outcomes[LIFTED]) if {LIFTED, LIFTED_FROM} <= outcomes.keys() else []
    return StageTable(rows=rows, lifts=lifts, seeds=max(map(len, outcomes.values())))


def _row(stage: str, seeds: Sequence[Sequence[Outcome]]) -> StageRow:
    families = dict.fromkeys(o.problem.family for o in seeds[0] if not _is_request(o.problem))
    right = _MEASURES["accuracy"][1]
    return StageRow(
        stage=stage,
        measures={name: _share(seeds, of, value) for name, (of, value) in _MEASURES.items() if _any(seeds, of)},
        families={name: _share(seeds, lambda p, name=name: p.family == name, right) for name in families},  # type: ignore[misc]
        reasoning_tokens=float(np.mean([o.trace.reasoning_tokens for seed in seeds for o in seed])),
    )


def _any(seeds: Sequence[Sequence[Outcome]], of: Callable[[Problem], bool]) -> bool:
    return any(of(outcome.problem) for outcome in seeds[0])


def _share(
    seeds: Sequence[Sequence[Outcome]], of: Callable[[Problem], bool], value: Callable[[Outcome], float]
) -> Share:
    means = list(_problem_means(seeds, of, value).values())
    by_seed = [float(np.mean(list(_problem_means([seed], of, value).values()))) for seed in seeds]
    return Share(mean=float(np.mean(means)), interval=mean_interval(means), by_seed=by_seed)


def _problem_means(
    seeds: Sequence[Sequence[Outcome]], of: Callable[[Problem], bool], value: Callable[[Outcome], float]
) -> dict[str, float]:
    values = defaultdict(list)
    for outcome in (outcome for seed in seeds for outcome in seed):
        if of(outcome.problem):
            values[outcome.problem.id].append(float(value(outcome)))
    return {problem_id: float(np.mean(of_problem)) for problem_id, of_problem in values.items()}


def _lifts(before: Sequence[Sequence[Outcome]], after: Sequence[Sequence[Outcome]]) -> list[Lift]:
    lifts = []
    right = _MEASURES["accuracy"][1]
    for family in dict.fromkeys(o.problem.family for o in before[0] if not _is_request(o.problem)):
        first, then = (
            _problem_means(seeds, lambda p, family=family: p.family == family, right)  # type: ignore[misc]
            for seeds in (before, after)
        )
        ids = list(first)
        pairs = [then[problem_id] for problem_id in ids], [first[problem_id] for problem_id in ids]
        lifts.append(
            Lift(
                family=family,
                before=float(np.mean(pairs[1])),
                difference=float(np.mean(pairs[0]) - np.mean(pairs[1])),
                interval=difference_interval(*pairs),
            )
        )
    return lifts
