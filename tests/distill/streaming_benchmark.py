"""Measures collecting from servers of a known rate, with faults of all kinds, against a bare asynchronous client.

python -m tests.distill.streaming_benchmark bare       256 streams at once, in turns with the bare client
python -m tests.distill.streaming_benchmark servers    three servers: one ten times slower, one that dies
python -m tests.distill.streaming_benchmark memory     memory over 100,000 requests
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import psutil
from httpx2 import AsyncClient, HTTPError, Limits, Timeout

from distill.collecting.job import Job
from distill.endpoints.answers import Patience
from distill.endpoints.remote_teacher import Endpoint, Serving
from distill.endpoints.servers.server import ServerSettings
from tests.distill.paced_server import paced_server, stats
from toolkit.figures.tables import percent
from toolkit.generation.generate import Sampling
from toolkit.records import Problem

AT_ONCE = 256
STALL_S = 3.0
SAMPLING = Sampling(temperature=0.6, max_new_tokens=1024)
FAULTY = {"tokens": 100, "rate": 20.0, "faults": 0.05}


def problems_of(count: int) -> list[Problem]:
    return [Problem.create(family="user", question=f"What is {n} plus {n}?", answer="") for n in range(count)]


def ask_bare(url: str, problems: Sequence[Problem]) -> None:
    """Stream each answer, parse its events, write its text to a file; ask again at once what failed."""

    async def one(client: AsyncClient, problem: Problem) -> str:
        body = {"model": "paced", "messages": problem.messages, "max_tokens": 1024, "stream": True}
        while True:
            text, is_whole = [], False
            try:
                async with client.stream("POST", "chat/completions", json=body) as response:
                    async for line in response.aiter_lines():
                        if line == "data: [DONE]":
                            is_whole = True
                        elif line.startswith("data: {"):
                            for choice in json.loads(line[6:]).get("choices", ()):
                                text.append(choice["delta"].get("content") or choice["delta"].get("reasoning_content"))
            except HTTPError:
                continue
            if is_whole:
                return "".join(filter(None, text))

    async def ask() -> None:
        waiting = iter(problems)

        async def work(client: AsyncClient) -> None:
            for problem in waiting:
                file.write(json.dumps({"id": problem.id, "text": await one(client, problem)}) + "\n")

        limits = Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
        with tempfile.TemporaryFile("w") as file:
            client = AsyncClient(base_url=url, timeout=Timeout(STALL_S, pool=None), limits=limits)
            async with client, asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(work(client))

    asyncio.run(ask())


def collect(urls: Sequence[str], problems: Sequence[Problem]) -> None:
    """Collect as `toolkit traces` does."""
    servers = tuple(ServerSettings(url=url, model="paced", concurrency=AT_ONCE) for url in urls)
    patience = Patience(first_event_s=60.0, stall_s=STALL_S)
    teacher = Endpoint(url=urls[0], model="paced", serving=Serving(servers=servers, patience=patience))
    with tempfile.TemporaryDirectory() as folder:
        job = Job(problems=problems, sampling=SAMPLING, samples=1, batch_size=AT_ONCE, path=Path(folder), shared=True)
        traces = teacher.answer(job)
        assert len(traces) == len(problems), f"{len(traces)} of {len(problems)}"


def timed(ask: Callable[[], None], requests: int) -> float:
    """Return the requests a second."""
    begun = time.perf_counter()
    ask()
    return requests / (time.perf_counter() - begun)


def bare(requests: int = 5120, rounds: int = 3) -> None:
    problems = problems_of(requests)
    rates: dict[str, list[float]] = {"bare client": [], "traces": []}
    with paced_server(**FAULTY) as url:
        for _ in range(rounds):
            rates["bare client"].append(timed(lambda: ask_bare(url, problems), requests))
            rates["traces"].append(timed(lambda: collect([url], problems), requests))
        print(stats(url))
    for name, found in rates.items():
        print(f"{name}: {median(found):.1f} requests/s ({min(found):.1f} to {max(found):.1f})")
    pairs = [ours / theirs for theirs, ours in zip(*rates.values(), strict=True)]
    print(f"round by round: {percent(median(pairs))}")


def servers(requests: int = 6000) -> None:
    """A server of 256 slots at 5 s an answer, one of 256 at 50 s, and one that dies early."""
    problems, quick = problems_of(requests), {"tokens": 50, "rate": 10.0, "slots": 128}
    slow = {"tokens": 50, "rate": 1.0, "slots": 128}
    sum_of_live = 128 / 5.0 + 128 / 50.0
    with paced_server(**quick) as first, paced_server(**slow) as second, paced_server(**quick, dies_after=500) as third:
        rate = timed(lambda: collect([first, second, third], problems), requests)
        print(f"quick: {stats(first)['answered']}, ten times slower: {stats(second)['answered']} answers")
    print(f"{rate:.1f} requests/s, {percent(rate / sum_of_live)} of {sum_of_live:.1f}, the sum of the live ones")


def memory(requests: int = 100_000) -> None:
    problems, process = problems_of(requests), psutil.Process()
    begun = time.perf_counter()
    found: list[tuple[int, float]] = []

    with paced_server(tokens=20, rate=0.0, per_event=20) as url:
        import threading

        done = threading.Event()

        def watch() -> None:
            while not done.wait(5.0):
                found.append((stats(url)["answered"], process.memory_info().rss / 1e6))

        threading.Thread(target=watch, daemon=True).start()
        collect([url], problems)
        done.set()
    print(f"{requests / (time.perf_counter() - begun):.0f} requests/s")
    for answered, megabytes in found:
        print(f"{answered:7d} answers: {megabytes:.0f} MB")


if __name__ == "__main__":
    {"bare": bare, "servers": servers, "memory": memory}[sys.argv[1]](*map(int, sys.argv[2:]))
