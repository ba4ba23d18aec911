"""Builds the ledger: all stages measured on the same held-out problems, to show what each gained or lost.

    eval/<row>/                       one run folder for each row, written by distill.evaluation.evaluate
    ├── problems.jsonl                the questions
    ├── traces.jsonl verdicts.jsonl   the answers, and whether they are right
    └── manifest.json                 `measured` is the row: an Evaluation
    ledger.json                       {problems_digest, problems, protocol, rows: {name: Evaluation}, comparisons, versions,
                                  recipe}

Rows that were measured on other problems or by another protocol are refused, since they cannot be compared.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from toolkit.errors import InputError
from toolkit.figures.intervals import difference_interval
from toolkit.figures.recipe import Recipe, recipe_line
from toolkit.figures.tables import aligned_table, interval_text, markdown_table, percent, points
from toolkit.records import Problem, Record, Trace, Verdict, read_records
from toolkit.runs import read_manifest, replace_text, versions
from toolkit.terminal import counted

PROBLEMS, TRACES, VERDICTS, FAILED = "problems.jsonl", "traces.jsonl", "verdicts.jsonl", "failed.jsonl"
TITLES = {
    "teacher": "Teacher",
    "base": "Base student",
    "student": "Distilled student",
    "logits": "Student by logits",
    "on_policy": "On-policy student",
    "rl": "Reinforced student",
    "int4": "int4 student",
}
"""Rows of what the toolkit makes, in the order in which it makes them; `toolkit demo` makes four of them."""
COMPARED = (
    ("student", "base"),
    ("student", "teacher"),
    ("logits", "student"),
    ("on_policy", "student"),
    ("rl", "student"),
    ("int4", "student"),
)


class Score(TypedDict):
    """A share of right answers with its bootstrap interval."""

    accuracy: float
    interval: list[float]
    problems: int


@dataclass(frozen=True, kw_only=True)
class Evaluation(Record):
    """One row: a model measured on the frozen problems."""

    model: str
    model_digest: str
    problems_digest: str
    problems: int
    protocol: dict[str, Any]
    """Samples of each problem, all sampling settings and the length limit, which must be equal in compared rows."""
    accuracy: float
    interval: list[float]
    families: dict[str, Score]
    mean_reasoning_tokens: float | None
    """Over all samples, truncated ones too; None if a server does not count them."""
    mean_completion_tokens: float | None
    truncation_rate: float
    """Share of samples whose thinking was never closed; they count as wrong."""
    limit_rate: float
    """Share of samples that reached the length limit, in their thinking or in their answer."""
    tokens_per_s: float | None
    """Decode speed of one stream after its prompt, the median over the same few prompts for every row; None for an
    endpoint."""
    batch_tokens_per_s: float | None
    """Sampled tokens of the whole evaluation by its time; None if it was interrupted, or they were not counted."""
    batch_size: int
    bytes: int
    """Bytes of the folder's weights; 0 for an endpoint."""
    asked: dict[str, Any] = field(default_factory=dict)
    """How the problems were chosen: their `split`, how many were `given`, how many of those were `trained` on, and
    whether these were `left_out`; empty for the frozen problems."""
    at_k: dict[str, Score] = field(default_factory=dict)
    """`pass@k` and `maj@k` (`distill.evaluation.several_samples`) where problems have k > 1 samples."""


@dataclass(frozen=True, kw_only=True)
class Comparison(Record):
    """How much more accurate one row is than another, compared problem by problem."""

    row: str
    against: str
    difference: float
    interval: list[float]


@dataclass(frozen=True, kw_only=True)
class Ledger(Record):
    """All rows, measured on the same problems by the same protocol."""

    problems_digest: str
    problems: int
    protocol: dict[str, Any]
    rows: dict[str, Evaluation]
    comparisons: list[Comparison]
    versions: dict[str, str]
    recipe: Recipe | None = None
    """How a run of the demo was sized to its machine."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One graded trace of an evaluation folder, with its problem."""

    problem: Problem
    trace: Trace
    verdict: Verdict


def build_ledger(folders: Mapping[str, Path], recipe: Recipe | None = None) -> Ledger:
    """Put finished evaluation folders side by side, by row name.

    Raises `InputError` if one is not a finished evaluation, or two were measured on different problems or by different
    protocols.
    """
    rows = {name: read_evaluation(folder) for name, folder in folders.items()}
    first_name, first = next(iter(rows.items()))
    for name, row in rows.items():
        for what, here, there in (
            ("problems", row.problems_digest, first.problems_digest),
            ("protocol", row.protocol, first.protocol),
        ):
            if here != there:
                raise InputError(
                    f"row {name!r} must be measured by the same {what} ({here}) as row {first_name!r} ({there}); "
                    "evaluate one of them again"
                )
    shares = {name: _shares(folder) for name, folder in folders.items()}
    comparisons = [
        _compare(name, shares[name], against, shares[against])
        for name, against in COMPARED
        if name in rows and against in rows
    ]
    return Ledger(
        problems_digest=first.problems_digest,
        problems=first.problems,
        protocol=first.protocol,
        rows=rows,
        comparisons=comparisons,
        versions=versions(),
        recipe=recipe,
    )


def read_evaluation(folder: Path) -> Evaluation:
    """Read the row that an evaluation folder holds."""
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None or manifest.get("stage") != "eval":
        raise InputError(f"{folder} is no finished evaluation; make one with: toolkit eval")
    return Evaluation.from_dict(manifest["measured"])


def read_outcomes(folder: Path) -> list[Outcome]:
    """Read every graded trace of an evaluation folder, in the order of its problems."""
    problems = {problem.id: problem for problem in read_records(folder / PROBLEMS, Problem)}
    traces = {(trace.problem_id, trace.sample): trace for trace in read_records(folder / TRACES, Trace)}
    return [
        Outcome(problem=problems[v.problem_id], trace=traces[v.problem_id, v.sample], verdict=v)
        for v in read_records(folder / VERDICTS, Verdict)
    ]


def correct_shares(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Return the share of right samples by problem id."""
    by_problem = defaultdict(list)
    for verdict in verdicts:
        by_problem[verdict.problem_id].append(verdict.correct)
    return {problem_id: float(np.mean(correct)) for problem_id, correct in by_problem.items()}


def write_ledger(path: Path, ledger: Ledger) -> None:
    replace_text(path, json.dumps(ledger.to_dict(), indent=1, ensure_ascii=False) + "\n")


def ledger_table(ledger: Ledger) -> str:
    """Format the ledger for a terminal: one table of stages, one of families."""
    families = [["accuracy by family", *map(title, ledger.rows)], *_family_cells(ledger)]
    gains = "\n".join(comparison_sentence(comparison) for comparison in ledger.comparisons)
    return "\n\n".join(
        part
        for part in (aligned_table(_stage_cells(ledger)), aligned_table(families), gains, _lines_below(ledger))
        if part
    )


def ledger_markdown(ledger: Ledger) -> str:
    """Format the ledger for a README: the same two tables in Markdown, and the protocol."""
    families = [["accuracy by family", *map(title, ledger.rows)], *_family_cells(ledger)]
    return f"{markdown_table(_stage_cells(ledger))}\n\n{markdown_table(families)}\n\n{_lines_below(ledger)}\n"


def title(name: str) -> str:
    return TITLES.get(name, name)


def speed(tokens_per_s: float | None) -> str:
    return "–" if tokens_per_s is None else f"{tokens_per_s:.1f}"


def megabytes(size_bytes: int) -> str:
    if size_bytes == 0:
        return "–"
    return f"{size_bytes / 1e6:,.1f} MB" if size_bytes < 1e8 else f"{size_bytes / 1e6:,.0f} MB"


def comparison_sentence(comparison: Comparison) -> str:
    low, high = comparison.interval
    return (
        f"{title(comparison.row)} against {title(comparison.against).lower()}: "
        f"{points(comparison.difference)} points (95 % interval {points(low)} to {points(high)})"
    )


def protocol_line(ledger: Ledger) -> str:
    """Return one sentence with everything that a figure depends on."""
    trained = max(
        (row.asked.get("trained", 0) for row in ledger.rows.values() if not row.asked.get("left_out")), default=0
    )
    problems = (
        f"{counted(ledger.problems, 'problem')}, {trained} of which {'was' if trained == 1 else 'were'} trained on"
        if trained
        else counted(ledger.problems, "held-out problem" if _held_out(ledger) else "problem")
    )
    return (
        f"{problems} (digest {ledger.problems_digest}), {sampling_text(ledger.protocol)}; "
        "brackets hold 95 % bootstrap intervals; tokens/s is the decode speed of one stream."
    )


def _held_out(ledger: Ledger) -> bool:
    """Whether the problems are known to be held out: the frozen ones, those of a held-out split, or those that are left
    where the training questions are recorded."""
    asked = [row.asked for row in ledger.rows.values() if row.asked]
    return all(one.get("split") in ("test", "validation") or not one.get("unrecorded", [""]) for one in asked)


def _lines_below(ledger: Ledger) -> str:
    """Return the text below the tables: the protocol, and how the run was sized."""
    return "\n\n".join([protocol_line(ledger), *([recipe_line(ledger.recipe)] if ledger.recipe else [])])


def sampling_text(protocol: Mapping[str, Any]) -> str:
    """Describe how often each problem was answered, and within which limits."""
    how = (
        "greedy"
        if protocol["temperature"] == 0
        else f"temperature {protocol['temperature']}, top-p {protocol['top_p']}"
    )
    limit = counted(protocol["max_new_tokens"], "new token")
    return f"{counted(protocol['samples'], 'sample')} a problem, {how}, at most {limit}"


def _stage_cells(ledger: Ledger) -> list[list[str]]:
    """Return the table of stages."""
    at_k = names_at_k(ledger.rows.values())
    header = ["stage", accuracy_name(ledger), *at_k, "thinking tokens", "truncated", "tokens/s", "weights"]
    return [header, *(_cells(name, row, at_k) for name, row in ledger.rows.items())]


def accuracy_name(ledger: Ledger) -> str:
    """Return what accuracy is called: with k > 1 samples a problem it is avg@k, their mean."""
    samples = ledger.protocol["samples"]
    return "accuracy" if samples == 1 else f"avg@{samples}"


def names_at_k(rows: Iterable[Evaluation]) -> list[str]:
    """Return the scores of several samples that some row has, such as pass@8 and maj@8."""
    return list(dict.fromkeys(name for row in rows for name in row.at_k))


def score_text(score: Score) -> str:
    return f"{percent(score['accuracy'])} [{interval_text(score['interval'])}]"


def _cells(name: str, row: Evaluation, at_k: Sequence[str]) -> list[str]:
    return [
        title(name),
        f"{percent(row.accuracy)} [{interval_text(row.interval)}]",
        *(score_text(row.at_k[one]) if one in row.at_k else "–" for one in at_k),
        "–" if row.mean_reasoning_tokens is None else f"{row.mean_reasoning_tokens:.0f}",
        percent(row.truncation_rate),
        speed(row.tokens_per_s),
        megabytes(row.bytes),
    ]


def _family_cells(ledger: Ledger) -> list[list[str]]:
    families = next(iter(ledger.rows.values())).families
    return [
        [family.replace("_", " "), *(percent(row.families[family]["accuracy"]) for row in ledger.rows.values())]
        for family in families
    ]


def _shares(folder: Path) -> dict[str, float]:
    return correct_shares(read_records(folder / VERDICTS, Verdict))


def _compare(name: str, shares: Mapping[str, float], against: str, others: Mapping[str, float]) -> Comparison:
    assert shares.keys() == others.keys(), "rows of one digest hold the same problems"
    ours, theirs = list(shares.values()), [others[problem_id] for problem_id in shares]
    return Comparison(
        row=name,
        against=against,
        difference=float(np.mean(ours) - np.mean(theirs)),
        interval=difference_interval(ours, theirs),
    )
