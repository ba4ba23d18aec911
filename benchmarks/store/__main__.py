"""Measures the store of traces: how fast it is filled, opened, resumed and read, and in how much memory.

    python -m benchmarks.store [--traces 1000 100000] [--folder DIR] [--page docs/explanation/traces.md]

A trace has 8 KB, so a million of them take 8.3 GB of the folder's disk, which are deleted at once. Each part runs in a
process of its own. Before a store is opened, the system is asked to forget its files, as after a restart.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.store.measurements import measure, table
from toolkit.figures.readme import fill_file


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where the stores are made; default: the system's temporary folder")
    parser.add_argument("--page", type=Path, help="page to write the table into, such as docs/explanation/traces.md")
    options = parser.parse_args()
    rows = {}
    for traces in options.traces:
        print(f"{traces} traces", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            rows[traces] = measure(Path(folder) / "store", traces)
    found = table(rows)
    if options.page:
        fill_file(options.page, "store", found + "\n")
    print(found)


if __name__ == "__main__":
    main()
