"""Rewards of reinforcement: pure functions of a problem and a completion, each in [0, 1] (DeepSeek-R1 report, 2.2.2).

accuracy              the score of the answer (`distill.verification.verdicts`); 0 if the thinking was never closed
well_formed           whether the reasoning is closed exactly once, with text on both sides
language_consistency  the share of the reasoning that is in the question's language (section 2.3.2)

A completion is the text after a prompt that opened the reasoning.
"""

from __future__ import annotations

import re

from distill.verification.languages import CODE, FEWEST_LETTERS, classify, letters_in, words_of_language
from distill.verification.verdicts import score_answer
from toolkit.formats.chat_format import CLOSE, OPEN, split_completion
from toolkit.formats.thought_forms import without_thoughts
from toolkit.records import Problem, Trace

_PIECE = re.compile(r"[\n.!?;:。！？；：]+")


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
    question = words_of_language(problem.question)
    if letters_in(question) < FEWEST_LETTERS:
        return 1.0
    language = classify(question)
    pieces = [
        words_of_language(piece)
        for piece in _PIECE.split(CODE.sub(" ", split_completion(completion, opened=True).reasoning))
    ]
    pieces = [piece for piece in pieces if letters_in(piece) >= FEWEST_LETTERS]
    total = sum(map(letters_in, pieces))
    return sum(letters_in(piece) for piece in pieces if classify(piece) == language) / total if total else 1.0
