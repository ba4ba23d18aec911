"""Compares two mathematical answers by math-verify (Kydlíček 2025), in a process that can be killed.

A model's answer is untrusted text that a computer algebra system evaluates: `9**9**9**9` never ends, deep brackets
overflow the stack, and math-verify's own time limits only work in a main thread. So one worker process compares one
pair at a time; a pair that takes too long or too much memory costs that worker, and the next pair gets a new one. The
worker limits its own memory if the system allows it (Linux does, macOS and Windows don't), and is watched as well.

    us ── {"reference": …, "answer": …} ──> worker          one JSON text per line
       <── true / false ───────────────────

The worker ends with its standard input, so none outlives this process.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread

import psutil

from toolkit.errors import MissingExtra

LIMIT_S = 5.0
START_LIMIT_S = 120.0
"""Time for importing the algebra system on a busy machine."""
MEMORY_BYTES = 2 << 30
WATCH_EVERY_S = 0.1
LONGEST = 4_000
"""Most characters of an answer; no real result is longer."""


def equivalent(reference: str, answer: str, limit_s: float = LIMIT_S) -> bool:
    """Return whether the answer equals the reference as mathematics; False if the limits leave that open.

    Both are expressions, plain or LaTeX, without a sentence around them. Raises `MissingExtra` if math-verify is not
    installed.
    """
    if max(len(reference), len(answer)) > LONGEST:
        return False
    return _worker().compare(reference, answer, limit_s)


class _Worker:
    """The comparing process; started when it is first needed, and again after it was killed."""

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
        """Return the worker's verdict; None if it gave none within the limits."""
        assert process.stdin and process.stdout
        answered = Event()
        Thread(target=_watch, args=(process, limit_s, answered), daemon=True).start()
        try:
            process.stdin.write(json.dumps(pair).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # it has ended
            return None
        finally:
            answered.set()
        return bool(json.loads(line)) if line.endswith(b"\n") else None


def _watch(process: subprocess.Popen[bytes], limit_s: float, answered: Event) -> None:
    """Kill the worker if it exceeds its limit of time or memory."""
    end = time.monotonic() + limit_s
    with suppress(psutil.Error):  # it has ended
        worker = psutil.Process(process.pid)
        while not answered.wait(min(WATCH_EVERY_S, max(0.0, end - time.monotonic()))):
            if time.monotonic() >= end or worker.memory_info().rss > MEMORY_BYTES:
                process.kill()
                return


@cache
def _worker() -> _Worker:
    return _Worker()


def _serve() -> None:
    """Run the worker until its standard input ends."""
    import logging

    from math_verify import parse, verify

    logging.disable()  # it warns that its time is not limited
    with suppress(ImportError, ValueError, OSError):  # without such a limit, the other process watches
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    verdicts = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
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
