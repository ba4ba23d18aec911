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
