"""Measures curation at size: traces made by a program, with near duplicates planted among them.

python -m benchmarks.curation [--traces 20000] [--processes 2] [--folder runs/curation-benchmark] [--kept]

Prints the time, the most memory of all processes together, the rate of each part, and how many of the planted near
duplicates (Jaccard similarity from 0.85 to 0.98) were found and how many other traces were taken for one.
"""

from __future__ import annotations

import argparse
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from distill.curation.at_size.curation_stage import CurationConfig, curate_traces
from distill.curation.reasons import DROPPED
from distill.curation.selection import Rules
from toolkit.figures.ledger import PROBLEMS
from toolkit.records import Problem, Trace, read_jsonl, record_line

SAMPLES = 4
SENTENCES, POOL = 100, 200_000
SHARD_BYTES = 256 << 20
PLANTED, COPIED, WRONG, CUT = 0.05, 0.01, 0.2, 0.03
"""Shares of near duplicates, of equal thoughts, of wrong answers and of cut ones."""
MOST_CHANGED = 8
"""Sentences of 100 in which a near duplicate differs at most."""
WORDS = [
    "so",
    "we",
    "have",
    "the",
    "number",
    "of",
    "ways",
    "to",
    "add",
    "and",
    "then",
    "multiply",
    "which",
    "gives",
    "wait",
    "let",
    "me",
    "check",
    "that",
    "again",
    "because",
    "it",
    "is",
    "not",
    "clear",
    "whether",
    "this",
    "holds",
    "for",
    "all",
    "hence",
    "sum",
    "equals",
    "first",
    "second",
    "third",
    "term",
    "modulo",
    "prime",
    "factor",
    "square",
    "root",
    "of",
    "both",
    "sides",
    "dividing",
    "by",
    "two",
    "yields",
    "remainder",
    "suppose",
    "that",
    "there",
    "are",
    "integers",
    "such",
    "where",
    "triangle",
    "angle",
    "area",
    "side",
    "length",
    "probability",
    "each",
    "colour",
    "ball",
    "without",
    "replacement",
    "therefore",
    "consider",
    "case",
    "even",
    "odd",
    "digits",
    "polynomial",
    "degree",
    "at",
    "most",
]


@dataclass(frozen=True, kw_only=True)
class Made:
    """Which of the traces are near duplicates or have a thought of another trace, by problem id and sample."""

    near: set[tuple[str, int]]
    copied: set[tuple[str, int]]


def make_traces(folder: Path, count: int, seed: int = 0) -> Made:
    """Write traces of some 8 KB in shards, with their problems, as a store and a run folder hold them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pool = _sentences(rng)
    made = Made(near=set(), copied=set())
    with (folder / PROBLEMS).open("wb") as file:
        problems = [_problem(number, pool, rng) for number in range(-(-count // SAMPLES))]
        file.writelines(map(record_line, problems))
    lines = _lines(problems, count, pool, rng, made)
    for shard in range(-(-count * 8_600 // SHARD_BYTES)):
        with (folder / f"traces-{shard:04d}.jsonl").open("wb") as file:
            while file.tell() < SHARD_BYTES and (line := next(lines, b"")):
                file.write(line)
    assert not next(lines, b"")
    return made


def _lines(
    problems: list[Problem], count: int, pool: list[str], rng: np.random.Generator, made: Made
) -> Iterator[bytes]:
    before = rng.integers(POOL, size=SENTENCES)
    for number in range(count):
        problem, sample = problems[number // SAMPLES], number % SAMPLES
        key, chosen, fate = (problem.id, sample), rng.integers(POOL, size=SENTENCES), rng.random()
        is_wrong, is_cut = fate > 1 - WRONG, 1 - WRONG - CUT < fate <= 1 - WRONG
        if fate < PLANTED:
            changed = rng.choice(SENTENCES, size=rng.integers(1, MOST_CHANGED + 1), replace=False)
            chosen[np.delete(np.arange(SENTENCES), changed)] = np.delete(before, changed)
            made.near.add(key)
        elif fate < PLANTED + COPIED:
            chosen = before
            made.copied.add(key)
        elif not (is_wrong or is_cut):
            before = chosen
        said = int(problem.answer) + 1 if is_wrong else int(problem.answer)
        yield record_line(
            Trace(
                problem_id=problem.id,
                sample=sample,
                reasoning=" ".join([pool[i] for i in chosen.tolist()]),
                answer="" if is_cut else f"Both parts together give the result.\n\n**Answer:** \\boxed{{{said}}}",
                finish_reason="length" if is_cut else "stop",
                closed=not is_cut,
                prompt_tokens=60,
                reasoning_tokens=None,
                completion_tokens=2_000 + int(chosen[0]) % 1_000,
                teacher="made@0123456789abcdef",
                request_hash=f"{number:016x}",
            )
        )


def _problem(number: int, pool: list[str], rng: np.random.Generator) -> Problem:
    answer = int(rng.integers(8, 10_000))
    question = f"Problem {number}: {pool[number % POOL]} Given that, what is {answer - 7} + 7?"
    return Problem.create(family="user", question=question, answer=str(answer), split="train")


def _sentences(rng: np.random.Generator) -> list[str]:
    """Make different sentences of some 80 characters, a tenth of them with signs that ASCII lacks."""
    words, numbers = np.array(WORDS), rng.integers(2, 1_000, size=(POOL, 2)).tolist()
    signs = [" × " if rare else " + " for rare in (rng.random(POOL) < 0.1).tolist()]
    chosen = words[rng.integers(len(words), size=(POOL, 11))].tolist()
    ends = [f", {one}{sign}{two} = {one + two}." for (one, two), sign in zip(numbers, signs, strict=True)]
    return [" ".join(sentence).capitalize() + end for sentence, end in zip(chosen, ends, strict=True)]


class MemoryWatch(threading.Thread):
    """Samples the memory of this process and of its children, shared pages counted once for each."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most_bytes = 0
        self._ended = threading.Event()

    def run(self) -> None:
        this = psutil.Process()
        while not self._ended.wait(0.5):
            total = 0
            for process in (this, *this.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.most_bytes = max(self.most_bytes, total)

    def end(self) -> int:
        self._ended.set()
        self.join()
        return self.most_bytes


def _computed_s() -> float:
    """Return the processor time of this process and of its children that have ended."""
    used = psutil.Process().cpu_times()
    seconds: float = used.user + used.system + used.children_user + used.children_system
    return seconds


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/curation-benchmark"))
    parser.add_argument("--kept", action="store_true", help="keep the folder")
    options = parser.parse_args(arguments)
    shutil.rmtree(options.folder, ignore_errors=True)
    begun = time.monotonic()
    made = make_traces(options.folder / "traces", options.traces)
    size_bytes = sum(path.stat().st_size for path in (options.folder / "traces").glob("traces-*.jsonl"))
    each, seconds = size_bytes / options.traces, time.monotonic() - begun
    print(f"made {options.traces:,} traces of {each:,.0f} bytes in {seconds:.0f} s")
    benchmark = options.folder / "benchmark.txt"
    benchmark.write_text("\n\n".join(_sentences(np.random.default_rng(7))[:5_000]), encoding="utf-8")
    config = CurationConfig(
        traces=(options.folder / "traces",),
        rules=Rules(near_duplicates=0.8, max_tokens=32_768, languages=("en",)),
        decontaminate=(benchmark,),
        processes=options.processes,
    )
    watch = MemoryWatch()
    watch.start()
    computed_s = _computed_s()
    begun = time.monotonic()
    out = curate_traces(config, options.folder / "curated")
    seconds, computed_s = time.monotonic() - begun, _computed_s() - computed_s
    memory_bytes = watch.end()
    near = {
        (values["problem_id"], values["sample"])
        for _, values in read_jsonl(out / DROPPED)
        if values["reason"] == "near_duplicate"
    }
    false = len(near - made.near - made.copied)
    found, others = len(near & made.near), options.traces - len(made.near) - len(made.copied)
    each_ms = 1e3 * seconds * options.processes / options.traces
    print(f"curated in {seconds:.0f} s on {options.processes} processes, {each_ms:.2f} ms a trace and process")
    print(f"processor time: {1e3 * computed_s / options.traces:.2f} ms a trace")
    print(f"at this rate a million take {1e6 * seconds / options.traces / 60:.1f} minutes")
    print(f"most memory of all processes together: {memory_bytes / 2**30:.2f} GiB")
    print(f"near duplicates: {found:,} of {len(made.near):,} found ({found / len(made.near):.2%})")
    print(f"taken for one: {false:,} of {others:,} others ({false / others:.3%})")
    if not options.kept:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
