"""Measures two of Ray's workers against one, on a server that answers slowly.

python -m benchmarks.ray_workers [REQUESTS]

Each worker may have eight requests in flight, so the server, which takes any number, is not what limits them. The time
is that of the whole job, with the start of its workers, without that of the cluster.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from distill.collecting.job import Job
from distill.endpoints.remote_teacher import Endpoint, Serving
from distill.endpoints.servers.server import ServerSettings
from distill.engines.ray_cluster import ray_cluster
from distill.engines.ray_teacher import RayTeacher
from tests.distill.paced_server import paced_server, stats
from toolkit.generation.generate import Sampling
from toolkit.records import Problem

EACH = 8
TOKENS, RATE = 20, 10.0
"""An answer takes two seconds."""
SAMPLING = Sampling(temperature=0.6, max_new_tokens=64)


def seconds(workers: int, requests: int) -> float:
    """Return how long a job takes; all of its traces must come out."""
    problems = [Problem.create(family="user", question=f"What is {n} plus {n}?", answer="") for n in range(requests)]
    with paced_server(tokens=TOKENS, rate=RATE) as url, tempfile.TemporaryDirectory() as folder:
        settings = ServerSettings(url=url, model="paced", concurrency=EACH * workers)
        teacher = RayTeacher(Endpoint(url=url, model="paced", serving=Serving(servers=(settings,))), workers=workers)
        job = Job(problems=problems, sampling=SAMPLING, samples=1, batch_size=1024, path=Path(folder), shared=True)
        begun = time.perf_counter()
        with teacher:
            traces = teacher.answer(job)
        taken = time.perf_counter() - begun
        assert len(traces) == requests == stats(url)["answered"], "each request is answered once"
        assert stats(url)["most open"] <= EACH * workers
    return taken


def main(requests: int = 320) -> None:
    with ray_cluster("", 2):
        seconds(1, EACH)  # the first job of a cluster starts more than workers
        taken = {workers: seconds(workers, requests) for workers in (1, 2)}
    for workers, each_s in taken.items():
        bound = EACH * workers * RATE / TOKENS
        rate = requests / each_s
        print(f"{workers} of Ray's workers: {each_s:.1f} s, {rate:.2f} requests/s of at most {bound:.0f}")
    print(f"two are {taken[1] / taken[2]:.2f} × as fast as one")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
