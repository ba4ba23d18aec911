"""Style sheets and scripts are files that parse, say what they are for, and are in the wheel."""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tinycss2
from playwright._impl._driver import compute_driver_executable

from tests.house.modules import PACKAGES, ROOT, module_files

MOST_COLUMNS = 120
ASSETS = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("assets/*"))
SHEETS, SCRIPTS = ([path for path in ASSETS if path.suffix == ending] for ending in (".css", ".js"))
KNOWN_PROPERTIES = frozenset((ROOT / "tests" / "house" / "css_properties.txt").read_text().split())
"""Look a new property up before you add it here: browsers ignore misspelt ones silently."""

PARSE = """
const [fs, vm] = [require("fs"), require("vm")];
const complaint = (file) => { try { new vm.Script(fs.readFileSync(file, "utf8")); } catch (error) { return error.message; } };
console.log(JSON.stringify(process.argv.slice(1).map((file) => complaint(file) ?? "")));
"""
OTHER_LANGUAGES = re.compile(
    r"\bdocument\.\w|\baddEventListener\(|=> *\{|\b(?:const|let) \w+ = |\{[^{}\"']*[\w-]+ *:[^{}]*;[^{}]*\}"
)
"""Patterns of JavaScript and CSS that neither prose nor Python has."""


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def complaints_of_scripts(paths: Sequence[Path]) -> list[str]:
    """Return the complaints of node, which comes with playwright, about each file as a page's script."""
    command = [compute_driver_executable()[0], "-e", PARSE, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    complaints: list[str] = json.loads(done.stdout)
    return complaints


def complaints_of_sheet(text: str) -> Iterator[str]:
    """Return what does not parse, and unknown properties."""
    yield from _of_nodes(tinycss2.parse_stylesheet(text, skip_comments=True, skip_whitespace=True))


def _of_nodes(nodes: list[Any]) -> Iterator[str]:
    for node in nodes:
        if node.type == "error":
            yield f"line {node.source_line}: {node.message}"
        elif node.type == "declaration":
            if not node.name.startswith("--") and node.name not in KNOWN_PROPERTIES:
                yield f"line {node.source_line}: no property {node.name}"
            yield from _of_tokens(node.value, (":", ";"))
        elif node.type in ("qualified-rule", "at-rule"):
            yield from _of_tokens(node.prelude)
            if node.content is not None:
                yield from _of_nodes(
                    tinycss2.parse_blocks_contents(node.content, skip_comments=True, skip_whitespace=True)
                )


def _of_tokens(tokens: list[Any], misplaced: Sequence[str] = ()) -> Iterator[str]:
    """Return unopened brackets, and blocks or colons within a value, before which something was not closed."""
    for token in tokens:
        if token.type == "error":
            yield f"line {token.source_line}: {token.message}"
        elif token.type == "{} block" or (token.type == "literal" and token.value in misplaced):
            yield f"line {token.source_line}: no end before this"


def strings_of(source: str) -> Iterator[tuple[int, str]]:
    """Return line and text of each multi-line string that is no docstring, without its formatted parts."""
    tree = ast.parse(source)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in prose or not isinstance(node, (ast.Constant, ast.JoinedStr)):
            continue
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        values = [part.value for part in parts if isinstance(part, ast.Constant)]
        text = "".join(str(value) for value in values if isinstance(value, (str, bytes)))
        if (node.end_lineno or 0) > node.lineno:
            yield node.lineno, text


def test_there_are_assets() -> None:
    assert len(SHEETS) > 10 and len(SCRIPTS) > 8


def test_every_script_parses() -> None:
    complaints = dict(zip(map(shown, SCRIPTS), complaints_of_scripts(SCRIPTS), strict=True))
    assert not {name: said for name, said in complaints.items() if said}


def test_a_script_that_does_not_parse_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text("const a = (;")
    (tmp_path / "b.js").write_text("return 1;")
    assert all(complaints_of_scripts([tmp_path / "a.js", tmp_path / "b.js"]))


@pytest.mark.parametrize("path", SHEETS, ids=shown)
def test_every_sheet_parses_and_knows_its_properties(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("{") == text.count("}")
    assert not list(complaints_of_sheet(text))


@pytest.mark.parametrize(
    "text",
    [
        "p { colour: red; }",
        "p { color: red",
        "p { color: red; } }",
        "p { color: red; a { color: red; }",
        "p { color red; }",
        "p { color: red\n margin: 0; }",
        "p { a { colr: red; } }",
        "@media print { p { colr: red; } }",
    ],
)
def test_a_sheet_with_a_slip_is_found(text: str) -> None:
    assert text.count("{") != text.count("}") or list(complaints_of_sheet(text)), text


@pytest.mark.parametrize("path", SHEETS + SCRIPTS, ids=shown)
def test_an_asset_says_what_it_is_for_in_lines_that_fit(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert re.match(r"/\* .{20}|// .{20}", lines[0]), (
        f"{shown(path)} must begin with a comment that says what it is for"
    )
    assert not [number for number, line in enumerate(lines, 1) if len(line) > MOST_COLUMNS or line != line.rstrip()]


def test_a_wheel_carries_every_asset() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for path in ASSETS:
        package = ".".join(path.parents[1].relative_to(ROOT).parts)
        assert any(fnmatch.fnmatch(package, pattern) for pattern in setup["packages"]["find"]["include"])
        patterns = setup["package-data"].get(package, [])
        within = path.relative_to(path.parents[1]).as_posix()
        assert any(fnmatch.fnmatch(within, pattern) for pattern in patterns), f"no package-data names {shown(path)}"


@pytest.mark.parametrize("module", module_files())
def test_no_python_file_holds_a_style_or_a_script(module: str) -> None:
    for line, text in strings_of(module_files()[module].read_text()):
        found = OTHER_LANGUAGES.search(text)
        assert not found, f"{module}, line {line}: {found and found.group()[:60]!r} belongs into a file of assets/"


@pytest.mark.parametrize(
    "source",
    [
        'S = """\ndocument.body.append(list);\n\n"""',
        'S = f"""<script>\nconst route = {x};\n</script>"""',
        'S = b"""\n#a p { margin: 0; }\n"""',
        'S = (\n    f"#{BOX} {{ display: none; }}"\n    "p { color: red; }"\n)',
    ],
)
def test_a_style_or_a_script_in_python_would_be_found(source: str) -> None:
    assert any(OTHER_LANGUAGES.search(text) for _, text in strings_of(source))
