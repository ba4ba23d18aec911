"""Tests of alignment by bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.logits.vocabularies.alignment import Segment, Span, align, align_segments


@st.composite
def two_cuts(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """Two ways to cut a text into tokens, in characters of several bytes too."""
    text = draw(st.text(alphabet="ab 1é你🙂\n", min_size=1, max_size=30)).encode()
    cuts = st.lists(st.integers(0, len(text)), max_size=12)
    return _cut(text, draw(cuts)), _cut(text, draw(cuts))


def _cut(text: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({*places, len(text)} - {0})
    return [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


@given(two_cuts())
def test_both_sides_of_a_span_write_the_same_bytes(cuts: tuple[list[bytes], list[bytes]]) -> None:
    student, teacher = cuts
    for span in align(student, teacher):
        written = b"".join(student[span.student_begin : span.student_end])
        assert written and written == b"".join(teacher[span.teacher_begin : span.teacher_end])


@given(two_cuts())
def test_every_token_of_both_sides_is_in_exactly_one_span(cuts: tuple[list[bytes], list[bytes]]) -> None:
    student, teacher = cuts
    spans = align(student, teacher)
    assert [n for s in spans for n in range(s.student_begin, s.student_end)] == list(range(len(student)))
    assert [n for s in spans for n in range(s.teacher_begin, s.teacher_end)] == list(range(len(teacher)))


@given(two_cuts())
def test_no_span_can_be_divided(cuts: tuple[list[bytes], list[bytes]]) -> None:
    student, teacher = cuts
    for span in align(student, teacher):
        inner = [
            {len(b"".join(tokens[begin:end])) for end in range(begin + 1, stop)}
            for tokens, begin, stop in (
                (student, span.student_begin, span.student_end),
                (teacher, span.teacher_begin, span.teacher_end),
            )
        ]
        assert not inner[0] & inner[1]


@given(two_cuts())
def test_equal_tokens_are_spans_of_one_token_each(cuts: tuple[list[bytes], list[bytes]]) -> None:
    tokens, _ = cuts
    assert align(tokens, tokens) == [Span(n, n + 1, n, n + 1) for n in range(len(tokens))]


def test_different_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="different bytes"):
        align([b"a"], [b"b"])


def test_only_what_the_texts_share_is_aligned() -> None:
    student, teacher = [b"one", b"</t>", b"2"], [b"<t>", b"o", b"ne", b"2"]
    spans = align_segments(student, teacher, [Segment(0, 3, 3), Segment(7, 6, 1)])
    assert spans == [Span(0, 1, 1, 3), Span(2, 3, 3, 4)]
