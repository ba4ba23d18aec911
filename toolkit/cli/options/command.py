"""The contract of a command: the parser that it fills and the result that it returns."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from toolkit.cli.options.values import Parser
from toolkit.errors import ToolkitError

Options = argparse.Namespace


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a command returns: the facts for --json, and the same as text for a person."""

    facts: Mapping[str, Any]
    text: str
    then: Callable[[], None] | None = None
    """Called after the text has been printed, unless --json was given."""
    error: ToolkitError | None = None
    """Why the command fails although it has a result to show."""


class AddCommand(Protocol):
    """Adds a command to the command line and returns the command's parser."""

    def __call__(self, name: str, run: Callable[[Options], Result], *, extra: str, summary: str) -> Parser:
        """`extra`: the optional dependencies in pyproject.toml that the command needs; `summary`: its line of help."""
