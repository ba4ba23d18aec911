"""A command: the parser that it gets, and what it hands back."""

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
    """What a command hands back: the facts for --json, and the same as text for a person."""

    facts: Mapping[str, Any]
    text: str
    then: Callable[[], None] | None = None
    """What a person at a terminal gets next, after the text."""
    error: ToolkitError | None = None
    """Why the command fails although it has a result to show."""


class AddCommand(Protocol):
    """Adds a command to the command line and returns its own parser."""

    def __call__(self, name: str, run: Callable[[Options], Result], *, extra: str, summary: str) -> Parser:
        """`extra`: the one of pyproject.toml that the command needs; `summary`: what it does, for the help."""
