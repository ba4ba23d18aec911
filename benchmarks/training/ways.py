"""Compares what each way of learning from the same teacher buys in equal processor seconds.

    python -m benchmarks.training.ways --folder runs/ways [--seconds 800] [--seeds 0 1 2] [--ways rl …] [--at-once 1]

    all          supervised, on all of the teacher's traces
    verified     supervised, on those whose answer is right
    logits       the same traces, each token's distribution as the teacher sees it
    on-policy    verified, then the student writes and the teacher grades each token
    rl           verified, then reinforcement on verified answers

Each training is a command in a process of its own with one thread. How many updates it makes is set so that it takes
the processor seconds asked for: short trainings before, of two lengths, as many at once as later, tell what an update
of each stage takes. What was taken is in the table. Students answer the held-out problems of the demo's families, and
of the same families one size harder, which nobody is trained on. The teacher's traces are collected before and not
counted.

Finished commands are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from distill.problems.families import FAMILIES, draw
from toolkit.figures.intervals import mean_interval
from toolkit.figures.tables import interval_text, markdown_table, percent
from toolkit.records import Verdict, read_records, write_records
from toolkit.terminal import say

STUDENT, TEACHER = "smollm2-135m", "builtin"
BATCH = 8
PER_FAMILY_A_SECOND = 0.75
"""Problems of each family that the teacher answers, a processor second of a training: more than it takes."""
SUPERVISED_SHARE = 0.6
"""Of the seconds of a way with a second stage."""
SHORT, LONGER = 4, 24
"""Supervised updates of the trainings that tell what one takes."""
FEW, MORE = 1, 4
"""The same of a second stage."""
HARDER: Mapping[str, Mapping[str, object]] = {
    "chain_sum": {"min_terms": 5, "max_terms": 6},
    "simple_equations": {"max_value": 20},
    "gcd": {"min_value": 100, "max_value": 400},
    "countdown": {"max_value": 20},
    "letter_counting": {"min_words": 8, "max_words": 10},
    "number_sorting": {"min_numbers": 6, "max_numbers": 7},
    "spell_backward": {"min_word_len": 9, "max_word_len": 12},
}
HARDER_PER_FAMILY = 24


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a student learns: its traces, and the options of its stages."""

    title: str
    keep: str = "verified"
    first: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    """Of the stage after supervised learning from verified traces."""
    updates: str = ""
    """The recipe's key of the second stage's updates."""


WAYS = {
    "all": Way(title="supervised, all traces", keep="all"),
    "verified": Way(title="supervised, verified traces"),
    "logits": Way(title="the teacher's distributions on its traces", first=("--logits", "teacher")),
    "on-policy": Way(
        title="verified, then on policy",
        second=("--logits", "on-policy", "--set", "logits.rollouts=16"),
        updates="logits.updates",
    ),
    "rl": Way(
        title="verified, then reinforcement",
        second=("--set", "rl.problems=8", "--set", "rl.samples=4", "--set", "rl.max_new_tokens=160"),
        updates="rl.updates",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The processor seconds of a training: before its first update, and of each."""

    start_s: float
    update_s: float

    def updates_in(self, seconds: float) -> int:
        return max(1, round((seconds - self.start_s) / self.update_s))


class Bench:
    """A folder with everything that was made and measured."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds

    def probe(self, way: str) -> list[tuple[str, int, int]]:
        """Return the short trainings that tell what the stages of a way take: each a way and updates of its stages."""
        if WAYS[way].second:
            return [*self.probe("verified"), (way, SHORT, FEW), (way, SHORT, MORE)]
        return [(way, SHORT, 0), (way, LONGER, 0)]

    def probed(self, way: str, updates: int, second: int) -> float:
        return self._trained(f"probe-{way}-{updates}-{second}", way, 0, updates, second)

    def costs(self, way: str) -> tuple[Cost, Cost | None]:
        """Return what the stages of a way take."""
        short, longer, *seconds = (self.probed(*probe) for probe in self.probe(way))
        update_s = (longer - short) / (LONGER - SHORT)
        first = Cost(start_s=short - SHORT * update_s, update_s=update_s)
        if not seconds:
            return first, None
        few, more = seconds
        update_s = (more - few) / (MORE - FEW)
        return first, Cost(start_s=few - short - FEW * update_s, update_s=update_s)

    def train(self, way: str, seed: int) -> tuple[Path, float]:
        """Train a student and return its folder and the processor seconds."""
        first, second = self.costs(way)
        share = SUPERVISED_SHARE if second else 1.0
        updates = first.updates_in(share * self.seconds)
        more = second.updates_in((1 - share) * self.seconds) if second else 0
        name = f"{way}-{seed}"
        return self.folder / name, self._trained(name, way, seed, updates, more)

    def _trained(self, name: str, way: str, seed: int, updates: int, second: int) -> float:
        how = WAYS[way]
        traces = self.all_of(seed) / "train.jsonl" if how.keep == "all" else self.traces(seed) / "traces.jsonl"
        command = ["distill", "--teacher", TEACHER, "--student", STUDENT, "--traces", str(traces), *how.first]
        command += ["--seed", str(seed)]
        command += ["--set", f"train.max_updates={updates}", "--set", f"train.batch_examples={BATCH}"]
        if second:
            command += [*how.second, "--set", f"{how.updates}={second}"]
        return self._seconds(name, command)

    def traces(self, seed: int) -> Path:
        out = self.folder / f"traces-{seed}"
        per_family = math.ceil(PER_FAMILY_A_SECOND * self.seconds)
        command = ["traces", "--teacher", TEACHER, "--per-family", str(per_family), "--seed", str(seed)]
        self._seconds(out.name, [*command, "--batch-size", "128"])
        return out

    def all_of(self, seed: int) -> Path:
        """Write a training set of all traces, the wrong ones too."""
        out = self.folder / f"chosen-all-{seed}"
        self._seconds(
            out.name, ["traces", "curate", str(self.traces(seed)), "--keep", "all", "--near-duplicates", "off"]
        )
        return out

    def _seconds(self, name: str, command: Sequence[str]) -> float:
        """Run a command of the toolkit into a folder of that name unless it is done; return its processor seconds."""
        taken = self.folder / f"{name}.json"
        if not taken.is_file():
            say(f"{name}: {' '.join(command)}")
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            whole = [sys.executable, "-m", "toolkit", *command, "--out", str(self.folder / name)]
            with (self.folder / f"{name}.log").open("w") as log:
                process = subprocess.Popen(whole, stdout=log, stderr=log, env=environment)
                _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"{name} failed: {self.folder / name}.log says why")
            taken.write_text(json.dumps({"seconds": usage.ru_utime + usage.ru_stime}))
        return float(json.loads(taken.read_text())["seconds"])

    def right(self, name: str, model: str, set_name: str) -> list[float]:
        """Let a model answer a set of problems; return 1 for each that is right, and 0."""
        out = f"eval-{name}-{set_name}"
        options = [] if set_name == "demo" else ["--problems", str(self.harder()), "--split", "all"]
        self._seconds(out, ["eval", model, *options])
        return [float(verdict.correct) for verdict in read_records(self.folder / out / "verdicts.jsonl", Verdict)]

    def harder(self) -> Path:
        path = self.folder / "harder.jsonl"
        if not path.is_file():
            problems = []
            for family in FAMILIES:
                drawn = draw(family, 9, **HARDER[family])
                problems += [next(drawn) for _ in range(HARDER_PER_FAMILY)]
            write_records(path, problems)
        return path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument(
        "--seconds", type=float, default=800.0, help="processor seconds of a training; default: %(default)s"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="default: all")
    parser.add_argument("--at-once", type=int, default=1, help="trainings at once; default: %(default)s")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.folder, options.seconds)
    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(bench.all_of if "all" in options.ways else bench.traces, options.seeds))
    bench.harder()
    probes = dict.fromkeys(probe for way in options.ways for probe in bench.probe(way))
    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(lambda probe: bench.probed(*probe), probes))

    def measured(way: str, seed: int) -> tuple[float, list[float], list[float]]:
        folder, seconds = bench.train(way, seed)
        return seconds, *(bench.right(folder.name, str(folder), name) for name in ("demo", "harder"))  # type: ignore[return-value]

    runs = [(way, seed) for seed in options.seeds for way in options.ways]
    with ThreadPoolExecutor(options.at_once) as pool:
        found = dict(zip(runs, pool.map(lambda run: measured(*run), runs), strict=True))
    rows = [["way", "processor seconds", "demo's families", "of each seed", "one size harder"]]
    for title, model in (("teacher", TEACHER), ("student before", STUDENT)):
        demo, hard = (bench.right(title.replace(" ", "-"), model, name) for name in ("demo", "harder"))
        rows.append([title, "", _share(demo), "", _share(hard)])
    for way in options.ways:
        of_way = [found[way, seed] for seed in options.seeds]
        rows.append(
            [
                WAYS[way].title,
                f"{fmean(seconds for seconds, _, _ in of_way):.0f}",
                _share([each for _, demo, _ in of_way for each in demo]),
                ", ".join(percent(fmean(demo)) for _, demo, _ in of_way),
                _share([each for _, _, hard in of_way for each in hard]),
            ]
        )
    print(markdown_table(rows))


def _share(right: Sequence[float]) -> str:
    return f"{percent(fmean(right))} [{interval_text(mean_interval(right))}]"


if __name__ == "__main__":
    main()
