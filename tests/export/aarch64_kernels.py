"""`python -m tests.export.aarch64_kernels [--home runs/aarch64]`: checks that our kernels for arm64 compute what those
in plain C compute here.

The graphs and inputs are those of `test_kernels.py`. The processor that qemu-user emulates has every instruction.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.graph.attention_over_codes import FEW_TOKENS
from export.runtime.kernels.library import SCALAR
from tests.export.aarch64 import add_home, environment, prepare
from tests.export.test_kernels import (
    ATTENTIONS,
    CLOSE,
    PRODUCTS,
    attention_feeds,
    opened,
    rounding,
    write_attention,
    write_product,
)
from toolkit.figures.tables import markdown_table

ROWS = (1, 2, 3, 5, 8, 9, 12, 23, 134)
NEW, LENGTHS = (1, 5, FEW_TOKENS), ([0], [3], [31], [300], [640], [7, 300])
ONE_CODE = 1.01 / 127
"""A value halfway between two codes of the cache may become either."""
PROGRAM = Path(__file__).with_name("aarch64_program.py")


def write_cases(folder: Path) -> dict[str, float]:
    """Write graphs, inputs, and what our kernels in plain C give here; returns the tolerance of each graph."""
    tolerances = {}
    for number, product in enumerate(PRODUCTS):
        name = f"product {number}"
        (folder / name).mkdir(parents=True)
        write_product(product, folder / name / "model.onnx")
        rng = np.random.default_rng(1)
        feeds = ({"a": rng.standard_normal((1, rows, product.K), dtype=np.float32)} for rows in ROWS)
        _write_expected(folder / name, feeds)
        tolerances[name] = CLOSE
    for number, heads in enumerate(ATTENTIONS):
        name = f"attention {number}"
        (folder / name).mkdir()
        write_attention(heads, folder / name / "model.onnx")
        _write_expected(folder / name, (attention_feeds(heads, new, past)[1] for new in NEW for past in LENGTHS))
        tolerances[name] = rounding(1)
    return tolerances


def _write_expected(folder: Path, all_feeds: Iterator[dict[str, NDArray[Any]]]) -> None:
    session = opened(folder / "model.onnx", SCALAR)
    for number, feeds in enumerate(all_feeds):
        outputs = {f"expected {i}": output for i, output in enumerate(session.run(None, feeds))}
        np.savez(folder / f"{number}.npz", **feeds, **outputs)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.export.aarch64_kernels", description=__doc__)
    add_home(parser)
    options = parser.parse_args()
    home = options.home.absolute()
    there, cases = prepare(home), home / "cases"
    shutil.rmtree(cases, ignore_errors=True)
    tolerances = write_cases(cases)
    done = subprocess.run(
        [*there, PROGRAM, cases], env=environment(home), cwd=home, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, dict[str, list[float]]] = json.loads(done.stdout.splitlines()[-1])
    rows, is_close = [["kernels", "cases", "largest difference of products", "of attention", "too far"]], True
    for kernels, differences in found.items():
        far = [
            case
            for case, (first, *caches) in differences.items()
            if first > tolerances[case.partition("/")[0]] or any(each > ONE_CODE for each in caches)
        ]
        largest = {
            kind: max(first for case, (first, *_) in differences.items() if case.startswith(kind))
            for kind in ("product", "attention")
        }
        row = [kernels, str(len(differences)), *(f"{each:.1e}" for each in largest.values())]
        rows.append([*row, ", ".join(far) or "none"])
        is_close = is_close and not far
    print(markdown_table(rows))
    sys.exit(not is_close)


if __name__ == "__main__":
    main()
