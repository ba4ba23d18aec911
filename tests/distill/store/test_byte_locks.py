"""Claims about locks: one holder at a time, in one process or in many, and none after a death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from distill.store.byte_locks import ByteLocks
from tests.house.modules import ROOT

HOLDER = """
import sys, time
from pathlib import Path
from distill.store.byte_locks import ByteLocks
locks = ByteLocks(Path(sys.argv[1]))
print(*[locks.take(int(byte)) for byte in sys.argv[2:]], flush=True)
time.sleep(60)
"""


def hold(path: Path, *bytes: int) -> tuple[subprocess.Popen[str], str]:
    """Start a process that takes some bytes; return it and what it says."""
    words = [sys.executable, "-c", HOLDER, str(path), *map(str, bytes)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout
    return process, process.stdout.readline().strip()


def test_a_byte_has_one_holder_and_is_free_when_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "locks"
    with ByteLocks(path) as ours:
        assert ours.take(1) and ours.take(1) and ours.take(70_000)
        process, said = hold(path, 1, 2, 70_000)
        assert said == "False True False"
        assert not ours.take(2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert ours.take(2)


def test_two_parts_of_one_process_exclude_each_other_and_neither_frees_what_the_other_holds(tmp_path: Path) -> None:
    path = tmp_path / "locks"
    with ByteLocks(path) as first:
        assert first.take(1)
        with ByteLocks(tmp_path / "." / "locks") as second:
            assert not second.take(1) and second.take(2)
            second.free(2)
            assert first.take(2)
        process, said = hold(path, 1, 2, 3)
        assert said == "False False True", "the second one's end frees nothing of the first"
        process.kill()
        process.communicate()


def test_a_fork_holds_nothing_of_its_parent_and_frees_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "locks"
    with ByteLocks(path) as ours:
        assert ours.take(1)
        child = os.fork()
        if not child:
            ours.free(1)
            with ByteLocks(path) as theirs:
                os._exit(theirs.take(1) + 2 * theirs.take(2))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
        process, said = hold(path, 1)
        assert said == "False"
        process.kill()
        process.communicate()


def test_notes_are_read_by_all_and_half_a_note_is_none(tmp_path: Path) -> None:
    path = tmp_path / "locks"
    with ByteLocks(path) as first, ByteLocks(path) as second:
        assert first.notes() == [] and first.take(0)
        for n in range(50):
            (first, second)[n % 2].note(f"traces-{n}.jsonl")
        assert first.notes() == second.notes() == [f"traces-{n}.jsonl" for n in range(50)]
        with path.open("ab") as file:
            file.write(b"traces-5")
        assert len(second.notes()) == 50
        first.note("traces-51.jsonl")
        assert second.notes()[-1] == "traces-51.jsonl"
