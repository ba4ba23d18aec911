"""Foreign Python in, what it printed out: confined by the kernel, limited in everything, killed at the wall clock.

A program gets its standard input and Python's standard library. It gets no environment, no home, no network, no other
process, and no file of the machine but the system's libraries; what it may use of time, memory and output is limited.
The strongest level that the machine allows is found by trying (`distill/verification/confine.py` says what they are); where none
is allowed, nothing runs, unless `allow_unsafe` was called: then a program has the user's own rights, and of all this
only the limits, the empty home and the end at the wall clock are left (which a program that leaves its process group
escapes).
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from distill.verification import confine
from toolkit.errors import InputError

Level = Literal["namespaces", "landlock", "none"]
LEVELS: tuple[Level, ...] = ("namespaces", "landlock")
"""Those that confine, strongest first."""
WALL_S = 5.0
START_S = 20.0
"""For the process to begin, on a machine that does much else; the program's own time counts besides."""
OUTPUT_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a program ended."""

    level: Level
    exit_code: int | None
    """None: killed, for its time or its output."""
    stdout: bytes


_unsafe: list[Level] = []
"""What may be tried after `LEVELS`, in this process."""


def allow_unsafe() -> None:
    """From now on, let programs run unconfined where the machine allows no level: `--allow-unsafe-exec`."""
    _unsafe[:] = ["none"]


def run(source: str, stdin: bytes = b"", *, wall_s: float = WALL_S, level: Level | None = None) -> Outcome:
    """Run a program to its end or its limits, at `level` or else at the strongest that the machine allows.

    Raises `InputError` where the machine allows none.
    """
    level = level or strongest_level()
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
        program, home = Path(folder, "program.py"), Path(folder, "home")
        home.mkdir()
        program.write_text(source, encoding="utf-8", errors="replace")
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", confine.__file__, level, str(program), str(int(wall_s) + 1)],
            cwd=home,
            env={"PYTHONIOENCODING": "utf-8", "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            stdout, ended = _converse(process, stdin, wall_s)
        finally:
            _kill(process)
    return Outcome(level=level, exit_code=process.returncode if ended else None, stdout=stdout)


@cache
def strongest_level() -> Level:
    """The first of `LEVELS` at which a program runs here; "none" where none does and `allow_unsafe` was called.

    Raises `InputError` where none does and it was not.
    """
    for level in (*LEVELS, *_unsafe):
        outcome = run("print('in')", level=level, wall_s=START_S)
        if outcome.exit_code == 0 and outcome.stdout == b"in\n":
            if level == "none":
                print("sandbox: none; programs that a model wrote run with your rights", file=sys.stderr, flush=True)
            return level
    raise InputError(
        "programs that a model wrote must run where the kernel confines them, and this machine allows neither user "
        "namespaces nor Landlock with seccomp; use Linux 5.13 or newer, leave out problems with tests, or let them run "
        "unconfined by --allow-unsafe-exec"
    )


def _converse(process: subprocess.Popen[bytes], stdin: bytes, wall_s: float) -> tuple[bytes, bool]:
    """Feed the input, collect the output; returns it, and whether the process ended within its limits."""
    assert process.stdin and process.stdout
    end, written, stdout = time.monotonic() + wall_s, 0, bytearray()
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ)
        waiting.register(process.stdin, selectors.EVENT_WRITE)
        while waiting.get_map():
            left = end - time.monotonic()
            ready = waiting.select(left) if left > 0 else []
            if not ready:
                return bytes(stdout), False
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    try:
                        written += os.write(key.fd, stdin[written : written + 65536])
                    except BrokenPipeError:
                        written = len(stdin)
                    if written >= len(stdin):
                        waiting.unregister(process.stdin)
                        process.stdin.close()
                else:
                    piece = os.read(key.fd, 65536)
                    if not piece:
                        waiting.unregister(process.stdout)
                    stdout += piece
            if len(stdout) > OUTPUT_BYTES:
                return bytes(stdout[:OUTPUT_BYTES]), False
    try:
        process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return bytes(stdout), False
    return bytes(stdout), True


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the whole group; a namespace's processes end with its first."""
    with suppress(ProcessLookupError):  # none is left
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()
    process.wait()
