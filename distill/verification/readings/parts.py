r"""Splits an answer into its parts: `(1) \frac{1}{2}; (2) 5`, `a) 3, b) 5` or `Part A: 3, Part B: 5`."""

from __future__ import annotations

import re
from collections.abc import Sequence

_BRACKETED, _HALF_BRACKETED, _WITH_POINT = r"\({0}\)", r"\(?{0}\)", r"{0}[.:](?=\s)"
_NAMED = r"[Pp]art \(?{0}\)?:?(?=\s)"
_LABELS: tuple[tuple[Sequence[str], tuple[str, ...]], ...] = (
    ("123456789", (_BRACKETED, _NAMED)),
    ("abcdefgh", (_HALF_BRACKETED, _WITH_POINT, _NAMED)),
    ("ABCDEFGH", (_HALF_BRACKETED, _WITH_POINT, _NAMED)),
    (("i", "ii", "iii", "iv", "v", "vi", "vii"), (_HALF_BRACKETED, _WITH_POINT, _NAMED)),
    ("①②③④⑤⑥⑦⑧", (r"{0}",)),
)
"""Labels in their order, and the ways to write each."""


def parts_of(text: str) -> tuple[str, ...]:
    """Return the parts in their order, without their labels; none if the text has fewer than two."""
    text = text.replace("**", "")
    for series, styles in _LABELS:
        for style in styles:
            if parts := _split(text, [style.format(label) for label in series]):
                return parts
    return ()


def _split(text: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the text after each of the labels, the first of which begins a line."""
    found: list[re.Match[str]] = []
    for label in labels:
        before = r"(?<![\w.])" if found else r"(?:\A|\n)\s*"
        following = re.compile(before + label).search(text, found[-1].end() if found else 0)
        if following is None:
            break
        found.append(following)
    ends = [label.start() for label in found[1:]] + [len(text)]
    parts = [text[label.end() : end].strip(" ;,.\n") for label, end in zip(found, ends, strict=False)]
    parts = [re.sub(r"[;,]?\s+(?:and|und|et|y)$", "", part) for part in parts]
    return tuple(parts) if len(parts) > 1 and all(parts) else ()
