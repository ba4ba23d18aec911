"""Has a model behind an endpoint rate answers that no program can verify.

Its answers are kept beside the measured pieces, a file for each batch, so that no rating is paid for twice: neither
when an interrupted curation resumes, nor when traces are chosen anew by other options.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.curation.at_size.answer_classes import line_of, trace_at
from distill.curation.at_size.measured_pieces import MeasuredPiece
from distill.curation.at_size.problem_table import ProblemTable
from distill.curation.facts import NO_REFERENCE, RIGHT, UNJUDGED, WRONG
from distill.curation.reasons import KEPT
from distill.endpoints.remote_teacher import Endpoint
from distill.teachers.ratings_asked import ask_ratings
from distill.verification.ratings import SCALE, judge_prompt
from toolkit.formats.thought_forms import without_thoughts
from toolkit.records import Verdict

AT_ONCE = 512
"""Ratings of a batch."""
VERIFIER, VERSION = "judge", "1"


@dataclass(frozen=True, kw_only=True)
class TraceJudge:
    """A model behind an endpoint, asked how helpful an answer is."""

    endpoint: Endpoint
    least: float
    """The rating from 0 to 10 from which an answer counts as right."""
    folder: Path
    """Keeps its answers."""

    def judge(
        self, facts: np.ndarray, piece_of: np.ndarray, pieces: Sequence[MeasuredPiece], table: ProblemTable
    ) -> dict[int, Verdict]:
        """Rate all answers without a reference and without another fault, note the result in the facts, and return the
        verdicts by row.

        Raises `InputError` if the server does not answer after several tries.
        """
        unsure = (facts["problem"] >= 0) & (facts["fault"] == KEPT) & (facts["known"] == NO_REFERENCE)
        unsure[unsure] = ~table.tests[facts["problem"][unsure]]
        rows = np.flatnonzero(unsure & ~facts["shares"])
        verdicts = {}
        for start in range(0, len(rows), AT_ONCE):
            batch = rows[start : start + AT_ONCE].tolist()
            for row, verdict in zip(batch, self._rated(facts, piece_of, pieces, table, batch), strict=True):
                facts["known"][row] = UNJUDGED if verdict is None else RIGHT if verdict.correct else WRONG
                if verdict is not None:
                    facts["score"][row] = verdict.score
                    verdicts[row] = verdict
        return verdicts

    def _rated(
        self,
        facts: np.ndarray,
        piece_of: np.ndarray,
        pieces: Sequence[MeasuredPiece],
        table: ProblemTable,
        rows: Sequence[int],
    ) -> Iterator[Verdict | None]:
        traces = [trace_at(line_of(facts, row, pieces[piece_of[row]])) for row in rows]
        prompts = [
            judge_prompt(
                "helpful", table.problem(int(facts["problem"][row])).transcript, without_thoughts(trace.answer)
            )
            for row, trace in zip(rows, traces, strict=True)
        ]
        scores = ask_ratings(self.endpoint, sorted(set(prompts)), self.folder)
        for trace, prompt in zip(traces, prompts, strict=True):
            score = scores[prompt]
            if score is None:
                yield None
                continue
            is_right = score * SCALE >= self.least
            yield Verdict(
                problem_id=trace.problem_id,
                sample=trace.sample,
                correct=is_right,
                reason="correct" if is_right else "wrong",
                score=score,
                verifier=f"{VERIFIER}:{self.endpoint.name}",
                version=VERSION,
            )
