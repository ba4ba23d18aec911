"""A process that is killed again and again collects each answer of a server that fails in every way exactly once.

The promise: a recorded answer or failure is never asked again; an answer in flight when the process was killed is, so
at most as many answers are paid for twice as were in flight at the kills.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from distill.endpoints.servers.server import CONCURRENCY
from distill.store.failure import Failure
from tests.distill.failing_server import LASTING, THOUGHT, FailingServer
from tests.house.modules import ROOT
from toolkit.records import Problem, Trace, content_hash, read_jsonl, read_records
from toolkit.runs import read_manifest

NIGHTLY = os.environ.get("TOOLKIT_NIGHTLY") == "1"


class Runner:
    """Runs commands in forks; see `tests.distill.forking_runner`."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.distill.forking_runner", str(output)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def start(self, words: list[str]) -> int:
        """Start a command; return its process id."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def ended(self) -> int:
        """Wait for the command; return its exit code."""
        assert self._process.stdout
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@contextmanager
def runner(output: Path) -> Iterator[Runner]:
    running = Runner(output)
    try:
        yield running
    finally:
        running.close()


def settled(folder: Path, questions: dict[str, str]) -> set[str]:
    """Return the questions whose outcome is on disk."""
    paths = folder.glob(".traces/*/*.jsonl")
    return {questions[values["problem_id"]] for path in paths for _, values in read_jsonl(path, torn_end=True)}


@pytest.mark.parametrize(
    ("problems", "kills"),
    [
        (50, 10),
        pytest.param(560, 100, marks=pytest.mark.skipif(not NIGHTLY, reason="takes a minute: TOOLKIT_NIGHTLY=1")),
    ],
)
def test_every_answer_is_there_once_after_kills_and_failures_and_another_option_of_training(
    tiny_student: Path, tmp_path: Path, problems: int, kills: int
) -> None:
    chance = random.Random(kills)
    texts = [{"question": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(problems)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    out = tmp_path / "student"
    with FailingServer(seed=kills) as server, runner(tmp_path / "output") as running:
        words = ["distill", "--teacher", server.url, "--student", str(tiny_student), "--out", str(out)]
        words += ["--problems", str(tmp_path / "problems.jsonl"), "--temperature", "0.6"]
        questions = {content_hash(text["question"]): text["question"] for text in texts}
        killed = 0
        for n in range(10 * kills):
            before, begun = settled(tmp_path, questions), len(server.asked)
            child = running.start([*words, "--epochs", str(1 + n % 2)])
            if killed == kills:
                break
            enough = begun + chance.randrange(1, max(2, 2 * problems // kills))
            patience = time.monotonic() + chance.random()  # some fall before the first request, or after the last
            while len(server.asked) < enough and time.monotonic() < patience:
                time.sleep(0.0005)
            time.sleep(0.005 * chance.random())
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            killed += running.ended() == -signal.SIGKILL
            assert not before & set(server.asked[begun:]), "what was written down is asked again"
        assert running.ended() == 0, running.output.read_text()[-2000:]
        assert killed == kills

    asked = {problem.question for problem in read_records(out / "problems.jsonl", Problem)}
    traces, failures = read_records(out / "traces.jsonl", Trace), read_records(out / "failed.jsonl", Failure)
    answered = Counter(questions[trace.problem_id] for trace in traces)
    assert answered == Counter(question for question in asked if server.fate(question) not in LASTING)
    failed = {questions[failure.problem_id]: failure.reason for failure in failures}
    assert failed == {q: LASTING[server.fate(q)] for q in asked if server.fate(q) in LASTING}
    assert len(failures) == len(failed)
    for trace in traces:
        assert (trace.reasoning, trace.answer) == (THOUGHT, server.said(questions[trace.problem_id]))
    bought = Counter(server.answered)
    assert sum(bought.values()) - len(bought) <= CONCURRENCY * kills
    said = [line for line in running.output.read_text().splitlines() if "requests failed (" in line][-1]
    assert said.startswith(f"{len(failed)} of {len(asked)} requests failed (")
    assert all(f"{count} × {reason}" in said for reason, count in Counter(failed.values()).items())
    (store,) = tmp_path.glob(".traces/*/traces-*.jsonl")
    assert len(read_records(store, Trace)) == len(traces), "a training option begins no store"
    assert read_manifest(out)
