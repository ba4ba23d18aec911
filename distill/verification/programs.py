"""Which of the code in an answer is the program: the block that defines what the tests call, or that reads their input.

An answer is Markdown, read by CommonMark's rules (fences of back-ticks or tildes, in lists, open at the end), and more
leniently where those find no code. A block in another language than Python is no candidate, and one that names no
language is a candidate only where none says Python. Of the candidates the last one wins that defines all names which
the tests call; of whole programs the last one that reads its input, else the last one. What it uses and an earlier
block defines is put before it.
"""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from toolkit.errors import MissingExtra

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

SOLUTION = "Solution"
"""The class whose methods LeetCode's tests call."""
LONGEST = 200_000
"""Characters of an answer that are read."""
MOST_ENDS = 100
"""Places that are tried for the end of a program without a fence."""

_PYTHON = re.compile(r"\W*(?:i?python|py)[\d.]*\b", re.IGNORECASE)
_LENIENT_FENCE = re.compile(r"(?:```|~~~)([^\n`]*)\n(.*?)(?:^[ \t]*(?:```|~~~)|\Z)", re.DOTALL | re.MULTILINE)
_FIRST_LINE = re.compile(r"(?:import|from|def|class|async def|if|for|while|with|try)\b|@\w|#!|[A-Za-z_][\w, ]*=[^=]")
"""How the first line of a program begins where prose stands before it and no fence."""
_READS_INPUT = frozenset({"input", "stdin", "open", "fileinput"})
_NOT_PYTHON = re.compile(r"^[ \t]*[%!].*$", re.MULTILINE)
"""A notebook's own commands, such as `!pip install` and `%matplotlib`."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Code that compiles, the names that it defines on its top level, and those that it uses."""

    source: str
    defines: frozenset[str]
    uses: frozenset[str]
    reads_input: bool


def find_program(answer: str, calls: Collection[str] = ()) -> str:
    """The program of an answer; `calls` names what the tests call in it, and is empty for a whole program.

    Where nothing compiles, the last block or the whole text is returned as it is: running it says what is wrong.
    Raises `MissingExtra` where markdown-it-py is not installed.
    """
    text = answer[:LONGEST].replace("\r\n", "\n").replace("\r", "\n")
    sources = _fenced(text) or _lenient(text) or _unfenced(text)
    blocks = [block for block in map(_read, sources) if block]
    if not blocks:
        return sources[-1] if sources else text
    answering = [i for i, block in enumerate(blocks) if _answers(block, calls)]
    chosen = answering[-1] if answering else len(blocks) - 1
    return _with_what_it_uses(blocks[chosen], blocks[:chosen], calls)


def _answers(block: Block, calls: Collection[str]) -> bool:
    return block.defines.issuperset(calls) if calls else block.reads_input


def _with_what_it_uses(block: Block, earlier: list[Block], calls: Collection[str]) -> str:
    """The block's code behind that of the earlier blocks that define what it uses and does not define itself."""
    program = block.source
    missing = (block.uses | set(calls)) - block.defines - set(dir(builtins))
    for before in reversed(earlier):
        if missing & before.defines:
            program = f"{before.source}\n{program}"
            missing = (missing | before.uses) - before.defines
    return program


def _fenced(text: str) -> list[str]:
    """The code of the fenced blocks, of those that say Python where any does."""
    fences = [token for token in _markdown().parse(text) if token.type == "fence" and token.content.strip()]
    return _in_python([(token.info, token.content) for token in fences])


def _lenient(text: str) -> list[str]:
    """The same where a fence stands where CommonMark sees none: behind text, or indented below a paragraph."""
    return _in_python([(info, textwrap.dedent(code)) for info, code in _LENIENT_FENCE.findall(text) if code.strip()])


def _in_python(blocks: list[tuple[str, str]]) -> list[str]:
    said = [code for info, code in blocks if _PYTHON.match(info)]
    return said or [code for info, code in blocks if not info.strip()]


def _unfenced(text: str) -> list[str]:
    """The longest run of lines that is a program, from the first line that begins like one."""
    if _read(text):
        return [text]
    lines = text.split("\n")
    start = next((i for i, line in enumerate(lines) if _FIRST_LINE.match(line)), None)
    if start is None:
        return []
    ends = [
        i for i in range(len(lines), start, -1) if lines[i - 1].strip() and not lines[i - 1].startswith((" ", "\t"))
    ]
    for end in [len(lines), *(end - 1 for end in ends)][:MOST_ENDS]:
        if _read(code := "\n".join(lines[start:end])):
            return [code]
    return []


def _read(source: str) -> Block | None:
    """The block, or None where it is no Python or defines and does nothing."""
    for code in (source, _NOT_PYTHON.sub("", source)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes in a model's text
                tree = ast.parse(code)
                nodes = list(ast.walk(tree))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if not tree.body:
            return None
        used = frozenset(node.id for node in nodes if isinstance(node, ast.Name))
        attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        reads_input = bool(_READS_INPUT & (used | attributes))
        return Block(source=code, defines=frozenset(_defined(tree.body)), uses=used, reads_input=reads_input)
    return None


def _defined(body: list[ast.stmt]) -> set[str]:
    """The names that statements bind where they stand; a method counts as its class's `Solution.name` and as `name`."""
    names: set[str] = set()
    for statement in body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.ClassDef(name=name, body=inner):
                methods = _defined(inner)
                names |= {name, *(f"{name}.{method}" for method in methods)}
                names |= methods if name == SOLUTION else set()
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {(alias.asname or alias.name).partition(".")[0] for alias in aliases}
            case ast.If() | ast.Try() | ast.With() | ast.For() | ast.While():
                names |= _defined([s for s in ast.iter_child_nodes(statement) if isinstance(s, ast.stmt)])
            case _:
                stored = (node for node in ast.walk(statement) if isinstance(node, ast.Name))
                names |= {node.id for node in stored if isinstance(node.ctx, ast.Store)}
    return names


@cache
def _markdown() -> MarkdownIt:
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise MissingExtra("markdown_it", "distill") from error
    return MarkdownIt("commonmark")
