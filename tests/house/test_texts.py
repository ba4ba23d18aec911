"""Commands, links and paths in the texts exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from tests.house.modules import PACKAGES, ROOT
from tests.house.rooms import files_of_rooms
from toolkit.cli.parser import build_parser

DOCS = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *DOCS]
SOURCES = [
    ROOT / "Makefile",
    *(path for folder in (*PACKAGES, "tests") for path in sorted((ROOT / folder).rglob("*.py"))),
]
"""Files that name a document in a docstring, a comment or a constant."""
OUR_FOLDERS = "|".join((*PACKAGES, "tests"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def prose(path: Path) -> str:
    """Return a text without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def code_lines(text: str) -> list[str]:
    """Return lines of fenced blocks, with continued ones joined, and without prompts and comments."""
    blocks = re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    joined = [re.sub(r" *\\\n *", " ", block) for block in blocks]
    lines = [line.removeprefix("$ ").split("  #")[0].strip() for block in joined for line in block.splitlines()]
    return [line for line in lines if line.startswith(("toolkit ", "make ", "python -m "))]


def anchors(text: str) -> set[str]:
    """Return the anchors of a text: the words of its headings as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def verbs() -> set[str]:
    action = next(action for action in build_parser()._actions if action.dest == "verb" or action.choices)
    assert isinstance(action.choices, dict)
    return set(action.choices)


def test_readme_shows_commands() -> None:
    lines = code_lines((ROOT / "README.md").read_text())
    assert "make demo" in lines
    assert "make test" in lines
    assert any(line.startswith("toolkit distill ") for line in lines)


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_every_command_line_in_a_text_parses(path: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for line in code_lines(path.read_text(encoding="utf-8")):
        program, *arguments = shlex.split(line)
        if program == "make":
            assert set(arguments) <= targets, line
        elif program == "python":
            assert importlib.util.find_spec(arguments[1]), line
        else:
            build_parser().parse_args(arguments)


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_texts_mention_only_commands_that_exist(path: Path) -> None:
    mentioned = set(re.findall(r"`toolkit ([a-z]+)", path.read_text(encoding="utf-8")))
    assert mentioned <= verbs()


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = path if not place else path.parent / place
        assert target.exists(), f"{name_of(path)} links to {link}"
        if anchor:
            assert anchor in anchors(prose(target)), f"{name_of(path)} links to {link}"


@pytest.mark.parametrize("path", [*TEXTS, *SOURCES], ids=name_of)
def test_every_document_that_is_named_exists(path: Path) -> None:
    for name in re.findall(r"(?<![\w./-])docs/[\w./-]*\w", path.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), f"{name_of(path)} names {name}"


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_every_source_file_that_a_text_names_exists(path: Path) -> None:
    for name in re.findall(rf"`((?:{OUR_FOLDERS})/[\w./-]*)`", prose(path)):
        assert (ROOT / name).exists(), f"{name_of(path)} names {name}"


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_every_test_that_a_text_names_exists(path: Path) -> None:
    for name, claim in re.findall(r"`([\w/]+\.py)::(\w+)`(?!†)", prose(path)):
        test = ROOT / "tests" / "distill" / name
        assert f"\ndef {claim}(" in test.read_text(encoding="utf-8"), f"{name_of(path)} names {name}::{claim}"


def test_the_index_links_to_every_document() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)", index.read_text())}
    assert {name_of(path) for path in DOCS if path != index and path.resolve() not in linked} == set()


def test_the_tree_in_the_readme_names_every_room() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Layout")[2]
    assert {
        room for room in files_of_rooms() if f"{room.rpartition('.')[2]}/" not in tree and "benchmarks." not in room
    } == set()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_block_that_a_benchmark_fills_is_in_its_document(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    blocks = re.findall(r'\bfill_file\(DOCUMENT, "([\w-]+)"', source)
    for document in re.findall(r'^DOCUMENT = Path\("(.*)"\)', source, flags=re.MULTILINE):
        for block in blocks:
            assert f"<!-- {block} -->" in (ROOT / document).read_text(encoding="utf-8"), f"{document} has no {block}"
