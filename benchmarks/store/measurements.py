"""What is measured of a store, each part in a process of its own: fill, open, resume, read.

fill      a job's missing requests are answered at once, 8 KB each, and appended
open      until the store says what it holds
resume    until the first of the requests that are missing (1 %) can be sent: problems are there, the rest is counted
read      a tenth of the traces in the order of their requests, which is not that of the disk
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from distill.collecting.job import Job, Plan, Request
from distill.collecting.trace_log import Collected
from distill.store.sharded_store import HeldTraces, TraceStore
from toolkit.figures.tables import markdown_table
from toolkit.generation.generate import Sampling
from toolkit.machine.peak_memory import peak_memory_bytes
from toolkit.records import Message, Problem, Trace

SAMPLES = 4
TRACE_BYTES = 8_000
POOL_BYTES = 1_000_000
MISSING = 100
"""One of so many requests is missing when a store is resumed."""
PARTS = ("fill", "open", "resume", "read")


def measure(folder: Path, traces: int) -> dict[str, dict[str, float]]:
    """Return the figures of each part."""
    found = {}
    for part in PARTS:
        _forget(folder)
        words = [sys.executable, "-m", "benchmarks.store.measurements", part, str(folder), str(traces)]
        found[part] = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def table(rows: Mapping[int, Mapping[str, Mapping[str, float]]]) -> str:
    """Format the figures by the number of traces."""
    head = ("traces", "append", "open", "resume", "read", "memory: append", "open", "resume")
    lines = []
    for traces, found in rows.items():
        memory = [f"{found[part]['memory_bytes'] / 1e6:,.0f} MB" for part in PARTS[:3]]
        rates = [f"{found[part]['traces'] / found[part]['seconds']:,.0f}/s" for part in ("fill", "read")]
        times = [f"{found[part]['seconds']:.2f} s" for part in ("open", "resume")]
        lines.append((f"{traces:,}", rates[0], *times, rates[1], *memory))
    return markdown_table([head, *lines])


def fill(folder: Path, traces: int) -> dict[str, float]:
    job, pool = _job(folder, traces), random.Random(0).randbytes(POOL_BYTES // 2).hex()
    plan, chance = _plan(job), random.Random(1)
    with Collected(job, plan, TraceStore(folder)) as collected:
        begun, count = time.perf_counter(), 0
        for requests in collected.rounds():
            for request in islice(requests, traces - max(1, traces // MISSING)):
                collected.answered(_answer(request, pool, chance))
                count += 1
            seconds = time.perf_counter() - begun
    return {"traces": count, "seconds": seconds}


def open_store(folder: Path, traces: int) -> dict[str, float]:
    begun = time.perf_counter()
    count = len(TraceStore(folder))
    return {"traces": count, "seconds": time.perf_counter() - begun}


def resume(folder: Path, traces: int) -> dict[str, float]:
    job = _job(folder, traces)
    begun = time.perf_counter()
    with Collected(job, _plan(job), TraceStore(folder)) as collected:
        first = next(next(collected.rounds()))
        seconds = time.perf_counter() - begun
        assert isinstance(first, Request)
    return {"traces": traces, "seconds": seconds}


def read(folder: Path, traces: int) -> dict[str, float]:
    plan, begun = _plan(_job(folder, traces)), time.perf_counter()
    held = HeldTraces(TraceStore(folder), plan.hashes[: max(1, len(plan) // 10)])
    lines = sum(1 for _ in held.lines())
    return {"traces": lines, "seconds": time.perf_counter() - begun}


def _job(folder: Path, traces: int) -> Job:
    problems = [
        Problem.create(family="user", question=f"What is {n} plus {n}? " + "Think. " * 30, answer=str(2 * n))
        for n in range(traces // SAMPLES)
    ]
    sampling = Sampling(temperature=0.6, max_new_tokens=320)
    return Job(problems=problems, sampling=sampling, samples=SAMPLES, batch_size=64, path=folder, shared=True)


def _plan(job: Job) -> Plan[list[Message]]:
    return Plan(list, job, "teacher@0123456789abcdef")


def _answer(request: Request[Any], pool: str, chance: random.Random) -> Trace:
    begin = chance.randrange(POOL_BYTES - TRACE_BYTES)
    return Trace(
        problem_id=request.problem_id,
        sample=request.sample,
        reasoning=pool[begin : begin + TRACE_BYTES - 400],
        answer="It is 4.",
        finish_reason="stop",
        closed=True,
        prompt_tokens=40,
        reasoning_tokens=2000,
        completion_tokens=2010,
        teacher="teacher@0123456789abcdef",
        request_hash=request.hash,
    )


def _forget(folder: Path) -> None:
    """Ask the system to drop what it has of a store's files in memory, where it can be asked."""
    for path in _files(folder):
        if hasattr(os, "posix_fadvise"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _files(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


if __name__ == "__main__":
    functions = {"fill": fill, "open": open_store, "resume": resume, "read": read}
    figures = functions[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(figures | {"memory_bytes": peak_memory_bytes()}))
