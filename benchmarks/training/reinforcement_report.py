"""Writes what reinforcement did into `docs/explanation/reinforcement.md`, from the runs themselves.

    python -m benchmarks.training.reinforcement_report RUN      a folder of `toolkit teach --seeds N`

Fills the table of stages and draws the curves beside it, from the policy's samples before any group is replaced. The
last row of panels is the "aha" curve.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distill.teach.stage_table import StageTable, stage_table
from distill.teach.stages import STAGES, TITLES
from distill.training.journal import LOSS, SAMPLED
from toolkit.errors import InputError
from toolkit.figures.charts import smoothed
from toolkit.figures.readme import fill_file

DOCUMENT = Path("docs/explanation/reinforcement.md")
CURVES = Path("docs/explanation/reinforcement.svg")
REINFORCED = ("zero_rl", "reason_rl", "align_rl")
_LENGTH = "completions/mean_length"
_FIGURE = f"""![Curves of reinforcement]({CURVES.name})

Thin lines are seeds, thick ones their mean, over five updates. "Says wait or wrong" counts words
(`distill/reinforcement/reflection.py`); "rights a wrong sum" wants an equation that is wrong and, later, the same left side done
right."""
_PANELS: Sequence[tuple[str, Mapping[str, str]]] = (
    (
        "share of samples",
        {
            SAMPLED + "accuracy": "right",
            SAMPLED + "well_formed": "well formed",
            SAMPLED + "language_consistency": "language",
        },
    ),
    ("tokens a completion", {_LENGTH: "length"}),
    (
        "share of samples",
        {SAMPLED + "reflection": "says wait or wrong", SAMPLED + "corrected": "rights a wrong sum"},
    ),
)
"""For each row of panels the axis, and the label of each field of the journal that it draws."""
_COLORS = ("#2563eb", "#d97706", "#059669")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "reinforcement",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "legend.frameon": False,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    evaluations = evaluation_folders(run)
    write_document(DOCUMENT, stage_table(evaluations))
    draw(CURVES, {name: [read_curve(folder) for folder in _seeds(run, name)] for name in REINFORCED})
    print(f"{DOCUMENT} and {CURVES} have the figures of {run}")


def evaluation_folders(run: Path) -> dict[str, list[Path]]:
    """Return the finished evaluations of all seeds by stage; raises `InputError` if there are none."""
    found = {name: sorted(run.glob(f"eval/{name}")) or _seeds(run / "eval", name) for name in STAGES}
    if not any(found.values()):
        raise InputError(f"{run} holds no evaluations of a teacher's stages; make them with: toolkit teach")
    return {name: folders for name, folders in found.items() if folders}


def _seeds(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"seed-*/{name}"))


def write_document(path: Path, table: StageTable) -> None:
    lifted = [lift.family for lift in table.lifts if lift.is_certain]
    lost = [lift.family for lift in table.lifts if lift.interval[1] < 0]
    said = (
        f"Over the cold start, `reason_rl` is certainly better on {len(lifted)} of {len(table.lifts)} families"
        f" ({', '.join(lifted) or 'none'}) and certainly worse on {len(lost)} ({', '.join(lost) or 'none'})."
    )
    fill_file(path, "stages", f"{table.markdown()}\n\n{said}\n\n{_FIGURE}")


def read_curve(folder: Path) -> list[dict[str, float]]:
    """Read a reinforced stage's journal, one record per step."""
    return [json.loads(line) for line in (folder / LOSS).read_text(encoding="utf-8").splitlines()]


def draw(path: Path, stages: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> None:
    """Draw every stage's curves, one column per stage: each seed thin, their mean thick."""
    stages = {name: seeds for name, seeds in stages.items() if seeds}
    with rc_context(_STYLE):
        figure = Figure(figsize=(3.1 * len(stages), 6.2), layout="constrained")
        grid = figure.subplots(len(_PANELS), len(stages), squeeze=False, sharey="row")
        for column, (name, seeds) in enumerate(stages.items()):
            for row, (label, lines) in enumerate(_PANELS):
                axes = grid[row, column]
                for color, (key, said) in zip(_COLORS, lines.items(), strict=False):
                    _draw_line(axes, seeds, key, said, color)
                axes.set_ylim(bottom=0)
                if column == 0:
                    axes.set_ylabel(label)
                    axes.legend(fontsize=8)
            grid[0, column].set_title(TITLES[name].removeprefix("+ "))
            grid[-1, column].set_xlabel("update")
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw_line(axes: Axes, seeds: Sequence[Sequence[Mapping[str, float]]], key: str, label: str, color: str) -> None:
    curves = [np.array([record[key] for record in seed]) for seed in seeds]
    for curve in curves:
        axes.plot(np.arange(1, len(curve) + 1), smoothed(curve), color=color, linewidth=0.6, alpha=0.5)
    shortest = min(map(len, curves))
    mean = np.mean([curve[:shortest] for curve in curves], axis=0)
    axes.plot(np.arange(1, shortest + 1), smoothed(mean), color=color, linewidth=1.8, label=label)


if __name__ == "__main__":
    main()
