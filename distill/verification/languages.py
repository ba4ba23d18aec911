"""Tells the language of the words in a text: formulas, code and digits have none."""

from __future__ import annotations

import re

from distill.verification.loops import UNSPACED
from toolkit.errors import MissingExtra

FEWEST_LETTERS = 12
"""A shorter piece of text is too short to tell its language."""

CODE = re.compile(r"```.*?```|`[^`\n]*`|\$[^$\n]*\$|\\\(.*?\\\)|\\\[.*?\\\]", re.DOTALL)
_NO_WORD = re.compile(r"\\[A-Za-z]+|\S*[\d_=+*/^<>{}\[\]()|\\]\S*|\b[^\W\d_]\b")
LETTERS_A_CHARACTER = 4
"""The letters that a character counts for in scripts whose characters stand for several letters."""
LOOKED_AT = 600
"""Characters of a long text that tell its language."""


def language_of(text: str) -> str:
    """Return the code of the language in which a long text begins, such as `en`; empty if there are too few words.

    Raises `MissingExtra` if py3langid is not installed.
    """
    words = words_of_language(text[:LOOKED_AT])
    return classify(words) if letters_in(words[: 8 * FEWEST_LETTERS]) >= FEWEST_LETTERS else ""


def words_of_language(text: str) -> str:
    """Keep only the words of a text: no code, no formulas, no single letters."""
    return " ".join(_NO_WORD.sub(" ", CODE.sub(" ", text)).split())


def letters_in(text: str) -> int:
    """Count letters, a character of an unspaced script as several."""
    return sum(LETTERS_A_CHARACTER if UNSPACED.match(c) else c.isalpha() for c in text)


def classify(text: str) -> str:
    """Return the language of words; raises `MissingExtra` if py3langid is not installed."""
    try:
        import py3langid
    except ImportError as error:
        raise MissingExtra("py3langid", "distill") from error
    language: str = py3langid.classify(text)[0]
    return language
