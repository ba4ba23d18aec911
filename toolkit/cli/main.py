"""The command line: parses the words, calls one command, and prints its result or a one-line error.

stdout     the result: text for a person, or one JSON object in ASCII with --json (on errors too)
stderr     progress, and errors in one line (--debug: with their traceback)
exit       0 done, 1 a measurement is out of its bounds, 2 the input or the machine is at fault, 70 a bug of ours,
           130 interrupted, 143 ended by SIGTERM
"""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO, cast

from toolkit.cli.bugs import Bug
from toolkit.cli.parser import build_parser
from toolkit.errors import FULL, InputError, MissingExtra, ToolkitError, disk_full, memory_too_small, shortage
from toolkit.terminal import Escaped, say, show, visible_lines

if TYPE_CHECKING:
    from toolkit.cli.options.command import Result

INTERRUPTED, TERMINATED = 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    _speak_utf8()
    with _terminable() as terminated, redirect_stderr(cast(TextIO, Escaped(sys.stderr))):
        code = _main(arguments)
    return TERMINATED if terminated.is_set() and code == INTERRUPTED else code


def _main(arguments: Sequence[str] | None) -> int:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it; its warnings do not concern us
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json, debug = "--json" in words, "--debug" in words
    extra = "all"
    try:
        options = build_parser().parse_args(words)
        extra = options.extra
        result: Result = options.command(options)
        if as_json:
            print(json.dumps(result.facts), flush=True)
        elif result.text:
            show(result.text)
        if result.error:
            _print_error(str(result.error), type(result.error).__name__, result.error.exit_code, as_json=False)
            return result.error.exit_code
        if result.then and not as_json:
            result.then()
        return 0
    except SystemExit as end:  # argparse after --help
        return int(end.code or 0)
    except KeyboardInterrupt:
        _print_error("interrupted; run the same command again to resume", "Interrupted", INTERRUPTED, as_json)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException as error:  # noqa: BLE001 – a panic in a Rust extension is no Exception
        if debug:
            print(visible_lines(traceback.format_exc()), file=sys.stderr)
        shown = explain(error, extra) or Bug.of(error)
        _print_error(str(shown), type(shown).__name__, shown.exit_code, as_json)
        return shown.exit_code


@contextmanager
def _terminable() -> Iterator[threading.Event]:
    """Make SIGTERM act as Ctrl+C does, so that finished work is kept and a line is printed; it sets the event."""
    terminated = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield terminated
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        terminated.set()
        on_interrupt = signal.getsignal(signal.SIGINT)
        if not callable(on_interrupt):  # a background job ignores Ctrl+C
            raise KeyboardInterrupt
        on_interrupt(number, frame)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield terminated
    finally:
        signal.signal(signal.SIGTERM, before)


def _speak_utf8() -> None:
    """Print UTF-8 to pipes too: on Windows they have the encoding of a code page, which lacks many characters."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_chosen = stream.isatty() or os.environ.get("PYTHONIOENCODING")
            stream.reconfigure(encoding=stream.encoding if is_chosen else "utf-8", errors="backslashreplace")


def explain(error: BaseException, extra: str) -> ToolkitError | None:
    """Return the one-line error for what a user, a file or the machine can cause; None for anything else.

    `extra` names the optional dependencies that the command needs.
    """
    if isinstance(error, ToolkitError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name:
        return MissingExtra(error.name.partition(".")[0], extra)
    place = _given_name(error)
    if getattr(error, "errno", None) in FULL:
        return disk_full(place or "the output folder")
    if found := shortage(str(error), place or "the output folder"):
        return found
    if isinstance(error, OSError) and place:
        return InputError(f"{place} cannot be used: {error.strerror}")
    if isinstance(error, MemoryError):
        return memory_too_small(str(error))
    return None


def _given_name(error: BaseException) -> str:
    """Return the file of an error by the name that a person knows; empty if the error names none."""
    from toolkit.runs import given_name

    place = getattr(error, "filename", None)
    return (
        str(given_name(Path(os.fsdecode(place)))) if isinstance(place, (str, bytes, os.PathLike)) else str(place or "")
    )


def _print_error(message: str, kind: str, exit_code: int, as_json: bool) -> None:
    line = " ".join(message.split())
    say(f"toolkit: {line}")
    if as_json:
        print(json.dumps({"error": line, "kind": kind, "exit": exit_code}), flush=True)
