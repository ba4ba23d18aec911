"""Finds the program in an answer: the code block that defines what the tests call, or that reads their input.

An answer is read as Markdown by CommonMark's rules (fences of back-ticks or tildes, in lists, open at the end), and
more leniently if that finds no suitable code: HTML's `<pre>`, a program without a fence, indented code, inline code. A
block in another language than Python is no candidate; one without a language is a candidate only if no block says
Python; one that does nothing (a printed result) is none. The last candidate that defines all names which the tests call
wins, else the last one that imports them; of whole programs the last one that reads its input, itself or through
another block's functions, else the last one. Definitions that it uses from other blocks are added to it.
"""

from __future__ import annotations

import ast
import builtins
import html
import re
import symtable
import textwrap
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from toolkit.errors import MissingExtra

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

SOLUTION = "Solution"
"""The class whose methods LeetCode's tests call."""
LONGEST = 200_000
"""Most characters of an answer that are read."""
MOST_ENDS = 100
"""Most lines that are tried as the end of a program without a fence."""

_PYTHON = re.compile(r"\W*(?:i?python|py)[\d.]*\b", re.IGNORECASE)
_LENIENT_FENCE = re.compile(r"(?:```|~~~)([^\n`]*)\n(.*?)(?:^[ \t]*(?:```|~~~)|\Z)", re.DOTALL | re.MULTILINE)
_HTML = re.compile(r"<(pre|code)\b([^<>]*)>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
_HTML_CODE = re.compile(r"\s*<code\b([^<>]*)>(.*?)</code>\s*", re.DOTALL | re.IGNORECASE)
_HTML_LANGUAGE = re.compile(r"\blang(?:uage)?(?:-|=[\"']?)(\w+)", re.IGNORECASE)
_LANGUAGE_IN_LINE = re.compile(r"\A(?:python3?|py)\s+(?=\S)", re.IGNORECASE)
_FIRST_LINE = re.compile(r"(?:import|from|def|class|async def|if|for|while|with|try)\b|@\w|#!|[A-Za-z_][\w, ]*=[^=]")
"""The beginning of a program's first line after prose without a fence."""
_READS_INPUT = frozenset({"input", "stdin", "open", "fileinput"})
_NOT_PYTHON = re.compile(r"^[ \t]*[%!].*$", re.MULTILINE)
"""A notebook's own commands, such as `!pip install` and `%matplotlib`."""
_PROMPTED = re.compile(r"^[ \t]*(?:>>>|\.\.\.) ?(.*)$", re.MULTILINE)
_FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class CodeBlock:
    """Code that compiles, with the names that it defines or imports at its top level and the globals that it uses."""

    source: str
    defines: frozenset[str]
    imports: frozenset[str]
    uses: frozenset[str]
    reads_input: bool
    acts: bool
    """Whether it does more than define names."""


def find_program(answer: str, calls: Collection[str] = ()) -> str:
    """Return the program of an answer; `calls` names what the tests call, and is empty for a whole program.

    If nothing compiles, the last block or the whole text is returned unchanged: running it shows what is wrong. Raises
    `MissingExtra` if markdown-it-py is not installed.
    """
    text = answer[:LONGEST].replace("\r\n", "\n").replace("\r", "\n")
    unanswering = raw = ""
    for find in (_fenced, _lenient, _in_html, _unfenced, _indented, _in_line):
        sources = find(text)
        blocks = [block for block in map(_read, sources) if block]
        if answering := _answering(blocks, calls):
            return _with_what_it_uses(blocks, answering[-1], calls)
        unanswering = unanswering or (_with_what_it_uses(blocks, len(blocks) - 1, calls) if blocks else "")
        raw = raw or (sources[-1] if sources else "")
    return unanswering or raw or text


def _answering(blocks: list[CodeBlock], calls: Collection[str]) -> list[int]:
    """Return the indices of blocks that define what the tests call, or that read the input, the best of them last."""
    if calls:
        defining = [i for i, block in enumerate(blocks) if block.defines.issuperset(calls)]
        return defining or [i for i, block in enumerate(blocks) if (block.defines | block.imports).issuperset(calls)]
    readers = {name for block in blocks if block.reads_input and not block.acts for name in block.defines}
    return [i for i, block in enumerate(blocks) if block.acts and (block.reads_input or readers & block.uses)]


def _with_what_it_uses(blocks: list[CodeBlock], place: int, calls: Collection[str]) -> str:
    """Return a block's code with the blocks that define what it uses but does not define.

    These come first; but a later block comes after one that only defines, since it may call it.
    """
    block = blocks[place]
    program = block.source
    missing = (block.uses | set(calls)) - block.defines - block.imports - set(dir(builtins))
    for i in (*range(place - 1, -1, -1), *range(place + 1, len(blocks))):
        other = blocks[i]
        if missing & (other.defines | other.imports):
            is_behind = i > place and not block.acts
            program = f"{program}\n{other.source}" if is_behind else f"{other.source}\n{program}"
            missing = (missing | other.uses) - other.defines - other.imports
    future = _FUTURE.findall(program) if program is not block.source else []
    return "\n".join([*future, _FUTURE.sub("", program)]) if future else program


def _fenced(text: str) -> list[str]:
    """Return the code of fenced blocks, only of those marked as Python if there are any."""
    fences = [token for token in _markdown().parse(text) if token.type == "fence" and token.content.strip()]
    return _in_python([(token.info, token.content) for token in fences])


def _lenient(text: str) -> list[str]:
    """Return the code of fences that CommonMark does not see: after text, or indented below a paragraph."""
    return _in_python([(info, textwrap.dedent(code)) for info, code in _LENIENT_FENCE.findall(text) if code.strip()])


def _in_html(text: str) -> list[str]:
    """Return the code of HTML's code elements."""
    blocks = []
    for found in _HTML.finditer(text):
        inner = _HTML_CODE.fullmatch(found[3])
        attributes, code = (found[2] + inner[1], inner[2]) if inner else (found[2], found[3])
        language = _HTML_LANGUAGE.search(attributes)
        blocks.append((language[1] if language else "", textwrap.dedent(html.unescape(code).strip("\n"))))
    return _in_python(blocks)


def _indented(text: str) -> list[str]:
    """Return indented code blocks; a function's body looks like one, so this comes after `_unfenced`."""
    return [token.content for token in _markdown().parse(text) if token.type == "code_block"]


def _in_line(text: str) -> list[str]:
    """Return inline code between back-ticks."""
    inlines = (token.children or [] for token in _markdown().parse(text))
    codes = [token.content for children in inlines for token in children if token.type == "code_inline"]
    return [code for code in (_LANGUAGE_IN_LINE.sub("", code.strip()) for code in codes) if _read(code)]


def _in_python(blocks: list[tuple[str, str]]) -> list[str]:
    said = [code for info, code in blocks if _PYTHON.match(info)]
    return said or [code for info, code in blocks if not info.strip()]


def _unfenced(text: str) -> list[str]:
    """Return the longest run of lines that compiles, from the first line that begins like a program."""
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


def _read(source: str) -> CodeBlock | None:
    """Read a block; None if it is not Python, or neither defines nor does anything."""
    prompted = "\n".join(_PROMPTED.findall(source))
    unseen = re.sub("[\ufeff\u200b]", "", source).replace("\u00a0", " ")
    for code in (source, _NOT_PYTHON.sub("", source), prompted, unseen):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about escapes in a model's text
                tree = ast.parse(code)
                nodes = list(ast.walk(tree))
                used = frozenset(_globals_used(symtable.symtable(code, "program", "exec")))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if not any(
            isinstance(node, ast.stmt | ast.Call | ast.Await) and not isinstance(node, ast.Expr) for node in nodes
        ):
            continue
        named = {node.id for node in nodes if isinstance(node, ast.Name)}
        attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        reads_input = bool(_READS_INPUT & (named | attributes))
        imports: list[ast.stmt] = [s for s in tree.body if isinstance(s, ast.Import | ast.ImportFrom)]
        only_defining = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
        return CodeBlock(
            source=code,
            defines=frozenset(_defined([s for s in tree.body if s not in imports])),
            imports=frozenset(_defined(imports)),
            uses=used,
            reads_input=reads_input,
            acts=not all(isinstance(s, only_defining) for s in tree.body),
        )
    return None


def _globals_used(table: symtable.SymbolTable) -> Iterator[str]:
    """Yield the global names that a program looks up, none of a function's own variables."""
    yield from (symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced() and symbol.is_global())
    for inner in table.get_children():
        yield from _globals_used(inner)


def _defined(body: list[ast.stmt]) -> set[str]:
    """Return the names that statements bind; a method counts as `Solution.name` and, in `Solution`, as `name`."""
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
