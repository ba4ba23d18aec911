"""Programs that tests run in processes of their own, and waiting for what these do."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.house.modules import ROOT

WAIT_S = 60.0


@contextmanager
def started(address: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], re.Match[str]]]:
    """Run Python with these arguments; yield its process and the `address`, a pattern, in the first line it prints."""
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            printed = process.stdout.readline()
            found = re.search(address, printed)
            assert found, f"the server printed {printed!r} instead of its address"
            yield process, found
        finally:
            process.terminate()


def modules_loaded_by(program: str) -> set[str]:
    """Run a program in a fresh Python; return the top-level names of the modules that it has loaded."""
    program += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, f"waited {WAIT_S:.0f} s in vain"
        time.sleep(0.01)
