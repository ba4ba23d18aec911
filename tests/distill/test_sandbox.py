"""What a program in the sandbox can't do, at every level that this machine allows."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distill import sandbox
from distill.sandbox import LEVELS, Level, run
from toolkit.errors import InputError

WALL_S = 20.0
"""For programs that end by themselves: this machine may do much else."""


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Level:
    allowed: Level = request.param
    if run("print('in')", level=allowed, wall_s=WALL_S).exit_code != 0:
        pytest.skip(f"this machine does not allow {allowed}")
    return allowed


def succeeds(program: str, level: Level) -> bool:
    """Whether the program reaches its end; an attack that is stopped raises or is killed before it."""
    return run(f"{program}\nprint('reached the end')", level=level, wall_s=WALL_S).stdout.endswith(b"reached the end\n")


def test_a_plain_program_runs(level: Level) -> None:
    program = "import json, sys, threading, fractions, datetime\nthreading.Thread(target=print, args=(1,)).start()\n"
    outcome = run(program + "print(sys.stdin.read().upper())", b"hi", level=level, wall_s=WALL_S)
    assert (outcome.exit_code, outcome.stdout) == (0, b"1\nHI\n")


def test_the_strongest_level_is_taken_first() -> None:
    assert run("").level == sandbox.strongest_level()


ATTACKS = {
    "start a program": "import subprocess; subprocess.run(['/bin/true'])",
    "fork": "import os; os.fork()",
    "fork bomb": "import os\nwhile True: os.fork()",
    "leave the process group": "import os; os.setsid()",
    "open a socket": "import socket; socket.socket()",
    "open a unix socket": "import socket; socket.socket(socket.AF_UNIX)",
    "signal everybody": "import os; os.kill(-1, 0)",
    "signal the parent": "import os; os.kill(os.getppid(), 0)",
    "see other processes": "import os; os.listdir('/proc')",
    "read a file of the user's": "open({secret!r}).read()",
    "make a file": "open({secret!r} + '2', 'w')",
    "read the project": "open({project!r}).read()",
    "read passwords": "open('/etc/passwd').read()",
    "write over the system's libraries": "open({library!r}, 'a')",
    "change a file's mode": "import os; os.chmod({library!r}, 0o777)",
    "change a file's times": "import os; os.utime({library!r})",
    "become root again": "import os; os.setuid(0); os.listdir('/root/.')",
    "mount": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.mount(b'none', b'/home', b'tmpfs', 0, None) == 0"
    ),
    "new namespaces": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "trace": "import ctypes\nassert ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0",
    "eat all memory": "x = bytearray(2 << 30)",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_stopped(attack: str, level: Level, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    program = ATTACKS[attack].format(secret=str(tmp_path / "secret"), project=__file__, library=os.__file__)
    assert not succeeds(program, level)


def test_the_attacks_work_where_nothing_confines_them() -> None:
    for attack in ("fork", "open a socket", "read the project", "see other processes", "signal the parent"):
        program = ATTACKS[attack].format(secret="", project=__file__, library="")
        subprocess.run([sys.executable, "-c", program], check=True)


def test_no_environment_gets_in(level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert run("import os; print(dict(os.environ))", level=level, wall_s=WALL_S).stdout == b"{}\n"


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(1000)"])
def test_the_wall_clock_ends_it(program: str, level: Level) -> None:
    assert run(f"print('on', flush=True)\n{program}", level=level, wall_s=2.0).exit_code is None


def test_endless_output_ends_it(level: Level) -> None:
    outcome = run("while True: print('x' * 1000)", level=level, wall_s=WALL_S)
    assert outcome.exit_code is None
    assert len(outcome.stdout) == sandbox.OUTPUT_BYTES


def test_input_that_nobody_reads_and_much_input_that_somebody_does(level: Level) -> None:
    much = b"x" * 3_000_000
    assert run("pass", much, level=level, wall_s=WALL_S).exit_code == 0
    assert run("import sys; print(len(sys.stdin.read()))", much, level=level, wall_s=WALL_S).stdout == b"3000000\n"


def test_exit_codes_come_through(level: Level) -> None:
    assert run("import os; os._exit(7)", level=level, wall_s=WALL_S).exit_code == 7
    assert run("raise ValueError", level=level, wall_s=WALL_S).exit_code == 1
    assert run("no python", level=level, wall_s=WALL_S).exit_code == 1


def test_nothing_runs_on_when_the_caller_is_killed(level: Level) -> None:
    caller = f"from distill.sandbox import run\nrun('import time; time.sleep(30)', level={level!r}, wall_s=60.0)"
    with subprocess.Popen([sys.executable, "-c", caller]) as process:
        _wait(lambda: bool(_children(process.pid)))
        inside = _children(process.pid)
        process.kill()
        process.wait()
    _wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in inside))


def test_a_machine_that_allows_nothing_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "LEVELS", ())
    with pytest.raises(InputError, match="neither user namespaces nor Landlock"):
        sandbox.strongest_level.__wrapped__()


def _children(pid: int) -> list[int]:
    """All processes below one, that are beyond their start."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            child = int(path.parent.name)
            found += [child, *_children(child)]
    return found


def _wait(claim: Callable[[], bool]) -> None:
    for _ in range(600):
        if claim():
            return
        time.sleep(0.1)
    raise AssertionError("waited for a minute in vain")
