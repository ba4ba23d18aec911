"""A student's turn, and how it lies beside the same turn in the teacher's tokens.

    student   prompt │ 5 │ 7 │ ⏎ │ </ │ think │ > │ ⏎⏎ │ 5 │ 7 │ <|im_end|>
    teacher   prompt │ 5 │ 7 │ ⏎ │ </think>       │ ⏎⏎ │ 5 │ 7 │ <eos>

The teacher reads its own template's prompt for the same messages, then the bytes that the student wrote, in its own
tokens. Prompts, and an opening tag that only one side has in its turn, are left out; ends of turns stand for each other
whatever they are called. Text that is no UTF-8, and what follows a control token in the middle, is not graded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from distill.logits.grading.teacher_events import Events, TurnFacts
from distill.logits.vocabularies.alignment import Segment, Span, align_segments
from distill.logits.vocabularies.bridge import Bridge
from toolkit.errors import InputError
from toolkit.formats.chat_format import CLOSING, OPEN, ChatFormat
from toolkit.records import Message

OPENING = f"{OPEN}\n"
UNBOUNDED = 2**31
"""The context of a model that names none."""


@dataclass(frozen=True, kw_only=True)
class StudentTurn:
    """The tokens of one turn."""

    messages: Sequence[Message]
    prompt: Sequence[int]
    completion: Sequence[int]
    """With the token that ended the turn, if one did."""
    is_teachers: bool
    """Whether the teacher wrote it, so that its tokens are worth learning as they are."""
    source: str = ""
    """The hash of the request that the turn answers, if it is a stored trace."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """The graded positions of one turn."""

    spans: Sequence[Span]
    """Spans of text, then, if it ended, one of the student's end with no token of the teacher's."""
    ends: bool
    teacher: Sequence[int]
    """The teacher's tokens of the turn."""


@dataclass(frozen=True, kw_only=True)
class Grades:
    """What the teacher says of one turn, position by position."""

    facts: TurnFacts
    events: Events


class Grader(Protocol):
    """A teacher, or a record of what one said."""

    bridge: Bridge

    def grade(self, turns: Sequence[StudentTurn]) -> list[Grades | None]:
        """Grade each turn; None for one that the teacher's tokens cannot write, or of which nothing is known."""


class Aligner:
    """Puts a student's turns beside the teacher's tokens."""

    def __init__(self, student: ChatFormat, teacher: ChatFormat, bridge: Bridge) -> None:
        self.student, self.teacher, self.bridge = student, teacher, bridge
        self._student_classes, self._teacher_classes = bridge.student_class_V.tolist(), bridge.teacher_class_V.tolist()
        self._members = bridge.members_C.tolist()

    def places(self, turn: StudentTurn) -> Places | None:
        """Return the graded positions of a turn; None if the teacher's tokens cannot write its text."""
        parts, ends = self.written(turn.completion)
        written = b"".join(parts)
        prefix = 0 if self.student.opens_reasoning or not written.startswith(OPENING.encode()) else len(OPENING)
        try:
            text = written[prefix:].decode()
        except UnicodeDecodeError as error:
            text, ends = written[prefix : prefix + error.start].decode(), False
        reasoning, closing, answer = text.partition(CLOSING)
        try:
            ids = self.teacher.begun_ids(reasoning, answer if closing else None) if text else []
        except InputError:
            return None
        known = [self.bridge.teacher_bytes[id] if id < self.bridge.teacher_rows else None for id in ids]
        tokens = [token for token in known if token is not None]
        opened = 0 if self.teacher.opens_reasoning or not ids else len(OPENING)
        body = text.encode()
        if len(tokens) < len(known) or b"".join(tokens)[opened:] != body:
            return None
        spans = align_segments(parts, tokens, [Segment(prefix, opened, len(body))])
        count = len(turn.completion)
        if ends:
            spans.append(Span(count - 1, count, len(ids), len(ids)))
        return Places(spans=spans, ends=ends, teacher=ids)

    def asked(self, turns: Sequence[StudentTurn], longest: int) -> list[tuple[int, list[int], Places]]:
        """Return what a teacher that reads so many tokens is asked: numbers of turns, its prompts, and the places."""
        found = []
        for number, turn in enumerate(turns):
            places = self.places(turn)
            if places is not None:
                prompt = self.teacher.prompt_ids(list(turn.messages))
                if places := _within(places, longest - len(prompt)):
                    found.append((number, prompt, places))
        return found

    def written(self, completion: Sequence[int]) -> tuple[list[bytes], bool]:
        """Return what a completion's tokens write up to the first control token, and whether that ends the turn."""
        parts: list[bytes] = []
        for place, id in enumerate(completion):
            part = self.bridge.student_bytes[id] if id < self.bridge.student_rows else None
            if id in self.student.stop_ids or part is None:
                return parts, id in self.student.stop_ids and place == len(completion) - 1
            parts.append(part)
        return parts, False

    def facts(self, turn: StudentTurn, places: Places) -> TurnFacts:
        """Return what a loss needs to know of a turn's positions besides the teacher's probabilities.

        A span is an event of its own unless it is one token on either side and these two are all of their class.
        """
        rows = []
        for span in places.spans:
            own, merged = self._student_classes[turn.completion[span.student_begin]], -1
            has_token = span.teacher_end > span.teacher_begin
            is_divided = not self.bridge.is_identity and self._members[own] > 2
            is_span = has_token and (not span.is_one_to_one or is_divided)
            if is_span and (other := self._teacher_classes[places.teacher[span.teacher_begin]]) != own:
                merged = other
            rows.append((span.student_begin, span.student_end - span.student_begin, int(is_span), merged, own))
        start_P, length_P, is_span_P, merged_P, own_P = torch.tensor(rows, dtype=torch.long).reshape(-1, 5).unbind(1)
        return TurnFacts(start_P=start_P, length_P=length_P, is_span_P=is_span_P.bool(), merged_P=merged_P, own_P=own_P)


def _within(places: Places, room: int) -> Places | None:
    """Return the places that a teacher's context has room for; None if there is none."""
    if room < 1:
        return None
    if len(places.teacher) <= room:
        return places if places.spans else None
    spans = [span for span in places.spans if span.teacher_end <= room and span.teacher_begin < span.teacher_end]
    return Places(spans=spans, ends=False, teacher=places.teacher[:room]) if spans else None
