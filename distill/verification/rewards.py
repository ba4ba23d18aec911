"""Rewards of reinforcement: pure functions of a problem and a completion, each in [0, 1] (DeepSeek-R1 report, 2.2.2).

accuracy              the score of the answer (`distill.verification.verdicts`); 0 if the thinking was never closed
well_formed           whether the reasoning is closed exactly once, with text on both sides
language_consistency  the share of the reasoning that is in the question's language (section 2.3.2)

A completion is the text after a prompt that opened the reasoning.
"""

from __future__ import annotations

import re

from distill.verification.loops import UNSPACED
from distill.verification.verdicts import score_answer
from toolkit.errors import MissingExtra
from toolkit.formats.chat_format import CLOSE, OPEN, split_completion
from toolkit.formats.thought_forms import without_thoughts
from toolkit.records import Problem, Trace

FEWEST_LETTERS = 12
"""A shorter piece of text is too short to tell its language."""

_CODE = re.compile(r"```.*?```|`[^`\n]*`|\$[^$\n]*\$|\\\(.*?\\\)|\\\[.*?\\\]", re.DOTALL)
_NO_WORD = re.compile(r"\\[A-Za-z]+|\S*[\d_=+*/^<>{}\[\]()|\\]\S*|\b[^\W\d_]\b")
_PIECE = re.compile(r"[\n.!?;:。！？；：]+")
LETTERS_A_CHARACTER = 4
"""The letters that a character counts for in scripts whose characters stand for several letters."""


def completion_of(trace: Trace) -> str:
    """Rebuild the completion of a trace for these functions."""
    return f"{trace.reasoning}\n{CLOSE}\n\n{trace.answer}" if trace.closed else trace.reasoning


def accuracy(problem: Problem, completion: str) -> float:
    """Return the verifier's score of the answer."""
    parts = split_completion(completion, opened=True)
    return score_answer(problem, without_thoughts(parts.answer)) if parts.closed and parts.answer.strip() else 0.0


def well_formed(problem: Problem, completion: str) -> float:
    """Return 1 if the completion closes its reasoning once, opens no other, and has text on both sides."""
    reasoning, tag, answer = completion.partition(CLOSE)
    once = bool(tag) and CLOSE not in answer and OPEN not in completion
    return float(once and bool(reasoning.strip()) and bool(answer.strip()))


def language_consistency(problem: Problem, completion: str) -> float:
    """Return the share of the reasoning's letters, by pieces of sentences, in the question's language.

    Formulas, code and digits have no language; the share is 1 if there is nothing else, or too little to tell. Raises
    `MissingExtra` if py3langid is not installed.
    """
    question = _words(problem.question)
    if _letters(question) < FEWEST_LETTERS:
        return 1.0
    language = _language(question)
    pieces = [
        _words(piece) for piece in _PIECE.split(_CODE.sub(" ", split_completion(completion, opened=True).reasoning))
    ]
    pieces = [piece for piece in pieces if _letters(piece) >= FEWEST_LETTERS]
    total = sum(map(_letters, pieces))
    return sum(_letters(piece) for piece in pieces if _language(piece) == language) / total if total else 1.0


def _words(text: str) -> str:
    """Keep only the words of a text: no code, no formulas, no single letters."""
    return " ".join(_NO_WORD.sub(" ", _CODE.sub(" ", text)).split())


def _letters(text: str) -> int:
    return sum(LETTERS_A_CHARACTER if UNSPACED.match(c) else c.isalpha() for c in text)


def _language(text: str) -> str:
    try:
        import py3langid
    except ImportError as error:
        raise MissingExtra("py3langid", "distill") from error
    language: str = py3langid.classify(text)[0]
    return language
