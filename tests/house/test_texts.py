"""What the texts tell a reader to type exists."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.house.modules import ROOT
from toolkit.cli.parser import build_parser

TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]


def code_lines(text: str) -> list[str]:
    """Lines of fenced blocks, prompt signs and comments taken off."""
    blocks = re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("$ ").split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("toolkit ", "make "))]


def verbs() -> set[str]:
    action = next(action for action in build_parser()._actions if action.dest == "verb" or action.choices)
    assert isinstance(action.choices, dict)
    return set(action.choices)


def test_readme_shows_commands() -> None:
    lines = code_lines((ROOT / "README.md").read_text())
    assert "make demo" in lines
    assert "make test" in lines
    assert any(line.startswith("toolkit distill ") for line in lines)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_command_line_in_a_text_parses(path: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for line in code_lines((ROOT / path).read_text()):
        program, *arguments = shlex.split(line)
        if program == "make":
            assert set(arguments) <= targets, line
        else:
            build_parser().parse_args(arguments)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_texts_mention_only_commands_that_exist(path: str) -> None:
    mentioned = set(re.findall(r"`toolkit ([a-z]+)", (ROOT / path).read_text()))
    assert mentioned <= verbs()
