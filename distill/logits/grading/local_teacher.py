"""A teacher on this machine: scores turns in one forward pass, with its own template's prompt before each.

Any causal checkpoint that `distill.local.causal_model` opens is one, in its own vocabulary. Rows are padded on the
left, so that the logits of all turns are at the end and the others are not computed.
"""

# Shapes: B rows, T tokens, V the teacher's vocabulary, P graded positions.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from distill.logits.grading.teacher_events import LogitsEvents
from distill.logits.grading.turns import UNBOUNDED, Aligner, Grades, Places, StudentTurn
from distill.logits.vocabularies.bridge import Bridge

LOGIT_BYTES = 2**29
"""Most bytes of the logits of one pass."""


class LocalTeacher:
    """A model that grades."""

    def __init__(self, model: Any, aligner: Aligner, *, temperature: float, top_k: int = 0) -> None:
        """`model`: a causal language model in eval mode. `top_k`: keep so many classes of each position, to save
        memory; 0 keeps all."""
        self._model, self._aligner = model, aligner
        self._temperature, self._top_k = temperature, top_k
        self.bridge: Bridge = aligner.bridge
        config = model.config.get_text_config(decoder=True)
        self._longest: int = getattr(config, "max_position_embeddings", None) or UNBOUNDED

    @torch.no_grad()
    def grade(self, turns: Sequence[StudentTurn]) -> list[Grades | None]:
        found: list[Grades | None] = [None] * len(turns)
        asked = self._aligner.asked(turns, self._longest)
        for group in self._passes(asked):
            for (number, _, places), logits_TV in zip(group, self._logits(group), strict=True):
                found[number] = self._grades(turns[number], places, logits_TV)
        return found

    def _passes(self, asked: list[tuple[int, list[int], Places]]) -> Iterator[list[tuple[int, list[int], Places]]]:
        """Divide what is asked into passes whose logits fit, turns of similar lengths together."""
        row_bytes = self._aligner.bridge.teacher_rows * 4
        group: list[tuple[int, list[int], Places]] = []
        for one in sorted(asked, key=lambda one: len(one[2].teacher)):
            if group and (len(one[2].teacher) + 1) * (len(group) + 1) * row_bytes > LOGIT_BYTES:
                yield group
                group = []
            group.append(one)
        if group:
            yield group

    def _logits(self, group: Sequence[tuple[int, list[int], Places]]) -> Iterator[Tensor]:
        """Yield the logits before each of a turn's tokens and after the last one."""
        rows = [[*prompt, *places.teacher] for _, prompt, places in group]
        longest = max(map(len, rows))
        device = self._model.device
        ids_BT = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
        mask_BT = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
        kept = max(len(places.teacher) for _, _, places in group) + 1
        logits_BTV = self._model(
            input_ids=ids_BT,
            attention_mask=None if bool(mask_BT.all()) else mask_BT,
            position_ids=(mask_BT.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=kept,
        ).logits[..., : self._aligner.bridge.teacher_rows]
        for (_, _, places), logits_TV in zip(group, logits_BTV, strict=True):
            yield logits_TV[kept - len(places.teacher) - 1 :]

    def _grades(self, turn: StudentTurn, places: Places, logits_TV: Tensor) -> Grades:
        facts = self._aligner.facts(turn, places)
        begins = torch.tensor([span.teacher_begin for span in places.spans])
        logits_PV = logits_TV[begins.to(logits_TV.device)]
        ids = [*places.teacher, 0]  # the last is that of the position after the text
        later = [(p, at) for p, s in enumerate(places.spans) for at in range(s.teacher_begin + 1, s.teacher_end)]
        later_P = torch.zeros(len(places.spans), device=logits_TV.device)
        if later:
            where, at = (torch.tensor(values, device=logits_TV.device) for values in zip(*later, strict=True))
            log_p_LV = torch.log_softmax(logits_TV[at].float() / self._temperature, dim=-1)
            written_L1 = torch.tensor(ids, device=logits_TV.device)[at][:, None]
            later_P.index_add_(0, where, log_p_LV.gather(1, written_L1)[:, 0])
        bridge = self._aligner.bridge
        events = LogitsEvents.of(
            logits_PV,
            None if bridge.is_identity else bridge.teacher_class_V.to(logits_TV.device),
            bridge.classes,
            first_P=torch.tensor(ids)[begins],
            later_P=later_P,
            facts=facts,
            temperature=self._temperature,
        )
        return Grades(facts=facts, events=events.candidates(self._top_k) if self._top_k else events)
