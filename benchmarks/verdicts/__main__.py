"""Measures accuracy and speed of verdicts against other programs; writes tables into docs/explanation/verdicts.md.

python -m benchmarks.verdicts [--environments runs/environments] [--runs 5] [--page docs/explanation/verdicts.md]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.verdicts.accuracy import RIVALS, accuracy_table, our_verdicts, read_rows, rival_verdicts
from benchmarks.verdicts.speed import measure, speed_table
from toolkit.figures.readme import fill_file


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--environments", type=Path, default=Path("runs/environments"), help="where rivals are installed"
    )
    parser.add_argument("--runs", type=int, default=5, help="runs of each kind; the table has their median")
    parser.add_argument(
        "--page", type=Path, default=Path("docs/explanation/verdicts.md"), help="page to write the tables into"
    )
    options = parser.parse_args()
    rows = read_rows()
    verdicts = {"this project": our_verdicts(rows)}
    for row, verdict in zip(rows, verdicts["this project"], strict=True):
        if verdict != row["correct"]:
            print(f"{row['id']}: {row['reference']!r} ← {row['answer']!r} should be {row['correct']}", file=sys.stderr)
    for name in RIVALS:
        print(f"grading with {name}", file=sys.stderr)
        title, given = rival_verdicts(name, rows, options.environments)
        verdicts[title] = given
    tables = {"accuracy": accuracy_table(rows, verdicts), "speed": speed_table(measure(options.runs))}
    for block, table in tables.items():
        fill_file(options.page, block, table + "\n")
        print(table)


if __name__ == "__main__":
    main()
