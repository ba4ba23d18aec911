"""The tree of errors that a user, a file or a measurement can cause.

    ToolkitError              one line for the reader
    ├── InputError            exit 2: the user's input, a file, the machine
    │   ├── MissingExtra      exit 2: a dependency that an extra brings
    │   ├── Unreachable       exit 2: a server that nobody answers at
    │   └── FolderConflict    exit 2: an output folder that holds another run
    ├── GateFailed            exit 1: a measurement is out of its bounds
    └── Bug                   exit 70: what nobody foresaw (`toolkit.cli.bugs`)

A message says what (value) must RELATE to what (value), then the remedy in one clause. What our own code
guarantees is asserted instead.
"""


class ToolkitError(Exception):
    """An error whose message is meant for the person at the terminal."""

    exit_code = 2


class InputError(ToolkitError):
    """A file, an argument or the machine is not as the command needs it."""


class MissingExtra(InputError):
    """A dependency of an optional extra cannot be imported."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"module {module!r} is not installed; it comes with: pip install 'reasoning-edge[{extra}]'")


class Unreachable(InputError):
    """Nobody answers at a server's address."""


class FolderConflict(InputError):
    """An output folder holds something else than this run."""


class GateFailed(ToolkitError):
    """A measured number is out of the bounds that the stage promises."""

    exit_code = 1
