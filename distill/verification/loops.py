"""Text → whether it goes round in circles: the same words again and again, with nothing else between.

A run with period p is where each token equals the one p places before it. A run counts as a loop by how much it
repeats, and that depends on what is repeated. Sentences are not said five times in a row by who thinks. Figures, signs
and single words are: a board of zeros, a row of switches that flip, a long number; so their runs must be long before
they count. Fenced code and lines of a table are left out, and whatever changes from line to line (steps with their
numbers, counting, `57 - 10 = 47`) has no period at all.

`apps.chat.view.repetition` looks at the end of what is being written, token by token, and only tells the
reader; this looks at a whole text that nobody reads before it is trained on, so it must not take figures for a loop.
"""

from __future__ import annotations

import re

import numpy as np

LONGEST_PERIOD = 512
"""Tokens: a loop of several paragraphs."""
SENTENCE_WORDS, SENTENCE_TIMES, SENTENCE_TOKENS = 3, 5, 60
"""A repeated piece with so many different words is said; so often and so long it is a loop."""
SHORT_TIMES = 15
"""Of a sentence with fewer words: `Wait, no.`"""
OTHER_TIMES, OTHER_TOKENS = 50, 600
"""For a repeated piece of figures, signs or one or two words: longer than a board of 20 × 20."""
LONGEST_CHARACTER_RUN = 1000
"""Of one token that repeats within itself, as `hahaha…`; 10**999 has fewer zeros."""

_TABLE_ROW = re.compile(r"^[ \t]*\|.*\|[ \t]*$", re.MULTILINE)
_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
"""Scripts that say in one character what others say in several letters, and put no spaces between words."""
_TOKEN = re.compile(rf"[^\W_]+|{UNSPACED.pattern}|[^\w\s]|_")
_SENTENCE_ENDS = frozenset(".!?。！？…")
_SHORT_CYCLE = re.compile(rf"(\S{{1,8}}?)\1{{{LONGEST_CHARACTER_RUN // 8},}}")


def is_looping(text: str) -> bool:
    """Whether a run of repeated words, or of repeated characters, is as long as the module's figures say."""
    prose = _TABLE_ROW.sub(" ", _FENCED.sub(" ", text))
    if any(len(found.group()) > LONGEST_CHARACTER_RUN for found in _SHORT_CYCLE.finditer(prose)):
        return True
    tokens = _TOKEN.findall(UNSPACED.sub(r"\g<0> ", prose).casefold())
    if len(tokens) < SENTENCE_TOKENS:
        return False
    numbers = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    ids = np.array([numbers[token] for token in tokens])
    for period in range(1, min(LONGEST_PERIOD, len(ids) // 2) + 1):
        begin, length = _longest_run(ids[period:] == ids[:-period])
        repeated = length + period  # the run counts from the second copy on
        if length and _is_loop(tokens[begin : begin + period], repeated):
            return True
    return False


def _is_loop(piece: list[str], repeated: int) -> bool:
    """Whether a piece that stands in `repeated` tokens in a row is a loop."""
    words = {token for token in piece if token.isalpha() and (len(token) > 1 or UNSPACED.match(token))}
    times = repeated // len(piece)
    if len(words) >= SENTENCE_WORDS or (words and not _SENTENCE_ENDS.isdisjoint(piece)):
        least = SENTENCE_TIMES if len(words) >= SENTENCE_WORDS else SHORT_TIMES
        return times >= least and repeated >= SENTENCE_TOKENS
    return times >= OTHER_TIMES and repeated >= OTHER_TOKENS


def _longest_run(is_equal: np.ndarray) -> tuple[int, int]:
    """Where the longest run of True begins, and how long it is."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], is_equal, [False])).astype(np.int8)))
    if not len(edges):
        return 0, 0
    lengths = edges[1::2] - edges[::2]
    longest = int(lengths.argmax())
    return int(edges[2 * longest]), int(lengths[longest])
