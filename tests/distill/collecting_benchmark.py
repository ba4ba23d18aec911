"""Compares collecting traces with a bare asynchronous client that sends the same requests to the same server.

`python -m tests.distill.collecting_benchmark [REQUESTS] [PAUSE_S]`: alternating rounds, medians, and their ratio.
PAUSE_S is the server's time for each answer; with 0 only the clients' own work is left.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from httpx2 import AsyncClient, Timeout

from distill.collecting.job import Job, row_seed
from distill.endpoints.remote_teacher import connect
from distill.endpoints.request_body import SEED_BITS
from toolkit.figures.tables import percent
from toolkit.generation.generate import Sampling
from toolkit.records import Problem

ROUNDS = 9
IN_FLIGHT = 8
SAMPLING = Sampling(temperature=0.6, max_new_tokens=320)


def ask_bare(url: str, problems: Sequence[Problem]) -> None:
    """Post each question, parse the answer, write its text to a file."""

    async def ask() -> None:
        waiting = iter(problems)

        async def work(client: AsyncClient) -> None:
            for problem in waiting:
                body = {
                    "model": "bare",
                    "messages": problem.messages,
                    "max_tokens": SAMPLING.max_new_tokens,
                    "temperature": SAMPLING.temperature,
                    "top_p": SAMPLING.top_p,
                    "seed": row_seed(0, problem.id, 0) % 2**SEED_BITS,
                    "stream": False,
                }
                response = await client.post("chat/completions", json=body)
                file.write(json.dumps({"id": problem.id, **response.json()["choices"][0]["message"]}) + "\n")

        with tempfile.TemporaryFile("w") as file:
            async with AsyncClient(base_url=url, timeout=Timeout(600)) as client, asyncio.TaskGroup() as group:
                for _ in range(IN_FLIGHT):
                    group.create_task(work(client))

    asyncio.run(ask())


def collect(url: str, problems: Sequence[Problem]) -> None:
    """Collect as `toolkit traces` does."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            problems=problems,
            sampling=SAMPLING,
            samples=1,
            batch_size=IN_FLIGHT,
            path=Path(folder),
            shared=True,
        )
        assert len(connect(url).answer(job)) == len(problems)


def main(requests: int = 2000, pause_s: float = 0.0) -> None:
    words = [sys.executable, "-m", "tests.distill.bare_server", str(pause_s)]
    problems = [Problem.create(family="user", question=f"What is {n} plus {n}?", answer="") for n in range(requests)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        rates: dict[str, list[float]] = {"bare client": [], "traces": []}
        for _ in range(ROUNDS):
            for (name, found), ask in zip(rates.items(), (ask_bare, collect), strict=True):
                begun = time.perf_counter()
                ask(url, problems)
                found.append(requests / (time.perf_counter() - begun))
        server.kill()
    for name, found in rates.items():
        print(f"{name}: {median(found):.0f} requests/s ({min(found):.0f} to {max(found):.0f})")
    print(f"traces / bare client: {percent(median(rates['traces']) / median(rates['bare client']))}")
    pairs = [ours / bare for bare, ours in zip(*rates.values(), strict=True)]
    print(f"round by round: {percent(median(pairs))}")


if __name__ == "__main__":
    main(*(kind(word) for kind, word in zip((int, float), sys.argv[1:], strict=False)))
