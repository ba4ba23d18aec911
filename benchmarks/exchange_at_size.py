"""Measures the exchange of traces at size: a run becomes a data set, and the data set a run again.

    python -m benchmarks.exchange_at_size [--traces 20000] [--samples 4] [--folder DIR] [--page PAGE]

Traces have 8 KB: words drawn from a few hundred. Each part runs in a process of its own, whose most memory is told. A
million traces take about 30 GB of the folder's disk, which are deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distill.exchange.export_stage import export_traces
from distill.exchange.import_stage import ImportConfig, import_traces
from toolkit.figures.ledger import PROBLEMS, TRACES
from toolkit.figures.readme import fill_file
from toolkit.figures.tables import markdown_table
from toolkit.records import Problem, Trace, write_records
from toolkit.runs import read_manifest

TRACE_BYTES = 8_000
WORDS, THOUGHTS = 400, 2_000


def make_run(folder: Path, count: int, samples: int) -> None:
    """Write a run of sums, of whose answers a fifth are wrong."""
    drawn = random.Random(0)
    words = ["".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=drawn.randint(2, 9))) for _ in range(WORDS)]
    folder.mkdir()
    thoughts = [" ".join(drawn.choices(words, k=TRACE_BYTES // 7)) for _ in range(THOUGHTS)]
    problems = [
        Problem.create(family="sum", question=f"What is {number} + {number + 1}?", answer=str(2 * number + 1))
        for number in range(-(-count // samples))
    ]
    write_records(folder / PROBLEMS, problems)

    def traces() -> Iterator[Trace]:
        for number in range(count):
            problem, sample = problems[number // samples], number % samples
            said = problem.answer if drawn.random() < 0.8 else "0"
            one, other = drawn.choices(thoughts, k=2)
            cut = drawn.randrange(TRACE_BYTES)
            thought = f"{one[:cut]} {number} {other[cut:]}"
            yield Trace(
                problem_id=problem.id,
                sample=sample,
                reasoning=thought,
                answer=f"The sum is \\boxed{{{said}}}.",
                finish_reason="stop",
                closed=True,
                prompt_tokens=12,
                reasoning_tokens=1_600,
                completion_tokens=1_612,
                teacher="made@0",
                request_hash=f"{number:016x}",
            )

    write_records(folder / TRACES, traces())


def _export(folder: Path) -> None:
    export_traces(folder / "run", folder / "set")


def _import(folder: Path) -> None:
    import_traces(ImportConfig(place=folder / "set"), folder / "back")


def _timed(part: Callable[[Path], None], folder: Path, results: Any) -> None:
    begun = time.monotonic()
    part(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results.put((time.monotonic() - begun, peak * (1 if sys.platform == "darwin" else 1024)))


def measure(folder: Path, count: int, samples: int) -> list[list[str]]:
    """Return a line for each part: name, seconds, traces a second, most memory."""
    make_run(folder / "run", count, samples)
    context = multiprocessing.get_context("spawn")
    rows = []
    for name, part in (("export", _export), ("import", _import)):
        results = context.Queue()
        process = context.Process(target=_timed, args=(part, folder, results))
        process.start()
        seconds, peak = results.get()
        process.join()
        rows.append([name, f"{count:,}", f"{seconds:.0f} s", f"{count / seconds:,.0f}", f"{peak / 2**20:.0f} MiB"])
        print(json.dumps(rows[-1]), file=sys.stderr)
    measured = (read_manifest(folder / "back") or {})["measured"]
    assert measured["traces"] == count, measured
    return rows


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, nargs="+", default=[20_000])
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where the files are made; default: the system's temporary folder")
    parser.add_argument("--page", type=Path, help="page to write the table into")
    options = parser.parse_args()
    rows = [["part", "traces of 8 KB", "time", "traces a second", "most memory"]]
    for count in options.traces:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            rows += measure(Path(folder), count, options.samples)
    table = markdown_table(rows)
    if options.page:
        fill_file(options.page, "exchange", table + "\n")
    print(table)


if __name__ == "__main__":
    main()
