"""The teacher's probabilities at graded positions: of every class, or of its likeliest candidates and the rest.

    LogitsEvents       a model's logits at hand: softmax, summed by class
    CandidateEvents    K candidates with their probabilities, and a tail that holds all else (stored traces, servers)

Both leave out what the span that was written takes, an event of its own (`distill.logits.grading.graded_loss`).
"""

# Shapes: P graded positions, V the teacher's vocabulary, C classes, K candidates, E events.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.logits.grading.graded_loss import summed_by_class


@dataclass(frozen=True, kw_only=True)
class TurnFacts:
    """The graded positions of a turn as the student sees them."""

    start_P: Tensor
    """The place of each span's first token in the student's completion."""
    length_P: Tensor
    is_span_P: Tensor
    """Whether the span is an event of its own."""
    merged_P: Tensor
    """The class of the teacher's first token, which counts to that of the student's; −1 if they are one."""
    own_P: Tensor
    """The class of the student's first token."""


@dataclass(frozen=True, kw_only=True)
class LogitsEvents:
    """The distribution of a teacher whose logits are at hand."""

    logits_PV: Tensor
    class_V: Tensor | None
    """The class of each of the teacher's tokens; None if every token is one."""
    classes: int
    first_P: Tensor
    """The teacher's first token of each span."""
    later_P: Tensor
    """The log probability of a span's later tokens, given the first one."""
    is_span_P: Tensor
    own_P: Tensor
    """The class of the student's first token of each span."""
    temperature: float
    span_P: Tensor
    classes_PK: Tensor | None = None

    @classmethod
    def of(
        cls,
        logits_PV: Tensor,
        class_V: Tensor | None,
        classes: int,
        *,
        first_P: Tensor,
        later_P: Tensor,
        facts: TurnFacts,
        temperature: float,
    ) -> LogitsEvents:
        device = logits_PV.device
        is_span_P, first_P = facts.is_span_P.to(device), first_P.to(device)
        scaled_PV = logits_PV.float() / temperature
        log_first_P = scaled_PV.gather(1, first_P[:, None])[:, 0] - torch.logsumexp(scaled_PV, dim=-1)
        return cls(
            logits_PV=logits_PV,
            class_V=class_V,
            classes=classes,
            first_P=first_P,
            later_P=later_P,
            is_span_P=is_span_P,
            own_P=facts.own_P.to(device),
            temperature=temperature,
            span_P=torch.where(is_span_P, (log_first_P + later_P).exp(), torch.zeros_like(later_P)),
        )

    def probabilities(self, begin: int, end: int) -> Tensor:
        positions = slice(begin, end)
        is_span_p1, first_p1 = self.is_span_P[positions, None], self.first_P[positions, None]
        p_pV = torch.softmax(self.logits_PV[positions].float() / self.temperature, dim=-1)
        first = p_pV.gather(1, first_p1)
        others_pV = p_pV.scatter(1, first_p1, torch.where(is_span_p1, torch.zeros_like(first), first))
        p_pC = summed_by_class(others_pV, self.class_V, self.classes)
        rest_p1 = torch.where(is_span_p1, first * -torch.expm1(self.later_P[positions, None]), torch.zeros_like(first))
        of_first_p1 = first_p1 if self.class_V is None else self.class_V[first_p1]
        own_p1 = torch.where(is_span_p1, self.own_P[positions, None], of_first_p1)
        p_pC = p_pC.scatter_add(1, of_first_p1, rest_p1)
        moved_p1 = torch.where(own_p1 == of_first_p1, torch.zeros_like(first), p_pC.gather(1, of_first_p1))
        return p_pC.scatter_add_(1, of_first_p1, -moved_p1).scatter_add_(1, own_p1, moved_p1)

    def candidates(self, count: int) -> CandidateEvents:
        """Keep only the classes of the `count` likeliest tokens of each position, and the rest in one."""
        p_PC = self.probabilities(0, len(self.first_P))
        top = p_PC.topk(min(count, p_PC.shape[1]), dim=1)
        tail_P1 = (p_PC.sum(1, keepdim=True) - top.values.sum(1, keepdim=True)).clamp(min=0)
        return CandidateEvents(
            classes_PK=top.indices, masses_PE=torch.cat([top.values, tail_P1], dim=1), span_P=self.span_P
        )


@dataclass(frozen=True, kw_only=True)
class CandidateEvents:
    """The distribution of a teacher of which only the likeliest candidates are known."""

    classes_PK: Tensor
    """The class of each candidate, each class once; −1 where there are fewer."""
    masses_PE: Tensor
    """The probability of each candidate's class, and in the last column of all others."""
    span_P: Tensor

    def probabilities(self, begin: int, end: int) -> Tensor:
        return self.masses_PE[begin:end]


Events = LogitsEvents | CandidateEvents


def candidate_events(
    masses: Sequence[dict[int, float]], written: Sequence[tuple[float, float]], facts: TurnFacts
) -> CandidateEvents:
    """Make events of what a server says of its candidates.

    `masses`: the probability of each class that has a candidate, the written token's among them. `written`: the log
    probabilities of a span's first token, and of its later ones given that.
    """
    rows, spans = [], []
    of_positions = zip(
        masses, written, facts.is_span_P.tolist(), facts.merged_P.tolist(), facts.own_P.tolist(), strict=True
    )
    for of_classes, (first, later), is_span, merged, own in of_positions:
        kept, whole = dict(of_classes), 0.0
        if is_span:
            whole = math.exp(first + later)
            of_first = own if merged < 0 else merged
            rest = max(kept.pop(of_first, math.exp(first)) - whole, 0.0)
            kept[own] = kept.get(own, 0.0) + rest
        total = sum(kept.values()) + whole
        scale = 1 / max(total, 1.0)  # what is kept on the disk is rounded
        rows.append(([*kept], [mass * scale for mass in kept.values()], max(1.0 - total, 0.0)))
        spans.append(whole * scale)
    most = max((len(classes) for classes, _, _ in rows), default=0)
    return CandidateEvents(
        classes_PK=torch.tensor([classes + [-1] * (most - len(classes)) for classes, _, _ in rows]),
        masses_PE=torch.tensor([kept + [0.0] * (most - len(kept)) + [tail] for _, kept, tail in rows]),
        span_P=torch.tensor(spans),
    )


def joined(events: Sequence[Events]) -> Events:
    """Put the positions of several turns behind each other."""
    first = events[0]
    if isinstance(first, LogitsEvents):
        found = [each for each in events if isinstance(each, LogitsEvents)]
        return LogitsEvents(
            logits_PV=torch.cat([each.logits_PV for each in found]),
            class_V=first.class_V,
            classes=first.classes,
            first_P=torch.cat([each.first_P for each in found]),
            later_P=torch.cat([each.later_P for each in found]),
            is_span_P=torch.cat([each.is_span_P for each in found]),
            own_P=torch.cat([each.own_P for each in found]),
            temperature=first.temperature,
            span_P=torch.cat([each.span_P for each in found]),
        )
    kept = [each for each in events if isinstance(each, CandidateEvents)]
    most = max(each.classes_PK.shape[1] for each in kept)
    return CandidateEvents(
        classes_PK=torch.cat([_widened(each.classes_PK, most, -1) for each in kept]),
        masses_PE=torch.cat([_with_wide_tail(each.masses_PE, most + 1) for each in kept]),
        span_P=torch.cat([each.span_P for each in kept]),
    )


def _widened(values_PK: Tensor, width: int, fill: int) -> Tensor:
    return torch.nn.functional.pad(values_PK, (0, width - values_PK.shape[1]), value=fill)


def _with_wide_tail(masses_PE: Tensor, width: int) -> Tensor:
    missing = masses_PE.new_zeros(len(masses_PE), width - masses_PE.shape[1])
    return torch.cat([masses_PE[:, :-1], missing, masses_PE[:, -1:]], dim=1)
