"""Lets processes fill one store and kills them again and again, until every request has its outcome exactly once.

`python -m tests.distill.store.crashing FOLDER REQUESTS WRITERS KILLS SEED`

The processes are forks that ask as a server's client does: some requests at once, answered in any order. Each request
is noted in `asked.log` when it is sent; a fork notes nothing else outside the store, and is killed with `kill -9`.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from distill.collecting import trace_log
from distill.collecting.job import Job, Plan, Request
from distill.collecting.outcomes import Refusal
from distill.collecting.trace_log import TraceLog
from distill.collecting.traces import collect
from distill.store import sharded_store, shards
from distill.store.failure import Failure
from distill.store.sharded_store import TraceStore
from toolkit.generation.generate import Sampling
from toolkit.records import Problem, Trace, read_records

IN_FLIGHT = 8
SHARDS = 12
"""About as many are filled."""
SAMPLING = Sampling(temperature=0.6, max_new_tokens=320)
Asked = Request[list[dict[str, str]]]


def job_of(folder: Path, requests: int, *, samples: int = 2, **more: Any) -> Job:
    problems = [
        Problem.create(family="user", question=f"What is {n} plus {n}?", answer="") for n in range(requests // samples)
    ]
    return Job(
        problems=problems, sampling=SAMPLING, samples=samples, batch_size=8, path=folder, shared=True, label="t", **more
    )


def plan_of(job: Job) -> Plan[list[dict[str, str]]]:
    return Plan(list, job, "teacher@0123")


def fails(request: Asked) -> bool:
    return int(request.hash, 16) % 10 == 0


def answer_to(request: Asked, length: int = 8000) -> Trace:
    """Return the only right trace of a request."""
    text = random.Random(request.hash).randbytes(length // 4).hex()
    return Trace(
        problem_id=request.problem_id,
        sample=request.sample,
        reasoning=f"{text}\n“{request.hash}”",
        answer=text,
        finish_reason="stop",
        closed=True,
        prompt_tokens=1,
        reasoning_tokens=2,
        completion_tokens=3,
        teacher="teacher@0123",
        request_hash=request.hash,
    )


def fill(job: Job, asked: Path, *, pause_s: float = 0.001) -> None:
    """Ask what the store lacks, as one of several processes."""
    note = os.open(asked, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    chance = random.Random(os.getpid())

    def draw(requests: Iterator[Asked], log: TraceLog) -> None:
        in_flight: list[Asked] = []
        while True:
            while len(in_flight) < IN_FLIGHT and (request := next(requests, None)):
                os.write(note, f"{request.hash}\n".encode())
                in_flight.append(request)
            if not in_flight:
                return
            time.sleep(pause_s * chance.random())
            request = in_flight.pop(chance.randrange(len(in_flight)))
            if fails(request):
                log.failed(request, Refusal("no", reason="HTTP 400", cause="request", said="not this one"))
            else:
                log.answered(answer_to(request))

    collect(plan_of(job), draw, job)


def outcomes(folder: Path) -> set[int]:
    """Return the hashes of the requests that the store knows an outcome of, as a new process reads it."""
    store = TraceStore(folder)
    return {*store.traces.hashes().tolist(), *store.failures.hashes().tolist()}


def crash(folder: Path, requests: int, writers: int, kills: int, seed: int) -> None:
    shards.ROLL_BYTES = requests * 8000 // SHARDS
    sharded_store.SYNC_EVERY_S = 0.02
    trace_log.WAIT_S = 0.01
    chance, asked, job = random.Random(seed), folder.parent / "asked.log", job_of(folder, requests)
    running: set[int] = set()

    def start() -> None:
        child = os.fork()
        if not child:
            with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
                fill(job, asked, pause_s=0.0005 * writers)
            os._exit(0)
        running.add(child)

    for _ in range(writers):
        start()
    killed = 0
    while killed < kills and len(outcomes(folder)) < requests:
        begun = asked.stat().st_size if asked.exists() else 0
        enough = begun + 17 * chance.randrange(1, max(2, requests // kills))
        patience = time.monotonic() + chance.random()
        while (not asked.exists() or asked.stat().st_size < enough) and time.monotonic() < patience:
            time.sleep(0.0005)
        child = chance.choice(sorted(running))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        running.remove(child)
        known, mark = outcomes(folder), asked.stat().st_size if asked.exists() else 0
        start()
        time.sleep(0.002 * chance.random())
        later = asked.read_bytes()[mark:].split() if asked.exists() else []
        assert not known & {int(hash, 16) for hash in later}, "what was written down is asked again"
    for child in running:
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, "a process that nobody killed ends well"
    check(folder, job, asked, killed)


def check(folder: Path, job: Job, asked: Path, killed: int) -> None:
    """Check that nothing is lost, doubled or glued, and that nothing was asked twice but what was in flight."""
    plan = plan_of(job)
    wanted = {request.hash: request for request in map(plan.request, range(len(plan)))}
    traces = [t for path in folder.glob("traces*.jsonl") for t in read_records(path, Trace, torn_end=True)]
    failures = [f for path in folder.glob("failed*.jsonl") for f in read_records(path, Failure, torn_end=True)]
    found = Counter([trace.request_hash for trace in traces] + [failure.request_hash for failure in failures])
    assert found == Counter(list(wanted)), "each request has one outcome"
    for trace in traces:
        assert trace == answer_to(wanted[trace.request_hash])
    assert {failure.request_hash for failure in failures} == {h for h, request in wanted.items() if fails(request)}
    bought = Counter(asked.read_text().split())
    assert bought.keys() == wanted.keys()
    in_doubt = 1  # a failure is written down when the next answer shows that the server is well
    assert bought.total() - len(bought) <= (IN_FLIGHT + in_doubt) * killed
    with_indexes = list(TraceStore(folder).read(plan.hashes))
    for path in folder.glob("*.index"):
        path.unlink()
    assert list(TraceStore(folder).read(plan.hashes)) == with_indexes, "an index says what its shard says"
    assert [t.request_hash for t in with_indexes] == [h for h, request in wanted.items() if not fails(request)]
    print(f"{len(wanted)} requests, {killed} kills, {bought.total() - len(bought)} asked twice, {len(traces)} traces")


if __name__ == "__main__":
    crash(Path(sys.argv[1]), *map(int, sys.argv[2:]))
