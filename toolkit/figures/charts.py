"""Draws the report's figures: measured numbers in, inline SVG out.

Colours are CSS variables (`var(--ink)` …), so one figure is readable on a light page, a dark page and paper; text stays
text. matplotlib knows no CSS variables, so each is drawn in a colour that stands for it and is replaced in the SVG.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from toolkit.figures.ledger import Evaluation, Ledger, title
from toolkit.figures.tables import percent

WIDTH_IN = 7.6
_STANDS_FOR = {"ink": "#010101", "muted": "#020202", "rule": "#030303"}
_ROW_COLORS = {"teacher": "#050505", "base": "#060606", "student": "#070707", "int4": "#080808", "other": "#090909"}
_MARKERS = {"teacher": "s", "base": "o", "student": "D", "logits": "<", "on_policy": ">", "rl": "P", "int4": "^"}
_STYLE: dict[Any, Any] = {  # matplotlib types its keys as literals
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": _STANDS_FOR["ink"],
    "axes.labelcolor": _STANDS_FOR["muted"],
    "axes.edgecolor": _STANDS_FOR["rule"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": _STANDS_FOR["rule"],
    "ytick.color": _STANDS_FOR["rule"],
    "xtick.labelcolor": _STANDS_FOR["muted"],
    "ytick.labelcolor": _STANDS_FOR["ink"],
    "grid.color": _STANDS_FOR["rule"],
    "grid.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}
_styled = rc_context(_STYLE)


@_styled
def accuracy_by_stage(ledger: Ledger) -> str:
    """Draw a bar for each row, with its interval and its figure."""
    figure, axes = _figure(0.62 * len(ledger.rows) + 0.5)
    for i, (name, row) in enumerate(ledger.rows.items()):
        axes.barh(i, 100 * row.accuracy, height=0.58, color=_color(name), linewidth=0)
        low, high = (100 * bound for bound in row.interval)
        axes.plot([low, high], [i, i], color=_STANDS_FOR["ink"], linewidth=1.6, solid_capstyle="butt")
        for bound in (low, high):
            axes.plot([bound, bound], [i - 0.12, i + 0.12], color=_STANDS_FOR["ink"], linewidth=1.6)
        axes.text(high + 1.5, i, percent(row.accuracy), va="center", fontweight="bold", fontsize=11)
    axes.set_yticks(range(len(ledger.rows)), [title(name) for name in ledger.rows])
    axes.set_ylim(len(ledger.rows) - 0.45, -0.55)
    _percent_axis(axes, 109)
    return _svg(figure, "Accuracy of each stage on all held-out problems, with 95 % intervals")


@_styled
def accuracy_by_family(ledger: Ledger) -> str:
    """Draw a dot for each row in each family, with its interval."""
    families = list(next(iter(ledger.rows.values())).families)
    figure, axes = _figure(0.2 * len(ledger.rows) * len(families) + 0.3 * len(families) + 0.7)
    step = 0.74 / len(ledger.rows)
    for r, (name, row) in enumerate(ledger.rows.items()):
        heights = [i + (r - (len(ledger.rows) - 1) / 2) * step for i in range(len(families))]
        scores = [row.families[family] for family in families]
        for height, score in zip(heights, scores, strict=True):
            axes.plot([100 * bound for bound in score["interval"]], [height] * 2, color=_color(name), linewidth=1.8)
        axes.plot(
            [100 * score["accuracy"] for score in scores],
            heights,
            _MARKERS.get(name, "v"),
            color=_color(name),
            markersize=5.5,
            label=title(name),
            clip_on=False,
        )
    for i in range(1, len(families)):
        axes.axhline(i - 0.5, color=_STANDS_FOR["rule"], linewidth=0.7)
    axes.set_yticks(range(len(families)), [family.replace("_", " ") for family in families])
    axes.set_ylim(len(families) - 0.5, -0.5)
    _percent_axis(axes, 101.5)
    axes.set_xlim(left=-1.5)  # a dot at 0 stays clear of the labels
    _legend_above(figure, axes)
    return _svg(figure, "Accuracy of each stage by family, with 95 % intervals")


@_styled
def loss_curve(steps: Sequence[Mapping[str, Any]]) -> str:
    """Draw the training loss by step, as logged and smoothed."""
    figure, axes = _figure(2.6)
    x, loss = [step["step"] for step in steps], np.array([step["loss"] for step in steps])
    axes.plot(x, loss, color=_color("student"), linewidth=0.9, alpha=0.45, label="as logged")
    axes.plot(x, smoothed(loss), color=_color("student"), linewidth=2.2, label="smoothed")
    axes.grid(axis="y")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss of completion tokens (nats)", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_above(figure, axes)
    return _svg(figure, "Training loss by step")


def smoothed(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the mean of each value and its neighbours, of which there are fewer at the ends."""
    reach = max(1, len(values) // 25)
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return np.array([window.mean() for window in windows])


@_styled
def thinking_lengths(lengths: Mapping[str, Sequence[int]]) -> str:
    """Draw for each row that thinks how its thinking tokens are distributed over the held-out problems."""
    figure, axes = _figure(0.75 * len(lengths) + 0.6)
    longest = max(max(values) for values in lengths.values())
    edges = np.linspace(0, longest + 1, 49)
    for i, (name, values) in enumerate(lengths.items()):
        counts, _ = np.histogram(values, bins=edges)
        tops = i - 0.8 * counts / counts.max()
        axes.stairs(tops, edges, baseline=i, fill=True, color=_color(name), alpha=0.85, linewidth=0)
        axes.plot([0, longest], [i, i], color=_STANDS_FOR["rule"], linewidth=0.7)
        middle = float(np.median(values))
        axes.plot([middle, middle], [i, i - 0.86], color=_STANDS_FOR["ink"], linewidth=1.4)
        axes.text(longest, i - 0.72, f"median {middle:.0f}", fontsize=9, va="center", ha="right")
    axes.set_yticks([i - 0.3 for i in range(len(lengths))], [title(name) for name in lengths])
    axes.set_ylim(len(lengths) - 0.9, -1)
    axes.set_xlim(0, longest * 1.01)
    axes.set_xlabel("thinking tokens of an answer (each model by its own tokenizer)")
    return _svg(figure, "Distribution of thinking tokens by stage")


@_styled
def curation(kept: int, drops: Mapping[str, int]) -> str:
    """Draw how many of the teacher's traces were kept, and how many were dropped for each reason that occurred."""
    named = {"kept": kept} | {name.replace("_", " "): count for name, count in drops.items() if count}
    figure, axes = _figure(0.3 * len(named) + 0.2)
    widest = max(*named.values(), 1)
    for i, (name, count) in enumerate(named.items()):
        color = _color("student") if name == "kept" else _STANDS_FOR["muted"]
        axes.barh(i, count, height=0.62, color=color, linewidth=0, alpha=1.0 if name == "kept" else 0.6)
        share = f" ({percent(count / max(sum(named.values()), 1))})" if count else ""
        axes.text(count + widest / 100, i, f"{count:,}{share}", va="center", fontsize=9.5)
    axes.set_yticks(range(len(named)), list(named))
    axes.set_ylim(len(named) - 0.5, -0.5)
    axes.set_xlim(0, widest * 1.18)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    return _svg(figure, "Traces kept for training and dropped, by reason")


@_styled
def token_lengths(kept: Sequence[float], dropped: Sequence[float]) -> str:
    """Draw how the tokens of kept and of dropped traces are distributed; where they differ much, by powers of two."""
    figure, axes = _figure(2.5)
    shortest, longest = max(min([*kept, *dropped], default=1), 1), max([*kept, *dropped, 2])
    by_powers = longest > 16 * shortest
    edges = (np.geomspace if by_powers else np.linspace)(shortest, longest + 1, 49)
    for name, values, color in (("kept", kept, _color("student")), ("dropped", dropped, _STANDS_FOR["muted"])):
        counts, _ = np.histogram(values, bins=edges)
        axes.stairs(counts, edges, fill=True, color=color, alpha=0.6, linewidth=0, label=name)
    if by_powers:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.grid(axis="y")
    axes.set_xlabel("tokens of an example, prompt included")
    axes.set_ylabel("traces", fontsize=9)
    _legend_above(figure, axes)
    return _svg(figure, "Distribution of the tokens of kept and dropped traces")


@_styled
def pass_rates(rates: Sequence[float]) -> str:
    """Draw how many problems have which share of right traces."""
    figure, axes = _figure(2.2)
    edges = np.linspace(0, 100, 11)
    counts, _ = np.histogram([100 * rate for rate in rates], bins=edges)
    axes.bar(edges[:-1] + 5, counts, width=9, color=_color("student"), linewidth=0)
    axes.set_xticks(range(0, 101, 25))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.grid(axis="y")
    axes.set_xlabel("traces of a problem that are right")
    axes.set_ylabel("problems", fontsize=9)
    return _svg(figure, "Problems by their pass rate")


def thinks(row: Evaluation) -> bool:
    return (row.mean_reasoning_tokens or 0.0) > 0


def _figure(height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.add_subplot()


def _color(name: str) -> str:
    return _ROW_COLORS.get(name, _ROW_COLORS["other"])


def _percent_axis(axes: Axes, right: float) -> None:
    axes.set_xlim(0, right)
    axes.set_xticks(range(0, 101, 20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
    axes.grid(axis="x")
    axes.spines["bottom"].set_visible(False)


def _legend_above(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), handletextpad=0.4, columnspacing=1.6)


def _svg(figure: Figure, label: str) -> str:
    """Return one <svg> element without namespaces, metadata or a fixed size; its ids differ from other figures'."""
    target = io.StringIO()
    with rc_context({"svg.hashsalt": label}):
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    svg = target.getvalue()[target.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| version="1.1"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'<svg width="[^"]*" height="[^"]*"', f'<svg role="img" aria-label="{label}"', svg, count=1)
    prefix = re.sub(r"\W+", "-", label.lower())[:24]
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for name, color in (_STANDS_FOR | _ROW_COLORS).items():
        svg = svg.replace(color, f"var(--{name})")
    return svg.strip()
