"""Decides whether an answer, as it was read, means the same as a reference; each kind has one rule."""

from __future__ import annotations

import re

from distill.verification.mathematics.comparison import means as tree_means
from distill.verification.mathematics.equivalence import equivalent
from distill.verification.mathematics.values import NoValue
from distill.verification.readings.calendar_strings import same_moment
from distill.verification.readings.choices import choice_of
from distill.verification.readings.readings import Reading, read_answer, read_reference


def means(reference: Reading, answer: Reading) -> bool:
    """Return whether two readings of `distill.verification.readings.readings` mean the same.

    Raises `MissingExtra` if only the algebra system can tell, and it is not installed.
    """
    if answer.kind == "nothing":
        return False
    match reference.kind:
        case "number" if answer.kind == "library":
            return False  # an unevaluated sum or integral
        case "number" | "mathematics" | "library":
            if reference.kind == "library" or answer.kind == "library":
                return _same_for_library(reference, answer)
            try:
                taken = answer.others if answer.kind == "number" else ()
                return any(tree_means(reference.meaning, tree) for tree in (answer.meaning, *taken))
            except (NoValue, ArithmeticError, RecursionError):  # what cannot be evaluated means nothing
                return False
        case "choice":
            return _same_choice(reference, answer)
        case "parts":
            return _same_parts(reference, answer)
        case "date":
            return _same_date(reference.meaning, answer.meaning)
        case "time":
            return same_moment(reference.meaning, answer.meaning)
        case "words":
            return reference.meaning in answer.others
    return reference.meaning == answer.meaning or reference.meaning in answer.others


def _same_for_library(reference: Reading, answer: Reading) -> bool:
    """Compare by the algebra system if at least one side is a sum, an integral or a limit."""
    if reference.kind == "mathematics" and reference.meaning[0] in ("sequence", "relation", "matrix"):
        return False
    if _same_source(reference.said, answer.said):
        return True
    return not _is_ordered(reference.said) and equivalent(reference.said, answer.said)


def _same_source(one: str, other: str) -> bool:
    """Return whether two LaTeX texts differ only in white space."""
    return "".join(one.split()) == "".join(other.split())


def _is_ordered(text: str) -> bool:
    """Return whether a text is ordered although the algebra system takes it for a set: cases, products of vectors."""
    return bool(re.search(r"\\begin\{|\\vec|\\overrightarrow|\\to\b(?!.*\\lim)", text)) and "\\lim" not in text


def _same_parts(reference: Reading, answer: Reading) -> bool:
    """Compare part by part, each by its own kind."""
    if len(reference.meaning) != len(answer.meaning):
        return False
    for part, said in zip(reference.meaning, answer.meaning, strict=True):
        one = part if isinstance(part, Reading) else read_reference(part)
        if not means(one, read_answer(said, one)):
            return False
    return True


def _same_choice(reference: Reading, answer: Reading) -> bool:
    """Compare by the letter, or by the text after the reference's letter if the answer names none."""
    letter, content = reference.meaning
    said_letter, said = answer.meaning
    if said_letter:
        return bool(letter == said_letter) and not _contradicts(content, said)
    if not isinstance(content, Reading):
        return False
    return means(content, said if isinstance(said, Reading) else read_answer(said, content))


def _contradicts(content: Reading | str | None, said: Reading | str | None) -> bool:
    """Return whether a letter is followed by another number than in the reference, `(A) 17` for `(A) 16`."""
    chosen = choice_of(said) if isinstance(said, str) else None
    if (
        not isinstance(content, Reading)
        or content.kind != "number"
        or not chosen
        or re.search(r"(?<![\\\w])[^\W\d_]{3,}", chosen[1])
    ):
        return False
    number = read_answer(chosen[1], content)
    return number.kind == "number" and not means(content, number)


def _same_date(reference: tuple[int | None, int, int], answer: tuple[int | None, int, int]) -> bool:
    """Compare dates; a reference without a year does not ask for one."""
    return reference[1:] == answer[1:] and (reference[0] is None or reference[0] == answer[0])
