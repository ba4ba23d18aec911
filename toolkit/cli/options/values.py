"""Parses the words of a command line; a wrong one is a one-line error that suggests the nearest right one."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from toolkit.errors import InputError

DIGITS = 12
"""The most digits that a whole number may have."""
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""The beginning of a URL; a drive of Windows has one letter only."""


class Parser(argparse.ArgumentParser):
    """Reports wrong arguments in one line that names the help of their command."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as the parent class does, but refuse unknown arguments here, so that the error names their command."""
        self._refuse_unknown(args or [])
        found, extras = super().parse_known_args(args, namespace)
        if extras:
            self.error(f"unrecognized arguments: {' '.join(extras)}")
        return found, extras

    before_help: Callable[[Parser], None] | None = None
    """Called before the help is written, to fill in what only an import tells."""

    def format_help(self) -> str:
        if self.before_help:
            self.before_help(self)
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see: {self.prog} --help")

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        """Refuse an unknown option before argparse misses the required one that it may be a misspelling of."""
        inner = next((action for action in self._actions if isinstance(action, argparse._SubParsersAction)), None)
        for word in words:
            if word == "--" or (inner and word in inner.choices):
                return
            name = word.partition("=")[0]
            if name.startswith("--") and " " not in name and name not in self._option_string_actions:
                self.error(f"unrecognized option {name!r:.60}{_nearest(name, self._option_string_actions)}")
            if inner and inner.required and not word.startswith("-"):
                return  # an unknown command, which `_check_value` refuses

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            must = f"{value!r:.60} must be one of {', '.join(choices)}{_nearest(str(value), choices)}"
            raise argparse.ArgumentError(action, must)


def add_flag(parser: argparse._ActionsContainer, name: str, help_text: str) -> None:
    """Add an option that takes no value and is off by default."""
    parser.add_argument(name, action="store_true", help=help_text)


def shared_options() -> Parser:
    """Return a parser of the options that every command takes."""
    shared = Parser(add_help=False)
    add_flag(shared, "--json", "print one JSON object on stdout")
    add_flag(shared, "--debug", "show the traceback of an error")
    return shared


def add_subcommand(subcommands: Any, name: str, command: Any, *, summary: str, description: str) -> Parser:
    """Add a subcommand that calls `command`, and return its parser."""
    parser: Parser = subcommands.add_parser(
        name, help=summary, description=description, parents=[shared_options()], allow_abbrev=False
    )
    parser.set_defaults(command=command)
    return parser


class Instead(argparse._SubParsersAction):  # type: ignore[type-arg]
    """Subcommands that do not need the options that their parent command requires."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        super().__call__(parser, *rest)
        for action in parser._actions:
            action.required = False


class Version(argparse.Action):
    """Prints the version, which is looked up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib import metadata

        print(f"{parser.prog} {metadata.version('reasoning-edge')}")
        parser.exit()


def _nearest(word: str, words: Any) -> str:
    """Return the nearest valid word as the end of an error message; empty where none is near."""
    found = get_close_matches(word, list(words), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def path_of(text: str) -> Path:
    """Parse a local path. A URL is refused: as a path it would lose a slash and never be found."""
    return _local(text, "a local file or folder", "give its path")


def named_path_of(text: str) -> tuple[str, Path]:
    """Parse a name and a local path, NAME=DIR."""
    name, separator, path = text.partition("=")
    if not (name and name.isprintable() and separator and path):
        raise argparse.ArgumentTypeError(f"{text!r:.60} must be a printable name and a folder: NAME=DIR")
    return name, path_of(path)


def data_of(text: str) -> Path:
    """Parse a local path of problems, or the id of a data set on the hub."""
    remedy = "give its path, or for a data set of the Hugging Face hub its id (owner/name)"
    return _local(text, "a local file, a local folder or a data set's id", remedy)


def _local(text: str, kind: str, remedy: str) -> Path:
    if ADDRESS.match(text):
        raise argparse.ArgumentTypeError(
            f"{text!r:.200} is a URL, which is not read: expected {kind}; download it and {remedy}"
        )
    return Path(name_of(text))


def name_of(text: str) -> str:
    """Parse a path, a URL or a name. An empty one is refused: as a path it would be the working directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the value is empty (an unset variable?); give one, or leave the option out")
    return text


def size_of(text: str) -> int:
    """Parse a size such as 90MB or 1.5GB into bytes."""
    number, unit = text[:-2], text[-2:].upper()
    try:
        size_bytes = int(float(number) * {"MB": 1e6, "GB": 1e9}[unit])
    except (KeyError, ValueError, OverflowError):
        size_bytes = 0
    if size_bytes < 1:
        raise argparse.ArgumentTypeError(f"{text!r:.60} must be a size above 0 with its unit, such as 90MB or 1.5GB")
    return size_bytes


def rate_of(text: str) -> float:
    return _number(text, lambda value: 0.0 < value < math.inf, "a number above 0, such as 4e-4")


def temperature_of(text: str) -> float:
    return _number(text, lambda value: 0.0 <= value <= 10.0, "a number from 0 to 10")


def share_of(text: str) -> float:
    return _number(text, lambda value: 0.0 <= value <= 1.0, "a number from 0 to 1")


def factor_of(text: str) -> float:
    return _number(text, lambda value: 0.0 < value < math.inf, "a number above 0, such as 1.5")


def money_of(text: str) -> float:
    return _number(text, lambda value: 0.0 <= value < math.inf, "an amount from 0, such as 0.55")


def top_k_of(text: str) -> int:
    return _whole(text, 0, 2**31 - 1, "a whole number from 0")


def count_of(text: str) -> int:
    return _whole(text, 1, 10**DIGITS - 1, "a whole number of at least 1")


def seed_of(text: str) -> int:
    return _whole(text, 0, 2**32 - 1, f"a whole number from 0 to {2**32 - 1}")  # what every library here can take


def port_of(text: str) -> int:
    return _whole(text, 0, 65535, "a whole number from 0 to 65535")


def _number(text: str, is_right: Callable[[float], bool], what: str) -> float:
    """Parse a number for which `is_right` holds; the error says `what` it must be."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not is_right(value):
        raise argparse.ArgumentTypeError(f"{text!r:.60} must be {what}")
    return value


def _whole(text: str, least: int, most: int, what: str) -> int:
    """Parse a whole number within bounds; the error says `what` it must be."""
    if not text.isascii() or not text.isdigit() or len(text) > DIGITS or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r:.60} must be {what}")
    return int(text)
