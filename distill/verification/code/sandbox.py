"""Runs untrusted Python confined by the kernel, with limits on everything and a wall clock, and returns its output.

A program gets its standard input, Python's standard library, and numpy if it is installed. It gets no environment, no
home, no network, no other process, and no file of the machine but the system's libraries; its time, memory and output
are limited. The strongest level that the machine allows is found by trying (`distill/verification/code/confine.py`
describes the levels). If none is allowed, nothing runs unless `allow_unsafe` was called: then a program has the user's
own rights, and only the limits, the empty home and the wall clock remain (and a program that leaves its process group
escapes the wall clock).
"""

from __future__ import annotations

import os
import platform
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from toolkit.errors import InputError
from toolkit.terminal import say

CONFINE = Path(__file__).with_name("confine.py")
"""The program that confines; its imports are Unix's."""
Level = Literal["namespaces", "landlock", "none"]
LEVELS: tuple[Level, ...] = ("namespaces", "landlock")
"""The confining levels, strongest first."""
WALL_S = 5.0
START_S = 20.0
"""Time for the process to start on a busy machine; the program's own time counts separately."""
OUTPUT_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ProgramOutcome:
    """How a program ended."""

    level: Level
    exit_code: int | None
    """None if it was killed for its time or its output."""
    stdout: bytes
    late: bool
    """Whether its time ran out."""


_unsafe: list[Level] = []
"""Levels to try after `LEVELS` in this process."""


def allow_unsafe() -> None:
    """Let programs run unconfined from now on if the machine allows no level: `--allow-unsafe-exec`."""
    _unsafe[:] = ["none"]


def run(
    source: str,
    stdin: bytes = b"",
    *,
    wall_s: float = WALL_S,
    line_limits_s: Sequence[float] = (),
    level: Level | None = None,
) -> ProgramOutcome:
    """Run a program to its end or its limits, at `level` or else at the strongest that the machine allows.

    `wall_s` limits the whole program, or its time to the first line of output if `line_limits_s` gives a limit for each
    further line. Raises `InputError` if the machine allows no level.
    """
    level = level or strongest_level()
    cpu_s = int(wall_s + sum(line_limits_s)) + 1
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
        program, home = Path(folder, "program.py"), Path(folder, "home")
        home.mkdir()
        program.write_text(source, encoding="utf-8", errors="replace")
        process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", "-B", str(CONFINE)),
                *(level, str(program), str(cpu_s), str(os.getpid()), *numpy_folders()),
            ],
            cwd=home,
            env={"PYTHONIOENCODING": "utf-8", "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            stdout, end = _converse(process, stdin, [wall_s, *line_limits_s])
        finally:
            _kill(process)
    exit_code = process.returncode if end == "ended" else None
    return ProgramOutcome(level=level, exit_code=exit_code, stdout=stdout, late=end == "late")


@cache
def numpy_folders() -> list[str]:
    """Return the folders of this Python's numpy and of its libraries; empty if it is not installed."""
    found = find_spec("numpy")
    if found is None or not found.submodule_search_locations:
        return []
    (folder,) = found.submodule_search_locations
    return [folder, *(path for path in (f"{folder}.libs",) if Path(path).is_dir())]


@cache
def strongest_level() -> Level:
    """Return the first of `LEVELS` at which a program runs here; "none" if none does and `allow_unsafe` was called.

    Raises `InputError` if none does and it was not called, and on Windows.
    """
    if not hasattr(os, "killpg"):
        raise InputError(
            f"{platform.system()} cannot confine programs that a model wrote, nor limit and end one with all that it "
            "started; leave out problems with tests, or run this on Linux 5.13 or newer"
        )
    for level in (*LEVELS, *_unsafe):
        outcome = run("print('in')", level=level, wall_s=START_S)
        if outcome.exit_code == 0 and outcome.stdout == b"in\n":
            if level == "none":
                unlimited = " and without a memory limit" if sys.platform == "darwin" else ""
                say(f"sandbox: none; programs that a model wrote run with your rights{unlimited}")
            return level
    raise InputError(
        "this machine cannot confine programs that a model wrote: it allows neither user namespaces nor Landlock with "
        "seccomp; use Linux 5.13 or newer, leave out problems with tests, or run them unconfined with "
        "--allow-unsafe-exec"
    )


def _converse(
    process: subprocess.Popen[bytes], stdin: bytes, limits_s: Sequence[float]
) -> tuple[bytes, Literal["ended", "late", "flooded"]]:
    """Feed the input and collect the output; return it, and how that ended.

    Each line of output starts the next one's limit; the last limit runs until the process ends.
    """
    assert process.stdin and process.stdout
    lines, end, written, stdout = 0, time.monotonic() + limits_s[0], 0, bytearray()
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ)
        waiting.register(process.stdin, selectors.EVENT_WRITE)
        while waiting.get_map():
            left = end - time.monotonic()
            ready = waiting.select(left) if left > 0 else []
            if not ready:
                return bytes(stdout), "late"
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
                    if b"\n" in piece and lines + 1 < len(limits_s):
                        lines = min(lines + piece.count(b"\n"), len(limits_s) - 1)
                        end = time.monotonic() + limits_s[lines]
            if len(stdout) > OUTPUT_BYTES:
                return bytes(stdout[:OUTPUT_BYTES]), "flooded"
    try:
        process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return bytes(stdout), "late"
    return bytes(stdout), "ended"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole process group; the processes of a namespace end with its first."""
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()
    process.wait()
