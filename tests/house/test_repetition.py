"""A claim about all Python files of the project: what is done twice is written once."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.house.modules import PACKAGES, ROOT

LINES = 6
"""As many lines that stand in two places are the same code."""
_SAYS_NOTHING = re.compile(r"\W*|#.*|else:|try:|finally:|return|pass|continue|break")


def runs(source: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield each run of `LINES` lines, imports and lines that say nothing left out, and where it begins."""
    imports = {
        number
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = [(number, line.strip()) for number, line in enumerate(source.splitlines(), 1) if number not in imports]
    lines = [(number, line) for number, line in lines if not _SAYS_NOTHING.fullmatch(line)]
    for at in range(len(lines) - LINES + 1):
        yield lines[at][0], tuple(line for _, line in lines[at : at + LINES])


def repeated(sources: Mapping[str, str]) -> list[str]:
    """Return each place whose run stands in an earlier place too."""
    first: dict[tuple[str, ...], str] = {}
    found = []
    for name, source in sources.items():
        for number, run in runs(source):
            place = f"{name}:{number}"
            if first.setdefault(run, place) != place:
                found.append(f"{place} ~ {first[run]}")
    return found


def test_no_six_lines_stand_in_two_places() -> None:
    paths = [path for folder in (*PACKAGES, "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert not repeated({str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths})


def test_six_lines_in_two_places_would_be_found() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert repeated({"a": source, "b": source})
    assert not repeated({"a": source, "b": "\n".join(source.splitlines()[: LINES + 2])})
