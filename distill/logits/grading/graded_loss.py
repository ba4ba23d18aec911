"""Generalized Jensen–Shannon divergence between a student's distribution and a teacher's, over classes of tokens.

    β = 0         Σ pt log(pt / ps)                                        forward KL
    β = 1         Σ ps log(ps / pt)                                        reverse KL
    0 < β < 1     β Σ pt log(pt / m) + (1 − β) Σ ps log(ps / m),  m = (1 − β) ps + β pt

(Agarwal et al. 2023, arXiv 2306.13649; the same convention as TRL's `DistillationTrainer`, with which a test compares.)
ps and pt are probabilities of events. Where both sides have one vocabulary, an event is a token. Otherwise it is a
class of `distill.logits.vocabularies.bridge`, and the span that was written (`distill.logits.vocabularies.alignment`)
is an event of its own, cut out of its class: its probability is the product over its tokens on either side. Where the
teacher gives only its likeliest candidates, all else is one event, the tail. Coarser events never make a divergence
larger, so what is minimized is a lower bound of the divergence of the whole distributions.

The logits of a small model's step are its largest tensor, so they are computed once, in the weights' dtype, and turned
into their own gradient in place, a few rows at a time in fp32, as in `distill.training.completion_loss`:

    ∂D/∂z_v = (ps_v (g_v − Σ_u ps_u g_u) + a (1[v = y] − ps_v)) / T

with g_v = ∂D/∂ps of the class of v, and a = ∂D/∂log p of the token y that was written, of which a span has several.
"""

# Shapes: R rows that predict a token of a turn, P graded positions (spans), D hidden, V vocabulary, C classes,
# K candidates, E events. A span's rows follow each other, its first one predicts its beginning.

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

ROWS = 64
"""Rows of logits in fp32 at once, as in `distill.training.completion_loss`."""
LEAST = 1e-30
"""Probabilities below this count as this in logarithms."""


class TeacherEvents(Protocol):
    """The teacher's probabilities at graded positions."""

    @property
    def classes_PK(self) -> Tensor | None:
        """The classes of its candidates; None if it gives a probability to every class."""

    @property
    def span_P(self) -> Tensor:
        """The probability of the span that was written; 0 where it is no event of its own."""

    def probabilities(self, begin: int, end: int) -> Tensor:
        """Return, for these positions, the probability of each class, or of each candidate's class and then the rest.

        What a span takes is left out.
        """


@dataclass(kw_only=True)
class Graded:
    """What a loss needs to know of a batch, besides the student's hidden states."""

    ids_R: Tensor
    """The token that each row predicts."""
    position_R: Tensor
    """The graded position to whose span each row belongs; −1 if to none."""
    start_P: Tensor
    """The first row of each position's span, in ascending order."""
    is_span_P: Tensor
    """Whether the span is an event of its own."""
    merged_P: Tensor
    """A class whose probability counts to the class of the span's first token, where the teacher's first token lies in
    another one; −1 if none does."""
    teacher: TeacherEvents
    divergence_P: Tensor
    """The weight of each position's divergence."""
    cross_entropy_R: Tensor
    """The weight of each row's cross entropy."""
    beta: float
    temperature: float

    def to(self, device: torch.device) -> Graded:
        """Return the same on a device."""
        return moved(self, device)


Moved = TypeVar("Moved")


def moved(facts: Moved, device: torch.device) -> Moved:
    """Return a record with its tensors, and those of records in it, on a device."""
    values: dict[str, Any] = {}
    for field in fields(facts):  # type: ignore[arg-type]
        value = getattr(facts, field.name)
        if torch.is_tensor(value):
            values[field.name] = value.to(device)
        elif is_dataclass(value):
            values[field.name] = moved(value, device)
    return replace(facts, **values)  # type: ignore[type-var]


def divergence_of(student_PE: Tensor, teacher_PE: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return the divergence of each row of events, and its derivative by the logarithm of each of the student's
    probabilities."""
    log_s_PE, log_t_PE = student_PE.clamp(min=LEAST).log(), teacher_PE.clamp(min=LEAST).log()
    if beta == 0:
        return (teacher_PE * (log_t_PE - log_s_PE)).sum(1), -teacher_PE
    if beta == 1:
        gap_PE = log_s_PE - log_t_PE
        return (student_PE * gap_PE).sum(1), student_PE * (gap_PE + 1)
    log_m_PE = ((1 - beta) * student_PE + beta * teacher_PE).clamp(min=LEAST).log()
    from_student_PE = (1 - beta) * student_PE * (log_s_PE - log_m_PE)
    return (beta * teacher_PE * (log_t_PE - log_m_PE) + from_student_PE).sum(1), from_student_PE


def summed_by_class(probabilities_RV: Tensor, class_V: Tensor | None, classes: int) -> Tensor:
    """Return the probability of each class; `class_V`: None if every token is one."""
    if class_V is None:
        return probabilities_RV
    summed_CR = probabilities_RV.new_zeros(classes, len(probabilities_RV))
    return summed_CR.index_add_(0, class_V, probabilities_RV.T.contiguous()).T


class _GradedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_RD: Tensor, weight_VD: Tensor, class_V: Tensor | None, classes: int, graded: Graded
    ) -> tuple[Tensor, Tensor]:
        logits_RV = hidden_RD @ weight_VD.T
        parts_2 = _into_gradient(logits_RV, class_V, classes, graded)
        ctx.save_for_backward(hidden_RD, weight_VD, logits_RV)
        ctx.mark_non_differentiable(parts_2)
        return parts_2.sum(), parts_2

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, d_parts_2: Tensor) -> tuple[Tensor | None, ...]:
        hidden_RD, weight_VD, d_logits_RV = ctx.saved_tensors
        scale = d_loss.to(hidden_RD.dtype)
        d_hidden_RD = (d_logits_RV @ weight_VD) * scale
        d_weight_VD = d_logits_RV.T @ (hidden_RD * scale) if ctx.needs_input_grad[1] else None
        return d_hidden_RD, d_weight_VD, None, None, None


def graded_loss(
    hidden_RD: Tensor, weight_VD: Tensor, class_V: Tensor | None, classes: int, graded: Graded
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of divergences and cross entropies, and the two apart (without a gradient).

    `weight_VD`: the head; its rows beyond the tokenizer's ids, which are padding, are left out by the caller.
    `class_V`: the class of each token; None if every token is one.
    """
    loss: tuple[Tensor, Tensor] = _GradedLoss.apply(  # type: ignore[no-untyped-call]
        hidden_RD, weight_VD, class_V, classes, graded
    )
    return loss


def _into_gradient(logits_RV: Tensor, class_V: Tensor | None, classes: int, graded: Graded) -> Tensor:
    """Turn logits into the loss's gradient by them, in place; return the summed divergence and cross entropy."""
    parts_2 = torch.zeros(2, dtype=torch.float32, device=logits_RV.device)
    logprob_R = torch.cat([_logprobs(logits_RV, graded, rows) for rows in _chunks(len(logits_RV))])
    is_later_R = graded.position_R >= 0
    is_later_R[graded.start_P] = False
    later_P = logprob_R.new_zeros(len(graded.start_P))
    later_P.index_add_(0, graded.position_R[is_later_R], logprob_R[is_later_R])
    by_later_P = torch.zeros_like(later_P)
    """The derivative of each position's loss by the log probability of its span's later tokens."""
    starts = graded.start_P.tolist()
    begin = 0
    for rows in _chunks(len(logits_RV)):
        end = begin
        while end < len(starts) and starts[end] < rows.stop:
            end += 1
        logits_rV = logits_RV[rows].float()
        gradient_rV = torch.zeros_like(logits_rV)
        positions = slice(begin, end)
        first = graded.start_P[positions] - rows.start
        if end > begin:
            step = _Positions(logits_rV[first], class_V, classes, graded, positions, later_P[positions])
            gradient_rV[first] = step.gradient_pV
            by_later_P[positions] = step.by_later_p
            parts_2[0] += step.loss
        _add_later(gradient_rV, logits_rV, rows, is_later_R, by_later_P, graded)
        parts_2[1] += _add_cross_entropy(gradient_rV, logits_rV, rows, graded)
        logits_RV[rows] = gradient_rV.to(logits_RV.dtype)
        begin = end
    return parts_2


class _Positions:
    """The loss of some graded positions, and its gradient by the logits of their first rows."""

    def __init__(
        self,
        logits_pV: Tensor,
        class_V: Tensor | None,
        classes: int,
        graded: Graded,
        positions: slice,
        later_p: Tensor,
    ) -> None:
        ids_p1 = graded.ids_R[graded.start_P[positions]][:, None]
        is_span_p1 = graded.is_span_P[positions, None]
        p_pV = torch.softmax(logits_pV / graded.temperature, dim=-1)
        written_p1 = p_pV.gather(1, ids_p1)
        # a span is cut out of its class: what is left of the written token's probability stays in it
        others_pV = p_pV.scatter(1, ids_p1, torch.where(is_span_p1, torch.zeros_like(written_p1), written_p1))
        student_pC = summed_by_class(others_pV, class_V, classes)
        of_written_p1 = ids_p1 if class_V is None else class_V[ids_p1]
        follows_p1 = torch.where(is_span_p1, later_p[:, None].exp(), torch.zeros_like(written_p1))
        if class_V is None:
            student_pC = student_pC.clone()
        rest_p1 = torch.where(is_span_p1, written_p1 * -torch.expm1(later_p[:, None]), torch.zeros_like(written_p1))
        student_pC.scatter_add_(1, of_written_p1, rest_p1)
        span_p1 = written_p1 * follows_p1
        merged_p1 = graded.merged_P[positions, None]
        is_merged_p1 = merged_p1 >= 0
        other_p1 = torch.where(is_merged_p1, merged_p1, torch.zeros_like(merged_p1))
        moved_p1 = torch.where(is_merged_p1, student_pC.gather(1, other_p1), torch.zeros_like(written_p1))
        student_pC.scatter_add_(1, other_p1, -moved_p1).scatter_add_(1, of_written_p1, moved_p1)

        teacher_pE = graded.teacher.probabilities(positions.start, positions.stop)
        kept_pK = None if graded.teacher.classes_PK is None else graded.teacher.classes_PK[positions]
        student_pE = student_pC if kept_pK is None else _with_tail(student_pC, kept_pK)
        teacher_span_p1 = graded.teacher.span_P[positions, None]
        divergence_p, by_log_pE = divergence_of(
            torch.cat([student_pE, span_p1], dim=1), torch.cat([teacher_pE, teacher_span_p1], dim=1), graded.beta
        )
        weight_p1 = graded.divergence_P[positions, None]
        self.loss = (divergence_p * weight_p1[:, 0]).sum()
        by_log_pE *= weight_p1
        by_event_pE = by_log_pE[:, :-1] / student_pE.clamp(min=LEAST)
        by_class_pC = by_event_pE if kept_pK is None else _from_tail(by_event_pE, kept_pK, classes)
        by_own_p1 = by_class_pC.gather(1, of_written_p1)
        by_class_pC = by_class_pC.scatter(
            1, other_p1, torch.where(is_merged_p1, by_own_p1, by_class_pC.gather(1, other_p1))
        )
        by_token_pV = by_class_pC if class_V is None else by_class_pC.index_select(1, class_V)
        by_token_pV = others_pV * by_token_pV
        by_span_p1 = torch.where(is_span_p1, by_log_pE[:, -1:], torch.zeros_like(written_p1))
        by_written_p1 = by_span_p1 + by_own_p1 * rest_p1
        self.by_later_p = (by_span_p1 - by_own_p1 * span_p1)[:, 0]
        total_p1 = by_token_pV.sum(1, keepdim=True) + by_written_p1
        gradient_pV = by_token_pV.scatter_add_(1, ids_p1, by_written_p1) - p_pV * total_p1
        self.gradient_pV = gradient_pV / graded.temperature


def _with_tail(student_pC: Tensor, classes_pK: Tensor) -> Tensor:
    """Return the probabilities of the teacher's candidates' classes, and of all others together."""
    kept_pK = student_pC.gather(1, classes_pK.clamp(min=0)) * (classes_pK >= 0)
    tail_p1 = (student_pC.sum(1, keepdim=True) - kept_pK.sum(1, keepdim=True)).clamp(min=0)
    return torch.cat([kept_pK, tail_p1], dim=1)


def _from_tail(by_event_pE: Tensor, classes_pK: Tensor, classes: int) -> Tensor:
    """Spread the derivatives by candidates and tail over the classes."""
    by_class_pC = by_event_pE[:, -1:].repeat(1, classes + 1)
    places_pK = torch.where(classes_pK >= 0, classes_pK, torch.full_like(classes_pK, classes))
    return by_class_pC.scatter_(1, places_pK, by_event_pE[:, :-1])[:, :-1]


def _add_later(
    gradient_rV: Tensor, logits_rV: Tensor, rows: slice, is_later_R: Tensor, by_later_P: Tensor, graded: Graded
) -> None:
    """Add what a span's probability says to the rows of its later tokens."""
    places = is_later_R[rows].nonzero()[:, 0]
    if not len(places):
        return
    by_log_l1 = by_later_P[graded.position_R[rows][places]][:, None] / graded.temperature
    p_lV = torch.softmax(logits_rV[places] / graded.temperature, dim=-1)
    gradient_rV[places] += (-p_lV * by_log_l1).scatter_add_(1, graded.ids_R[rows][places][:, None], by_log_l1)


def _add_cross_entropy(gradient_rV: Tensor, logits_rV: Tensor, rows: slice, graded: Graded) -> Tensor:
    """Add the cross entropy's gradient; return its weighted sum."""
    weight_r1 = graded.cross_entropy_R[rows, None]
    if not bool(weight_r1.any()):
        return weight_r1.new_zeros(())
    ids_r1 = graded.ids_R[rows, None]
    log_p_rV = torch.log_softmax(logits_rV, dim=-1)
    log_p_r1 = log_p_rV.gather(1, ids_r1)
    gradient_rV += log_p_rV.exp_().scatter_(1, ids_r1, log_p_r1.expm1()) * weight_r1
    return -(log_p_r1 * weight_r1).sum()


def _logprobs(logits_RV: Tensor, graded: Graded, rows: slice) -> Tensor:
    """Return the log probability of the token that each of these rows predicts."""
    scaled_rV = logits_RV[rows].float() / graded.temperature
    written_r = scaled_rV.gather(1, graded.ids_R[rows, None])[:, 0]
    return written_r - torch.logsumexp(scaled_rV, dim=-1)


def _chunks(count: int) -> list[slice]:
    return [slice(begin, min(begin + ROWS, count)) for begin in range(0, count, ROWS)]
