"""Writes the page of a curation: what was kept, why the rest was not, lengths, pass rates, and traces of each fate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from distill.curation.at_size.training_set import KEPT_NAME, Shown
from distill.curation.facts import NO_REFERENCE
from distill.curation.reasons import DROPS, KEPT, Counts
from distill.curation.selection import DIFFICULTIES, Rules, Selection, difficulty_of
from toolkit.errors import MissingExtra
from toolkit.figures.html_page import figure, page, section, text
from toolkit.figures.tables import percent
from toolkit.runs import replace_text
from toolkit.terminal import counted

DRAWN = 200_000
"""The most traces whose lengths are drawn; of more, as many spread over all."""
MOST_OF_QUESTION = 90
"""The most characters of a question's first line, by which a trace is listed."""
MOST_CHARACTERS = 6_000
"""The most characters of a thought on the page; its middle is left out."""


def write_page(
    path: Path,
    facts: np.ndarray,
    selection: Selection,
    counts: Counts,
    shown: Mapping[str, Sequence[Shown]],
    rules: Rules,
) -> None:
    """Write the page. Raises `MissingExtra` if matplotlib is not installed."""
    try:
        from toolkit.figures import charts
    except ImportError as error:
        raise MissingExtra("matplotlib", "distill") from error
    measured = facts["tokens"] > 0
    kept, dropped = (_some(facts["tokens"][measured & where]) for where in _fates(selection))
    rates = selection.pass_rates[~np.isnan(selection.pass_rates)]
    graded = not (facts["known"] == NO_REFERENCE).all() or rules.keep == "majority"
    sections = [
        _headline(counts),
        _cards(facts, selection, counts),
        section(
            "Why traces were dropped",
            figure(charts.curation(counts.kept, counts.drops), f"What became of {counted(counts.traces, 'trace')}."),
            _reasons(counts),
        ),
        section("Lengths", figure(charts.token_lengths(kept, dropped), "Traces with a fault are not measured.")),
        section("Pass rates", figure(charts.pass_rates(_some(rates)), _bins(rates, rules))) if graded else "",
        section("Traces of each fate", *_examples(shown)),
        section("How they were chosen", _rules(rules)),
    ]
    replace_text(path, page("What is learned from", "".join(sections)))


def _fates(selection: Selection) -> tuple[np.ndarray, np.ndarray]:
    return selection.reasons == KEPT, selection.reasons != KEPT


def _some(values: np.ndarray) -> list[float]:
    step = -(-len(values) // DRAWN) or 1
    some: list[float] = values[::step].tolist()
    return some


def _headline(counts: Counts) -> str:
    share = percent(counts.kept / max(counts.traces, 1))
    return (
        '<header><p class="kicker">reasoning-edge</p><h1>What is learned from</h1><p class="lead">'
        f"<b>{counts.kept:,}</b> of {counted(counts.traces, 'trace')} were kept ({share}).</p></header>"
    )


def _cards(facts: np.ndarray, selection: Selection, counts: Counts) -> str:
    kept = facts[selection.reasons == KEPT]
    problems = len(np.unique(kept["problem"]))
    cards = [
        ("Kept traces", f"{counts.kept:,}", f"of {counts.traces:,}"),
        ("Problems", f"{problems:,}", f"of {len(selection.pass_rates):,}"),
        ("Tokens, median", f"{np.median(kept['tokens']):,.0f}", f"{kept['tokens'].sum(dtype=np.int64):,} together"),
        ("Longest", f"{kept['tokens'].max():,}", "tokens"),
    ]
    return '<div class="cards">' + "".join(_card(*card) for card in cards) + "</div>"


def _card(name: str, figure: str, below: str) -> str:
    return (
        f'<div class="card" style="--row: var(--student)"><h3>{name}</h3><p class="big">{figure}</p>'
        f'<p class="small">{below}</p></div>'
    )


def _reasons(counts: Counts) -> str:
    rows = "".join(
        f"<tr><th scope=row>{reason}</th><td>{counts.drops[reason]:,}</td>"
        f"<td>{percent(counts.drops[reason] / counts.traces)}</td>"
        f"<td class=words>{text(what)}</td><td class=words>{text(remedy)}</td></tr>"
        for reason, (what, remedy) in DROPS.items()
        if counts.drops[reason]
    )
    head = "<th scope=col>traces</th><th scope=col>share</th><th scope=col class=words>traces that are …</th>"
    head += "<th scope=col class=words>what helps</th>"
    table = f'<table class="reasons"><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _bins(rates: np.ndarray, rules: Rules) -> str:
    found = np.bincount(difficulty_of(rates), minlength=len(DIFFICULTIES)) if len(rates) else [0] * len(DIFFICULTIES)
    bins = ", ".join(f"{count:,} {name}" for name, count in zip(DIFFICULTIES, found, strict=True))
    right = "whose answer is the most frequent one" if rules.keep == "majority" else "that are right"
    return f"Problems by the share of their traces {right}: {bins}."


def _examples(shown: Mapping[str, Sequence[Shown]]) -> Iterator[str]:
    for name, traces in shown.items():
        if traces:
            what = "" if name == KEPT_NAME else f' <span class="small">{text(DROPS[name][0])}</span>'
            yield f"<article><h3>{name}{what}</h3>{''.join(map(_example, traces))}</article>"


def _example(shown: Shown) -> str:
    trace, problem = shown.trace, shown.problem
    question = problem.transcript.strip() if problem else f"problem {trace.problem_id}, which is not given"
    first = next(iter(question.splitlines()), "")
    first = first if len(first) <= MOST_OF_QUESTION else first[: MOST_OF_QUESTION - 1] + "…"
    tokens = "" if trace.completion_tokens is None else f'<span class="small">{trace.completion_tokens:,} tokens</span>'
    detail = f'<p class="note">{text(shown.detail)}</p>' if shown.detail else ""
    return (
        f'<details class="said example"><summary><code>{text(first)}</code>{tokens}</summary>{detail}'
        f'<pre class="question">{text(_cut(question))}</pre>'
        f'<pre class="thought">{text(_cut(trace.reasoning.strip()))}</pre>'
        f"<pre>{text(_cut(trace.answer.strip()))}</pre></details>"
    )


def _cut(whole: str) -> str:
    half = MOST_CHARACTERS // 2
    return whole if len(whole) <= MOST_CHARACTERS else f"{whole[:half]}\n…\n{whole[-half:]}"


def _rules(rules: Rules) -> str:
    given = {
        name: value for name, value in vars(rules).items() if value or (name == "long_share" and value is not None)
    }
    if rules.keep != "best-of":
        del given["best_by"]
    said = ", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in given.items())
    return (
        "<p>A trace is dropped by the first reason in this order that holds for it: "
        f'{", ".join(reason.replace("_", " ") for reason in DROPS)}.</p><p class="small">Rules: {text(said)}.</p>'
    )


def _value(value: object) -> str:
    """Write a rule's value in words."""
    if isinstance(value, dict):
        return " and ".join(f"{name} {share}" for name, share in value.items())
    return " and ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
