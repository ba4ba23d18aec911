"""Finds the word that a sentence gives as its answer."""

from __future__ import annotations

import re
from collections import Counter


def word_in(text: str, question: str = "") -> str:
    """Return the word that a sentence gives: the one after its last "is" or ":", the only quoted one, the only one that
    is not in the question, or else the last; empty if the sentence denies it. Letters with hyphens or spaces between
    them are joined.
    """
    text = re.sub(r"\b[^\W\d_](?:\s*[- ,]\s*[^\W\d_]\b){2,}", lambda found: re.sub(r"[\W]", "", found[0]), text)
    if re.search(r"\b(?:not|never|isn't|cannot)\b", text, re.IGNORECASE):
        return ""
    if at_end := re.search(r"(?:\b(?:is|becomes|reads)\b|:|=|->)[\s\"'*`]*([^\W\d_]+)\W*$", text):
        return at_end[1]
    known = Counter(word.casefold() for word in re.findall(r"[^\W\d_]+", question))
    words = re.findall(r"[^\W\d_]+", text)
    for candidates in (re.findall(r"[\"'*`]\s*([^\W\d_]{2,})\s*[.,]?[\"'*`]", text), words):
        left, counts = [], known.copy()
        for word in candidates:
            if counts[word.casefold()] > 0:
                counts[word.casefold()] -= 1
            elif candidates is not words or word.casefold() not in _AROUND_A_WORD:
                left.append(word)
        if len({word.casefold() for word in left}) == 1:
            return str(left[-1])
    return words[-1] if words else ""


_AROUND_A_WORD = frozenset((
    "the", "a", "an", "is", "are", "it", "so", "thus", "therefore", "word", "spelled", "spelt", "written", "reads",
    "read", "becomes", "backward", "backwards", "reverse", "reversed", "in", "of", "answer", "letters", "when", "you",
    "get", "we", "gives", "that", "this", "would", "be", "from", "to", "end", "start", "result", "final", "as", "and",
    "here", "its", "order", "by", "right", "left", "which", "your", "our", "my", "i", "think", "hence", "correct",
    "spelling", "reversing", "yields", "has", "have", "been", "was", "like",
))  # fmt: skip
