"""Aligns the tokens of one text in two vocabularies by the bytes that they write.

    student   │ 5 │ 7 │ ·count│down │ ⏎ │
    teacher   │ 5 │ 7 │ ·countdown  │ ⏎ │
    spans      1:1 1:1     2:1       1:1

A span ends wherever a token ends on both sides: these are the only places at which both models have said the same and
are asked for what comes next. Spans are the finest parts with that property, every byte is in exactly one of them, and
tokens that coincide are spans of one token each. Offsets in bytes are exact where offsets in characters are not (a
character may take several tokens), and nothing is searched for, so a token at the beginning of one side cannot derail
the rest (the failure of string alignment that arXiv 2605.21699 names; trl#5885 went over to byte offsets).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple


class Span(NamedTuple):
    """Tokens of both sides that write the same bytes, by their places: `begin` is included and `end` is not."""

    student_begin: int
    student_end: int
    teacher_begin: int
    teacher_end: int

    @property
    def is_one_to_one(self) -> bool:
        return self.student_end - self.student_begin == 1 == self.teacher_end - self.teacher_begin


class Segment(NamedTuple):
    """A stretch of bytes that both sides hold, and where it begins in each."""

    student_at: int
    teacher_at: int
    length: int


def align(student: Sequence[bytes], teacher: Sequence[bytes]) -> list[Span]:
    """Return the spans of two tokenizations of one text; raises `ValueError` if their bytes differ."""
    written = b"".join(student)
    if written != b"".join(teacher):
        raise ValueError("the tokens of the two sides write different bytes")
    return align_segments(student, teacher, [Segment(0, 0, len(written))])


def align_segments(student: Sequence[bytes], teacher: Sequence[bytes], segments: Sequence[Segment]) -> list[Span]:
    """Return the spans within stretches that two texts share; tokens that cross the end of one are in no span."""
    ends = [_ends(tokens) for tokens in (student, teacher)]
    spans: list[Span] = []
    for segment in segments:
        student_ends = {at - segment.student_at: place for at, place in ends[0].items()}
        teacher_ends = {at - segment.teacher_at: place for at, place in ends[1].items()}
        shared = sorted(at for at in student_ends.keys() & teacher_ends.keys() if 0 <= at <= segment.length)
        spans += [
            Span(student_ends[begin], student_ends[end], teacher_ends[begin], teacher_ends[end])
            for begin, end in pairwise(shared)
        ]
    return spans


def _ends(tokens: Sequence[bytes]) -> dict[int, int]:
    """Map each place in bytes at which a token ends to the number of tokens before it."""
    return {at: place for place, at in enumerate(accumulate(map(len, tokens), initial=0))}
