"""What a server said of the traces that it gave: its likeliest candidates, kept beside them (`distill.store.logprobs`).

The server's tokens are known by their bytes alone, and its vocabulary only as far as it was seen in the store. If every
token that was seen is one of the student's, and the student's tokenizer cuts the traces as they were written, the two
are taken for one vocabulary. What the candidates leave is one event, the tail, on both sides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from distill.logits.grading.teacher_events import candidate_events
from distill.logits.grading.turns import Aligner, Grades, Places, StudentTurn
from distill.logits.vocabularies.alignment import Segment, Span, align_segments
from distill.logits.vocabularies.bridge import Bridge, bridge_to_seen
from distill.logits.vocabularies.token_bytes import token_bytes
from distill.store.logprobs import ServerToken, TokenLogprobs, read_tokens
from distill.store.shard_index import hash_of
from distill.store.sharded_store import TraceStore
from toolkit.errors import InputError
from toolkit.formats.chat_format import CLOSING, ChatFormat
from toolkit.terminal import counted, say

END = re.compile(r"<[|｜].*[|｜]>|</s>|<eos>|<end_of_turn>|")
"""Tokens that end a turn, by their texts; some servers send an empty one."""
COMPARED = 64
"""The traces whose tokens are compared with the student's."""


class StoredGrades:
    """The candidates of a store, as grades of its traces."""

    def __init__(self, folder: Path, sources: Sequence[str], student: ChatFormat) -> None:
        """`folder`: the store. `sources`: the hashes of the requests whose traces are learned from.

        Raises `InputError` if the store kept candidates of none of them.
        """
        self._store = store = TraceStore(folder)
        hashes = np.array([hash_of(source) for source in sources], dtype=np.uint64)
        lacking = sum(found is None for found in store.logprobs(hashes))
        if lacking == len(hashes):
            raise InputError(
                f"{lacking} of {counted(len(hashes), 'trace')} lack log-probabilities, so none has any; collect them "
                "with toolkit traces --top-logprobs, or choose --logits teacher"
            )
        if lacking:
            say(
                f"logits: {lacking} of {counted(len(hashes), 'trace')} lack log-probabilities; these are learned from "
                "by their tokens alone"
            )
        self._numbers = self._seen(hashes)
        tokens = list(self._numbers)
        texts = [None if _is_end(token) else _bytes_of(token) for token in tokens]
        ends = [number for number, token in enumerate(tokens) if _is_end(token)]
        sample = islice((found for found in store.logprobs(hashes) if found), COMPARED)
        one = _is_same(student, texts, [[_bytes_of(each.sampled.token) for each in _text(found)] for found in sample])
        self.bridge: Bridge = bridge_to_seen(student.tokenizer, texts, student.stop_ids, ends, is_same=one)
        self._aligner = Aligner(student, student, self.bridge)

    def grade(self, turns: Sequence[StudentTurn]) -> list[Grades | None]:
        hashes = np.array([hash_of(turn.source) for turn in turns], dtype=np.uint64)
        return [
            self._grade(turn, found) if found else None
            for turn, found in zip(turns, self._store.logprobs(hashes), strict=True)
        ]

    def _seen(self, hashes: np.ndarray) -> dict[ServerToken, int]:
        shards = {shard for hash in hashes.tolist() if (shard := self._store.traces.shard_of(hash))}
        tokens = [token for shard in sorted(shards) for token in read_tokens(shard)]
        return {token: number for number, token in enumerate(dict.fromkeys(tokens))}

    def _grade(self, turn: StudentTurn, found: list[TokenLogprobs]) -> Grades | None:
        said = _text(found)
        parts = [_bytes_of(each.sampled.token) for each in said]
        tokens = [part for part in parts if part is not None]
        student, ends = self._aligner.written(turn.completion)
        if len(tokens) < len(parts):
            return None
        segments = _shared(b"".join(student), b"".join(tokens))
        spans = align_segments(student, tokens, segments)
        if not found[0].top and found[0].sampled.logprob == 0.0:  # some servers say nothing of a turn's first token
            spans = [span for span in spans if span.teacher_begin]
        if ends and len(found) > len(said):
            spans.append(Span(len(student), len(student) + 1, len(said), len(said)))
        if not spans:
            return None
        ids = [self._numbers[each.sampled.token] for each in said]
        facts = self._aligner.facts(turn, Places(spans=spans, ends=ends, teacher=ids))
        said_of = [_written(found, span) for span in spans]
        return Grades(
            facts=facts,
            events=candidate_events([self._masses(found[span.teacher_begin]) for span in spans], said_of, facts),
        )

    def _masses(self, of: TokenLogprobs) -> dict[int, float]:
        """Sum the probabilities of a token's candidates by class; the sampled one may be among them or not."""
        candidates = {each.token: each.logprob for each in [*of.top, of.sampled]}
        masses: dict[int, float] = {}
        for token, logprob in candidates.items():
            group = int(self.bridge.teacher_class_V[self._numbers[token]])
            masses[group] = masses.get(group, 0.0) + math.exp(logprob)
        return masses


def _written(found: Sequence[TokenLogprobs], span: Span) -> tuple[float, float]:
    later = found[span.teacher_begin + 1 : span.teacher_end]
    return found[span.teacher_begin].sampled.logprob, sum(each.sampled.logprob for each in later)


def _text(found: Sequence[TokenLogprobs]) -> Sequence[TokenLogprobs]:
    """Return a trace's tokens without the one that ended it."""
    return found[:-1] if found and _is_end(found[-1].sampled.token) else found


def _is_end(token: ServerToken) -> bool:
    return END.fullmatch(token.text) is not None


def _bytes_of(token: ServerToken) -> bytes | None:
    """Return a token's bytes; None if its text does not tell them."""
    if token.bytes is not None:
        return token.bytes
    return None if "\N{REPLACEMENT CHARACTER}" in token.text else token.text.encode(errors="replace")


def _is_same(student: ChatFormat, seen: Sequence[bytes | None], traces: Sequence[Sequence[bytes | None]]) -> bool:
    """Whether a server's vocabulary can be taken for the student's."""
    known = token_bytes(student.tokenizer, "the student")
    if not {token for token in seen if token} <= {token for token in known if token}:
        return False
    for tokens in traces:
        parts = [token for token in tokens if token is not None]
        text = b"".join(parts).decode(errors="replace")
        if len(parts) < len(tokens) or [known[id] for id in student.encode(text)] != parts:
            return False
    return True


def _shared(student: bytes, teacher: bytes) -> list[Segment]:
    """Return where a trace's thought and answer are in the text that its server wrote, which may have other tags."""
    if student == teacher:
        return [Segment(0, 0, len(student))]
    reasoning, _, answer = student.partition(CLOSING.encode())
    begin = teacher.find(reasoning)
    if begin < 0:
        return []
    found = [Segment(0, begin, len(reasoning))]
    at = teacher.rfind(answer)
    if answer and at >= begin + len(reasoning):
        found.append(Segment(len(student) - len(answer), at, len(answer)))
    return found
