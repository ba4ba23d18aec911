"""What a program in the sandbox cannot do, at every level that this machine allows, and what remains without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill.verification.code import sandbox
from distill.verification.code.sandbox import LEVELS, Level, run
from tests.processes import wait_until

ROOT = Path(__file__).parents[2]
WALL_S = 20.0
"""A generous limit for programs that end by themselves: this machine may be busy."""


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Level:
    return allowed(request.param)


@pytest.fixture(params=[*LEVELS, "none"])
def any_level(request: pytest.FixtureRequest) -> Level:
    """Any level, for claims that also hold for unconfined programs."""
    return allowed(request.param)


def allowed(level: Level) -> Level:
    if run("print('in')", level=level, wall_s=WALL_S).exit_code != 0:
        pytest.skip(f"this machine does not allow {level}")
    return level


def succeeds(program: str, level: Level) -> bool:
    """Return whether the program reaches its end; a stopped attack raises or is killed before it."""
    return run(f"{program}\nprint('reached the end')", level=level, wall_s=WALL_S).stdout.endswith(b"reached the end\n")


def test_a_plain_program_runs(any_level: Level) -> None:
    program = "import json, sys, threading, fractions, datetime\nthreading.Thread(target=print, args=(1,)).start()\n"
    outcome = run(program + "print(sys.stdin.read().upper())", b"hi", level=any_level, wall_s=WALL_S)
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
def test_the_wall_clock_ends_it(program: str, any_level: Level) -> None:
    assert run(f"print('on', flush=True)\n{program}", level=any_level, wall_s=2.0).exit_code is None


def test_endless_output_ends_it(any_level: Level) -> None:
    outcome = run("while True: print('x' * 1000)", level=any_level, wall_s=WALL_S)
    assert outcome.exit_code is None
    assert len(outcome.stdout) == sandbox.OUTPUT_BYTES


def test_input_that_nobody_reads_and_much_input_that_somebody_does(any_level: Level) -> None:
    much = b"x" * 3_000_000
    assert run("pass", much, level=any_level, wall_s=WALL_S).exit_code == 0
    assert run("import sys; print(len(sys.stdin.read()))", much, level=any_level, wall_s=WALL_S).stdout == b"3000000\n"


def test_exit_codes_come_through(any_level: Level) -> None:
    assert run("import os; os._exit(7)", level=any_level, wall_s=WALL_S).exit_code == 7
    assert run("raise ValueError", level=any_level, wall_s=WALL_S).exit_code == 1
    assert run("no python", level=any_level, wall_s=WALL_S).exit_code == 1


def test_nothing_runs_on_when_the_caller_is_killed(any_level: Level) -> None:
    caller = (
        "from distill.verification.code.sandbox import run\nrun('import time; "
        f"time.sleep(30)', level={any_level!r}, wall_s=60.0)"
    )
    with subprocess.Popen([sys.executable, "-c", caller]) as process:
        wait_until(lambda: bool(_children(process.pid)))
        inside = _children(process.pid)
        process.kill()
        process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in inside))


def test_unconfined_a_program_has_an_empty_home_and_no_other_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    program = "import os, pathlib; print(list(os.environ), list(pathlib.Path.home().iterdir()), end='')"
    assert run(program, level="none", wall_s=WALL_S).stdout == b"['HOME'] []"


def test_unconfined_a_program_is_still_limited() -> None:
    assert not succeeds(ATTACKS["eat all memory"], "none")
    assert not succeeds("open('big', 'wb').write(bytes(9 << 20))", "none")


@pytest.mark.parametrize("ending", ["", "while True: pass"])
def test_unconfined_what_a_program_started_ends_with_it(ending: str) -> None:
    program = f"import os, time\nif not (pid := os.fork()): time.sleep(1000)\nprint(pid, flush=True)\n{ending}"
    pid = int(run(program, level="none", wall_s=2.0).stdout)
    wait_until(lambda: not _is_alive(pid))


REFUSING = """
import ctypes, struct, sys
from distill.verification.code import confine
from toolkit.cli.main import main

calls = [(0x15, 0, 1, confine.NUMBERS[confine.platform.machine()]["unshare"]), (0x06, 0, 0, confine.DENY),
         (0x15, 0, 1, confine.LANDLOCK_CREATE), (0x06, 0, 0, confine.MISSING)]
code = b"".join(struct.pack("HBBI", *line) for line in [(0x20, 0, 0, 0), *calls, (0x06, 0, 0, confine.ALLOW)])
buffer = ctypes.create_string_buffer(code)
confine._prctl(confine.PR_SET_NO_NEW_PRIVS, 1)
seccomp_filter = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
assert confine.LIBC.prctl(confine.PR_SET_SECCOMP, 2, seccomp_filter, 0, 0) == 0
words = ["eval", sys.argv[1], "--problems", sys.argv[2], "--max-new-tokens", "1", "--out", sys.argv[3]]
print(main(words), main([*words, "--allow-unsafe-exec"]), file=sys.stderr)
"""
"""Runs the command line where the kernel denies namespaces and Landlock, without and with the flag."""


def test_a_machine_that_allows_nothing_runs_nothing_unless_told_to(tiny_student: Path, tmp_path: Path) -> None:
    tests = [{"stdin": "", "stdout": "3"}]
    problem = {"question": "Print three.", "answer": "print(3)", "metadata": {"tests": tests}}
    (tmp_path / "code.jsonl").write_text(json.dumps(problem))
    arguments = [str(tiny_student), str(tmp_path / "code.jsonl"), str(tmp_path / "out")]
    command = [sys.executable, "-c", REFUSING, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("toolkit: ")]
    assert error == (
        "toolkit: this machine cannot confine programs that a model wrote: it allows neither "
        "user namespaces nor Landlock with seccomp; use Linux 5.13 or newer, leave out problems with tests, or run "
        "them unconfined with --allow-unsafe-exec"
    )
    assert done.stderr.splitlines()[-1] == "2 0"
    assert "sandbox: none; programs that a model wrote run with your rights" in done.stderr
    assert json.loads((tmp_path / "out" / "verdicts.jsonl").read_text())["verifier"] == "unit-tests:none"


def _is_alive(pid: int) -> bool:
    """Return whether a process is neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    """Return all started descendants of a process."""
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
