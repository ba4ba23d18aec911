"""Defines the errors that a user, a file or a measurement can cause.

    ToolkitError              one line for the reader
    ├── InputError            exit 2: the user's input, a file or the machine is at fault
    │   ├── MissingExtra      exit 2: an optional dependency is not installed
    │   ├── Unreachable       exit 2: a server does not answer
    │   └── FolderConflict    exit 2: an output folder holds another run
    ├── GateFailed            exit 1: a measurement is out of its bounds
    └── Bug                   exit 70: an unforeseen exception (`toolkit.cli.bugs`)

A message says what is wrong with which value, then the remedy in one clause. What our own code guarantees is asserted
instead.
"""

from __future__ import annotations

import errno

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, a used-up quota, and a file that has reached its largest size."""
FULL_SIGNS = (
    *(f"[Errno {number}]" for number in FULL),
    "No space left on device",
    "(os error 27)",
    "PytorchStreamWriter failed",
    "unexpected pos ",
)
"""What Python, safetensors and torch say of these, in errors without a number."""
NO_MEMORY_SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "MemoryError: ",
    "std::bad_alloc",
)
"""What torch says where Python would raise `MemoryError`, and what another process says of that."""


class ToolkitError(Exception):
    """An error whose message is one line for the person at the terminal."""

    exit_code = 2


class InputError(ToolkitError):
    """A file, an argument or the machine is not as the command needs it."""


class MissingExtra(InputError):
    """A module of an optional extra is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"module {module!r} is not installed; it comes with: pip install 'reasoning-edge[{extra}]'")


class Unreachable(InputError):
    """A server does not answer at its address."""


class Busy(Unreachable):
    """A server takes connections at its address, but sends nothing in time."""


class FolderConflict(InputError):
    """An output folder holds something other than this run."""


class GateFailed(ToolkitError):
    """A measured number is out of the bounds that the stage promises."""

    exit_code = 1


def disk_full(place: object) -> InputError:
    return InputError(f"the disk is full while writing {place}; free space and run the same command again")


def memory_too_small(said: str) -> InputError:
    said = said.partition("\n")[0][:200] or "no more is free"
    return InputError(
        f"the machine's memory is too small for this step ({said}); close programs or use a smaller model"
    )


def shortage(said: str, place: object) -> InputError | None:
    """Return the error of a full disk or of too little memory, if a text has a sign of it; `place` was written to."""
    if any(sign in said for sign in FULL_SIGNS):
        return disk_full(place)
    lines = [line for line in said.splitlines() if any(sign in line for sign in NO_MEMORY_SIGNS)]
    return memory_too_small(lines[-1]) if lines else None
