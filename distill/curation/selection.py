"""Chooses training examples from facts: each trace is kept, or dropped by the first filter that it fails.

    facts ── given problem? ── outside the test split? ── complete and fit? ── language, benchmark ── right? ── length?
        ── new? ── among the first k of its problem? ── within the mix? ──> kept

So kept and dropped traces add up to all. Completeness and fitness are checked before correctness: a thought mistaken
for an answer is often graded wrong, and the teacher is not to blame for that. Of equal traces the preferred one stays:
the first, or with `best-of` the best.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from distill.curation.facts import NO_REFERENCE, RIGHT, UNJUDGED, WRONG
from distill.curation.near_duplicates import near_duplicates
from distill.curation.reasons import CODES, KEPT
from distill.curation.word_numbers import mixed

Keep = Literal["verified", "majority", "best-of", "all"]
KEEPS: tuple[Keep, ...] = ("verified", "majority", "best-of", "all")
DIFFICULTIES = {"easy": 0.75, "medium": 0.25, "hard": 0.0}
"""The least pass rate of a problem that is called so: the share of its traces that are right."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How training examples are chosen."""

    keep: Keep = "verified"
    best_by: Literal["length", "score"] = "length"
    """What makes a right trace the best of its problem: the fewest tokens, or the highest score and then these."""
    per_problem: int | None = None
    min_tokens: int = 0
    max_tokens: int | None = None
    languages: tuple[str, ...] = ()
    """Codes of the languages of thoughts; empty for all."""
    near_duplicates: float | None = None
    """The Jaccard similarity from which a trace is nearly another one; None for exact duplicates only."""
    difficulty: dict[str, float] = field(default_factory=dict)
    """Wished-for shares of `DIFFICULTIES`; empty for as they come."""
    long_share: float | None = None
    """The wished-for share of long thoughts; None for as they come."""
    long_tokens: int | None = None
    """The tokens from which a thought is long; None for those above the median."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The fate of each trace."""

    reasons: np.ndarray
    """A number of `reasons.CODES` for each trace, or `KEPT`."""
    stands_for: np.ndarray
    """For a duplicate the row of the trace that is kept in its place, else -1."""
    pass_rates: np.ndarray
    """The share of right traces of each problem; NaN without traces."""
    unmet: str
    """Why a wished-for mix cannot be had; empty if it can."""
    scarce: str
    """What a wished-for mix has too little of, so that others are dropped; empty if nothing is dropped for it."""


def select(
    facts: np.ndarray, rules: Rules, *, is_test: np.ndarray, in_majority: np.ndarray, signatures: np.ndarray
) -> Selection:
    """Decide on all traces. `is_test`: of each problem; `in_majority`: of each trace; `signatures`: one for each trace,
    needed for near duplicates only.
    """
    reasons = np.full(len(facts), KEPT, dtype=np.uint8)
    stands_for = np.full(len(facts), -1, dtype=np.int64)
    problem, known = facts["problem"], facts["known"]

    def drop(reason: str, where: np.ndarray) -> None:
        reasons[where & (reasons == KEPT)] = CODES[reason]

    drop("unknown_problem", problem < 0)
    if len(is_test):
        drop("test_split", is_test[problem])
    has_fault = (reasons == KEPT) & (facts["fault"] != KEPT)
    reasons[has_fault] = facts["fault"][has_fault]
    if rules.languages:
        told = np.array([b"", *(language.encode() for language in rules.languages)], dtype="S3")
        drop("language", ~np.isin(facts["language"], told))
    drop("contaminated", facts["shares"])
    if rules.keep in ("verified", "best-of"):
        drop("no_reference", known == NO_REFERENCE)
        drop("unjudged", known == UNJUDGED)
        drop("wrong", known == WRONG)
    elif rules.keep == "majority":
        drop("minority", ~in_majority)
    if rules.max_tokens is not None:
        drop("too_long", facts["tokens"] > rules.max_tokens)
    drop("too_short", facts["tokens"] < rules.min_tokens)

    order = _preference(facts, rules)
    _drop_duplicates(facts["thought"], order, reasons, stands_for)
    if rules.near_duplicates is not None:
        rows = order[reasons[order] == KEPT]
        other = near_duplicates(signatures[rows], rules.near_duplicates)
        near = other >= 0
        stands_for[rows[near]] = rows[other[near]]
        reasons[rows[near]] = CODES["near_duplicate"]
    per_problem = 1 if rules.keep == "best-of" else rules.per_problem
    if per_problem is not None:
        rows = order[reasons[order] == KEPT]
        reasons[rows[_places(problem[rows]) >= per_problem]] = CODES["surplus"]
    is_right = in_majority if rules.keep == "majority" else known == RIGHT
    rates = _pass_rates(problem, is_right, len(is_test))
    unmet, scarce = _drop_surplus_of_mix(facts, rates, rules, reasons)
    return Selection(reasons=reasons, stands_for=stands_for, pass_rates=rates, unmet=unmet, scarce=scarce)


def difficulty_of(pass_rates: np.ndarray) -> np.ndarray:
    """Return the number of each rate's bin in `DIFFICULTIES`."""
    names = list(DIFFICULTIES)
    return np.select([pass_rates >= DIFFICULTIES[name] for name in names[:-1]], range(len(names) - 1), len(names) - 1)


def _preference(facts: np.ndarray, rules: Rules) -> np.ndarray:
    """Return the rows in the order in which they are kept."""
    rows = np.arange(len(facts))
    if rules.keep != "best-of":
        return rows
    score = -facts["score"] if rules.best_by == "score" else np.zeros(len(facts), dtype=np.float32)
    return np.lexsort((rows, facts["tokens"], score))


def _drop_duplicates(thoughts: np.ndarray, order: np.ndarray, reasons: np.ndarray, stands_for: np.ndarray) -> None:
    rows = order[reasons[order] == KEPT]
    _, first, inverse = np.unique(thoughts[rows], return_index=True, return_inverse=True)
    kept = first[inverse]
    again = kept != np.arange(len(rows))
    stands_for[rows[again]] = rows[kept[again]]
    reasons[rows[again]] = CODES["duplicate"]


def _places(groups: np.ndarray) -> np.ndarray:
    """Return for each entry how many before it belong to its group."""
    if not len(groups):
        return groups.astype(np.int64)
    by_group = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[by_group], prepend=-1))
    sizes = np.diff(np.append(starts, len(groups)))
    places = np.empty(len(groups), dtype=np.int64)
    places[by_group] = np.arange(len(groups)) - np.repeat(starts, sizes)
    return places


def _pass_rates(problem: np.ndarray, is_right: np.ndarray, problems: int) -> np.ndarray:
    given = problem >= 0
    of, right = problem[given], is_right[given]
    with np.errstate(invalid="ignore"):
        rates: np.ndarray = np.bincount(of, weights=right, minlength=problems) / np.bincount(of, minlength=problems)
    return rates


def _drop_surplus_of_mix(facts: np.ndarray, rates: np.ndarray, rules: Rules, reasons: np.ndarray) -> tuple[str, str]:
    """Drop traces at random until the kept ones have the wished-for shares.

    Return why that cannot be, if it cannot, and what is too scarce to keep more, if any are dropped.
    """
    rows = np.flatnonzero(reasons == KEPT)
    if not len(rows) or not (rules.difficulty or rules.long_share is not None):
        return "", ""
    cell, shares, names = np.zeros(len(rows), dtype=np.int64), np.ones(1), [""]
    if rules.difficulty:
        names = list(DIFFICULTIES)
        cell = difficulty_of(rates[facts["problem"][rows]])
        shares = np.array([rules.difficulty.get(name, 0.0) for name in names])
    if rules.long_share is not None:
        lengths = facts["thought_tokens"][rows]
        is_long = lengths > np.median(lengths) if rules.long_tokens is None else lengths >= rules.long_tokens
        cell = 2 * cell + is_long
        shares = np.outer(shares, [1 - rules.long_share, rules.long_share]).ravel()
        names = [f"{name} {length}".strip() for name in names for length in ("short", "long")]
    counts = np.bincount(cell, minlength=len(shares))
    wished = shares > 0
    if lacking := [
        name for name, is_wished, count in zip(names, wished, counts, strict=True) if is_wished and not count
    ]:
        return f"none of the {len(rows):,} traces that are left is {' or '.join(lacking)}", ""
    scarcest = int(np.argmin(np.divide(counts, shares, out=np.full(len(shares), np.inf), where=wished)))
    total = counts[scarcest] / shares[scarcest]
    room = np.rint(total * shares).astype(np.int64)
    by_chance = np.argsort(mixed([facts["thought"][rows], np.uint64(rules.seed)]), kind="stable")
    place = np.empty(len(rows), dtype=np.int64)
    place[by_chance] = _places(cell[by_chance])
    is_dropped = place >= room[cell]
    reasons[rows[is_dropped]] = CODES["mix"]
    return "", f"{counts[scarcest]:,} of {len(rows):,} traces are {names[scarcest]}" if is_dropped.any() else ""
