r"""Finds LaTeX boxes in a text, `\boxed{42}`: their contents, and the formula that a box is only a part of."""

from __future__ import annotations

import re
from collections.abc import Iterator

from toolkit.answers.qualifiers import says_another

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\b\s*|\\boxed(?=\d)")
_BARE_BOX = re.compile(r"[^\s$\\{}]+?(?=[.,;]?(?:[\s$\\]|$))")


def boxes(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, content) of each outermost box whose braces balance; if boxes are nested, the content is that
    of the last innermost one."""
    closings = _closings(text)
    outermost = (-1, -1, "")
    for found in _BOX.finditer(text):
        start, end = found.end(), found.end()
        if text[start : start + 1] == "{":
            end = closings.get(start, 0)
            held = text[start + 1 : end - 1]
        else:
            bare = _BARE_BOX.match(text, start)
            held, end = (bare[0], bare.end()) if bare else ("", 0)
        if not end:
            continue
        if found.start() < outermost[1]:
            outermost = (*outermost[:2], held.strip())
            continue
        if outermost[1] > 0:
            yield outermost
        outermost = (found.start(), end, held.strip())
    if outermost[1] > 0:
        yield outermost


def _closings(text: str) -> dict[int, int]:
    """Map the position of each opening brace to the position after its closing one."""
    closings, opened = {}, []
    for found in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if found[0] == "{":
            opened.append(found.start())
        elif found[0] == "}" and opened:
            closings[opened.pop()] = found.end()
    return closings


def formula_around(text: str, start: int, end: int, held: str) -> str | None:
    r"""Return the formula that a box is only part of, `1 + \boxed{42}` or `\boxed{42}^2`; empty if words deny the box.

    None if the box is the whole formula, except for a name and an equals sign before it.
    """
    line_start = max(text.rfind("\n", 0, start) + 1, text.rfind(r"\[", 0, start))
    line_end = text.find("\n", end)
    before = _MARKS.sub("", text[max(line_start, start - 400, 0) : start])
    behind = _MARKS.sub("", text[end : line_end if line_end >= 0 else len(text)][:400])
    if says_another(before[-60:], "") or says_another("", behind[:60]):
        return ""
    opened = before.rfind("{") > before.rfind("}") and _COMMAND_OPEN.search(before)
    if opened:
        left = before[opened.start() :]
    elif _OPERATOR_BEFORE.search(before) or _OPERATOR_BEHIND.match(behind):
        left = _BEGINNING.split(before)[-1]
    else:
        return None
    return f"{left}({held}){_ENDING.split(behind)[0]}".strip()


_COMMAND_OPEN = re.compile(r"\\(?:[dt]?frac|sqrt|[dt]?binom)\b[^=\n]*$")
_BEGINNING = re.compile(r"[=,;:]|\\(?:Rightarrow|implies)\b|\. |(?<![\\\w])[^\W\d_]{2,} ")
_ENDING = re.compile(r"[,;.:](?:\s|$)|(?<!\{)\s(?!(?:thousand|million|billion|dozen)\b)[^\W\d_]{2,}")
_MARKS = re.compile(r"\\[()\[\]]|(?<!\\)\$|\\[,;:! ]|\\q?quad|\*\*")
_OPERATOR_BEFORE = re.compile(
    r"(?:[-+*/^<>]|\\(?:cdot|times|div|pm|mp|neq?|l[et]q?|g[et]q?|geqslant|leqslant|sqrt|frac)|[^\W\d_\\]\^)\s*\{?\s*$|(?<![\w\\])(?:\d+|[A-Za-z])$|\\pi\s*$"
)
_OPERATOR_BEHIND = re.compile(
    r"\s*(?:[-+*/^!](?![-\s]*[A-Z])|\\(?:cdot|times|div|pm|pi|sqrt|frac|text\{\s*(?!\s*(?:or|and)\b)|circ|%|pmod|bmod)|%|thousand\b|million\b|billion\b|dozen\b)|[A-Za-z](?![A-Za-z])|\((?![^()]*[A-Za-z]{3})"
)
