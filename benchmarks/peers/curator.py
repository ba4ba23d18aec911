"""Sends the same requests to the same server through curator and through us: rate, memory, what a kill loses.

    python -m benchmarks.peers.curator PYTHON [REQUESTS]

PYTHON is the interpreter of an environment of its own in which `bespokelabs-curator` is installed. Both send up to 256
requests at once to a server that takes 2 s for each. Then each is killed by SIGKILL when half of the answers are there,
and starts again: the answers that were bought twice, or are missing in the end, are counted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.distill.paced_server import paced_server, stats

AT_ONCE = 256
SERVER = {"tokens": 40, "rate": 20.0}

_CURATOR = """
import os, sys
import litellm
os.environ["TIKTOKEN_CACHE_DIR"] = os.path.join(os.path.dirname(litellm.__file__), "litellm_core_utils", "tokenizers")
from bespokelabs import curator

class Ask(curator.LLM):
    def prompt(self, row): return row["question"]
    def parse(self, row, response): return {"question": row["question"], "answer": str(response)}

url, requests = sys.argv[1], int(sys.argv[2])
ask = Ask(model_name="paced", backend="openai", generation_params={"max_tokens": 1024, "temperature": 0.6},
    backend_params={"base_url": url, "api_key": "none", "max_concurrent_requests": int(sys.argv[4]), "max_retries": 10,
        "max_requests_per_minute": 10**6, "max_tokens_per_minute": 10**9, "require_all_responses": False})
found = ask([{"question": f"What is {n} plus {n}?"} for n in range(requests)])
print("answers", len(found.dataset))
"""
_OURS = """
import sys
from pathlib import Path
from distill.collecting.job import Job
from distill.endpoints.remote_teacher import Endpoint, Serving
from distill.endpoints.servers.server import ServerSettings
from toolkit.generation.generate import Sampling
from toolkit.records import Problem

url, requests, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
problems = [Problem.create(family="user", question=f"What is {n} plus {n}?", answer="") for n in range(requests)]
server = ServerSettings(url=url, model="paced", concurrency=int(sys.argv[4]))
job = Job(problems=problems, sampling=Sampling(temperature=0.6, max_new_tokens=1024), samples=1,
    batch_size=int(sys.argv[4]), path=folder, shared=True)
print("answers", len(Endpoint(url=url, model="paced", serving=Serving(servers=(server,))).answer(job)))
"""


class Run:
    """One of the two, in a process of its own with a folder of its own."""

    def __init__(self, name: str, python: str, code: str, folder: Path) -> None:
        self.name = name
        self._words = [python, "-c", code]
        self._folder = folder
        self._environment = os.environ | {
            "CURATOR_CACHE_DIR": str(folder),
            "TELEMETRY_ENABLED": "false",
            "CURATOR_DISABLE_RICH_DISPLAY": "1",
            "OPENAI_API_KEY": "none",
            "HOME": str(folder),
            "PYTHONPATH": "." if name == "toolkit" else "",
        }

    def start(self, url: str, requests: int) -> subprocess.Popen[str]:
        self._folder.mkdir(exist_ok=True)
        words = [*self._words, url, str(requests), str(self._folder), str(AT_ONCE)]
        return subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=self._environment
        )


def measure(run: Run, requests: int) -> None:
    """Print the rate between the first request and the end, and the largest memory."""
    with paced_server(**SERVER) as url, run.start(url, requests) as process:
        watched, most, begun = psutil.Process(process.pid), 0, 0.0
        while process.poll() is None:
            if not begun and stats(url).get("asked"):
                begun = time.perf_counter()
            most = max(most, watched.memory_info().rss if watched.is_running() else 0)
            time.sleep(0.1)
        seconds = time.perf_counter() - begun
        assert process.stdout
        said = process.stdout.read().strip().splitlines()[-1:]
    print(f"{run.name}: {requests / seconds:.1f} requests/s, {most / 1e6:.0f} MB, {said}", flush=True)


def kill_once(run: Run, requests: int) -> None:
    """Kill it in the middle, run it again, and print what was asked more than once or is missing."""
    with paced_server(**SERVER) as url:
        with run.start(url, requests) as process:
            while stats(url).get("answered", 0) < requests // 2 + AT_ONCE:
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        with run.start(url, requests) as process:
            assert process.stdout
            said = process.stdout.read().strip().splitlines()[-1:]
        asked = stats(url)["asked"]
    print(
        f"{run.name}, killed once: {asked - requests} requests were sent twice ({AT_ONCE} in flight), {said}",
        flush=True,
    )


def main(python: str, requests: int = 2000) -> None:
    with tempfile.TemporaryDirectory() as place:
        for number, action in enumerate((measure, kill_once)):
            for name, interpreter, code in (("toolkit", sys.executable, _OURS), ("curator", python, _CURATOR)):
                action(Run(name, interpreter, code, Path(place) / f"{name}-{number}"), requests)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
