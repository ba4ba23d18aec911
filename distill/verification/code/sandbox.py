"""Foreign Python in, what it printed out: confined by the kernel, limited in everything, killed at the wall clock.

A program gets its standard input, Python's standard library, and numpy where that is installed. It gets no environment,
no home, no network, no other process, and no file of the machine but the system's libraries; what it may use of time,
memory and output is limited. The strongest level that the machine allows is found by trying
(`distill/verification/code/confine.py` says what they are); where none is allowed, nothing runs, unless `allow_unsafe`
was called: then a program has the user's own rights, and of all this only the limits, the empty home and the end at the
wall clock are left (which a program that leaves its process group escapes).
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
"""Those that confine, strongest first."""
WALL_S = 5.0
START_S = 20.0
"""For the process to begin, on a machine that does much else; the program's own time counts besides."""
OUTPUT_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ProgramOutcome:
    """How a program ended."""

    level: Level
    exit_code: int | None
    """None: killed, for its time or its output."""
    stdout: bytes
    late: bool
    """Whether its time ran out."""


_unsafe: list[Level] = []
"""What may be tried after `LEVELS`, in this process."""


def allow_unsafe() -> None:
    """From now on, let programs run unconfined where the machine allows no level: `--allow-unsafe-exec`."""
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

    `wall_s` limits it whole, or up to its first line of output where `line_limits_s` says how long each further one
    may take. Raises `InputError` where the machine allows no level.
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
    """The folders of this Python's numpy, its libraries behind it; empty where it is not installed."""
    found = find_spec("numpy")
    if found is None or not found.submodule_search_locations:
        return []
    (folder,) = found.submodule_search_locations
    return [folder, *(path for path in (f"{folder}.libs",) if Path(path).is_dir())]


@cache
def strongest_level() -> Level:
    """The first of `LEVELS` at which a program runs here; "none" where none does and `allow_unsafe` was called.

    Raises `InputError` where none does and it was not, and on Windows.
    """
    if not hasattr(os, "killpg"):
        raise InputError(
            "programs that a model wrote must run where the kernel confines "
            f"them, and {platform.system()} has no way to "
            "limit and end one with all that it started; leave out problems with "
            "tests, or run this on Linux 5.13 or newer"
        )
    for level in (*LEVELS, *_unsafe):
        outcome = run("print('in')", level=level, wall_s=START_S)
        if outcome.exit_code == 0 and outcome.stdout == b"in\n":
            if level == "none":
                unlimited = ", and take what memory they want" if sys.platform == "darwin" else ""
                say(f"sandbox: none; programs that a model wrote run with your rights{unlimited}")
            return level
    raise InputError(
        "programs that a model wrote must run where the kernel confines them, and this machine allows neither user "
        "namespaces nor Landlock with seccomp; use Linux 5.13 or newer, leave out problems with tests, or let them run "
        "unconfined by --allow-unsafe-exec"
    )


def _converse(
    process: subprocess.Popen[bytes], stdin: bytes, limits_s: Sequence[float]
) -> tuple[bytes, Literal["ended", "late", "flooded"]]:
    """Feed the input, collect the output; returns it, and how that ended.

    Each line of output begins the next one's limit; the last limit goes on to the end of the process.
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
    """End the whole group; a namespace's processes end with its first."""
    with suppress(ProcessLookupError):  # none is left
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()
    process.wait()
