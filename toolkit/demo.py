"""The whole line once: pull → distill → export → evaluate each stage → ledger and report.

    runs/demo/
    ├── student/  int4/                     what was made
    ├── eval/{teacher,base,student,int4}/   each measured on the same held-out problems
    ├── ledger.json                         one row a stage
    └── report.html

Each step is a run folder, so what is complete is not done again: a second run ends in seconds, and an interrupted one
goes on where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from distill.evaluate import EvalConfig, evaluate_model
from distill.pipeline import DistillConfig, distill
from export.pipeline import export_model, int4_config
from toolkit.generate import Decoder
from toolkit.ledger import Ledger
from toolkit.models import resolve
from toolkit.records import Problem
from toolkit.report import report_run

STUDENT, INT4 = "student", "int4"


def demo(
    config: DistillConfig, problems: Sequence[Problem], out: Path, open_decoder: Callable[[Path], Decoder]
) -> Ledger:
    """Run every step that `out` does not hold yet; returns the ledger of all stages on these held-out problems."""
    teacher, base = resolve(config.teacher), resolve(config.student)
    _say(1, f"{config.student} learns from the {config.teacher} teacher")
    student = distill(config, out / STUDENT, open_decoder)
    _say(2, "the student becomes an int4 ONNX folder")
    export_model(int4_config(student, out / INT4))
    _say(3, f"every stage answers the same {len(problems)} held-out problems")
    for row, folder in (("teacher", teacher), ("base", base), ("student", student), ("int4", out / INT4)):
        evaluate_model(folder, open_decoder, problems, EvalConfig(), out / "eval" / row)
    return report_run(out)


def _say(step: int, what: str) -> None:
    print(f"[{step}/3] {what}", file=sys.stderr, flush=True)
