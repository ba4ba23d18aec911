"""Whether two mathematical answers mean the same: math-verify (Kydlíček 2025) in a process that can be killed.

A model's answer is foreign text that a computer algebra system evaluates: `9**9**9**9` never ends, deep brackets
overflow the stack, and math-verify's own time limits work in a main thread only. So one worker process compares, one
pair at a time; a pair that takes too long or too much memory costs that worker, the next pair gets a new one.

    us ── {"reference": …, "answer": …} ──> worker          one JSON text a line
       <── true / false ───────────────────

The worker ends when its standard input does, so none outlives this process.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from toolkit.errors import MissingExtra

LIMIT_S = 5.0
START_LIMIT_S = 120.0
"""For importing the algebra system, on a machine that does much else."""
MEMORY_BYTES = 2 << 30
LONGEST = 4_000
"""Characters of an answer; nobody's result is longer."""


def equivalent(reference: str, answer: str, limit_s: float = LIMIT_S) -> bool:
    """Whether the answer equals the reference as mathematics; False where that cannot be found out within the limits.

    Both are expressions, plain or LaTeX, without a sentence around them.
    Raises `MissingExtra` where math-verify is not installed.
    """
    if max(len(reference), len(answer)) > LONGEST:
        return False
    return _worker().compare(reference, answer, limit_s)


class _Worker:
    """The comparing process; started when it is first needed, and again after it was lost."""

    def __init__(self) -> None:
        if find_spec("math_verify") is None:
            raise MissingExtra("math_verify", "distill")
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.stop)

    def compare(self, reference: str, answer: str, limit_s: float) -> bool:
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        verdict = self._ask(self._process, {"reference": reference, "answer": answer}, limit_s)
        if verdict is None:
            self.stop()
        return verdict is True

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=Path(__file__).parents[3],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._ask(process, {"reference": "1", "answer": "1"}, START_LIMIT_S), "math-verify must start"
        return process

    @staticmethod
    def _ask(process: subprocess.Popen[bytes], pair: dict[str, str], limit_s: float) -> bool | None:
        """The worker's verdict, None where it gave none in time."""
        assert process.stdin and process.stdout
        end, line = time.monotonic() + limit_s, b""
        try:
            process.stdin.write(json.dumps(pair).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            return None
        while not line.endswith(b"\n"):
            if not select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            piece = os.read(process.stdout.fileno(), 64)
            if not piece:
                return None
            line += piece
        return bool(json.loads(line))


@cache
def _worker() -> _Worker:
    return _Worker()


def _serve() -> None:
    """The worker's whole life."""
    import logging
    import resource

    from math_verify import parse, verify

    logging.disable()  # it warns that nobody limits its time
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    verdicts = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for whatever a library prints
    for line in sys.stdin:
        pair = json.loads(line)
        try:
            reference, answer = (parse(f"${pair[name]}$", parsing_timeout=None) for name in ("reference", "answer"))
            verdict = bool(reference and answer) and verify(reference, answer, timeout_seconds=None)
        except Exception:  # noqa: BLE001 - an algebra system on foreign text
            verdict = False
        verdicts.write(json.dumps(verdict) + "\n")
        verdicts.flush()


if __name__ == "__main__":
    _serve()
