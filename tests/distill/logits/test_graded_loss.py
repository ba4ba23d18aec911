"""Tests of the divergence and its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distill.logits.grading.graded_loss import Graded, graded_loss
from distill.logits.grading.teacher_events import (
    CandidateEvents,
    Events,
    LogitsEvents,
    TurnFacts,
    candidate_events,
    joined,
)

V, D, C = 24, 8, 9


def spans_of(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Return the position of each row and the first row of each position."""
    positions = torch.tensor([p for p, length in enumerate(lengths) for _ in range(length)])
    starts = torch.tensor([sum(lengths[:p]) for p in range(len(lengths))])
    return positions, starts


def graded(events: Events, lengths: list[int], **changes: Any) -> Graded:
    position_R, start_P = spans_of(lengths)
    rows, count = len(position_R), len(lengths)
    values: dict[str, Any] = {
        "ids_R": torch.randint(0, V, (rows,), generator=torch.Generator().manual_seed(3)),
        "position_R": position_R,
        "start_P": start_P,
        "is_span_P": torch.zeros(count, dtype=torch.bool),
        "merged_P": torch.full((count,), -1),
        "teacher": events,
        "divergence_P": torch.ones(count),
        "cross_entropy_R": torch.zeros(rows),
        "beta": 0.5,
        "temperature": 1.0,
    }
    return Graded(**values | changes)


def plain_facts(count: int) -> TurnFacts:
    zeros = torch.zeros(count, dtype=torch.long)
    return TurnFacts(
        start_P=torch.arange(count),
        length_P=zeros + 1,
        is_span_P=zeros.bool(),
        merged_P=zeros - 1,
        own_P=zeros,
    )


def plain_events(logits_PV: Tensor, temperature: float = 1.0) -> LogitsEvents:
    count, classes = logits_PV.shape
    zeros = torch.zeros(count, dtype=torch.long)
    return LogitsEvents.of(
        logits_PV,
        None,
        classes,
        first_P=zeros,
        later_P=torch.zeros(count),
        facts=plain_facts(count),
        temperature=temperature,
    )


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_with_one_vocabulary_it_is_trls(beta: float, temperature: float) -> None:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    torch.manual_seed(0)
    rows = 70  # more than one chunk
    hidden, teacher_hidden = torch.randn(rows, D, requires_grad=True), torch.randn(rows, D + 3)
    weight, teacher_weight = torch.randn(V, D, requires_grad=True), torch.randn(V, D + 3)
    events = plain_events(teacher_hidden @ teacher_weight.T, temperature)
    of = graded(events, [1] * rows, beta=beta, temperature=temperature)
    ours, _ = graded_loss(hidden, weight, None, V, of)
    (ours / rows).backward()
    found = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    theirs, _, _ = _chunked_divergence_loss(
        hidden[None],
        teacher_hidden[None],
        weight,
        teacher_weight,
        torch.ones(1, rows),
        beta,
        temperature=temperature,
    )
    theirs.backward()
    torch.testing.assert_close(ours / rows, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, (hidden.grad, weight.grad), atol=1e-5, rtol=1e-5)


def oracle(logits_RV: Tensor, class_V: Tensor, of: Graded, teacher: list[dict[Any, float]]) -> Tensor:
    """Compute the loss position by position, event by event, with plain autograd."""
    total = torch.zeros((), dtype=torch.float64)
    log_p_RV = torch.log_softmax(logits_RV.double() / of.temperature, dim=-1)
    log_p1_RV = torch.log_softmax(logits_RV.double(), dim=-1)
    for position, start in enumerate(of.start_P.tolist()):
        rows = (of.position_R == position).nonzero()[:, 0].tolist()
        own = int(class_V[of.ids_R[start]])
        merged = int(of.merged_P[position])
        student: dict[Any, Tensor] = {}
        for token in range(V):
            group = int(class_V[token])
            group = own if group == merged else group
            student[group] = student.get(group, torch.zeros(())) + log_p_RV[start, token].exp()
        if of.is_span_P[position]:
            span = torch.stack([log_p_RV[row, of.ids_R[row]] for row in rows]).sum().exp()
            student[own] = student[own] - span
            student["span"] = span
        known = {key: torch.tensor(value, dtype=torch.float64) for key, value in teacher[position].items()}
        if "tail" in known:
            tail = torch.stack([value for key, value in student.items() if key not in known]).sum()
            student = {key: value for key, value in student.items() if key in known} | {"tail": tail}
        for key in student.keys() | known.keys():
            ps = student.get(key, torch.zeros(())).clamp(min=1e-30)
            pt = known.get(key, torch.zeros((), dtype=torch.float64)).clamp(min=1e-30)
            m = (1 - of.beta) * ps + of.beta * pt
            if of.beta == 0:
                term = pt * (pt / ps).log()
            elif of.beta == 1:
                term = ps * (ps / pt).log()
            else:
                term = of.beta * pt * (pt / m).log() + (1 - of.beta) * ps * (ps / m).log()
            total = total + term * of.divergence_P[position]
    for row, weight in enumerate(of.cross_entropy_R.tolist()):
        total = total - log_p1_RV[row, of.ids_R[row]] * weight
    return total


def compare(class_V: Tensor, of: Graded, teacher: list[dict[Any, float]]) -> None:
    torch.manual_seed(1)
    rows = len(of.ids_R)
    hidden = torch.randn(rows, D, requires_grad=True)
    weight = torch.randn(V, D, requires_grad=True)
    loss, parts = graded_loss(hidden, weight, class_V, C, of)
    loss.backward()
    found = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    expected = oracle(hidden @ weight.T, class_V, of, teacher)
    expected.backward()
    torch.testing.assert_close(loss, expected.float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(parts.sum(), expected.float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found, (hidden.grad, weight.grad), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_spans_and_candidates_have_the_gradient_of_an_oracle(beta: float) -> None:
    torch.manual_seed(2)
    class_V = torch.randint(0, C, (V,))
    lengths = [1, 3, 1, 2, 2]
    is_span = torch.tensor([False, True, True, True, True])
    events = CandidateEvents(
        classes_PK=torch.tensor([[0, 1], [2, 3], [4, 5], [6, -1], [7, 8]]),
        masses_PE=torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.2, 0.3], [0.4, 0.1, 0.2], [0.5, 0.0, 0.2], [0.2, 0.1, 0.1]]),
        span_P=torch.tensor([0.0, 0.4, 0.3, 0.3, 0.6]),
    )
    of = graded(
        events,
        lengths,
        beta=beta,
        is_span_P=is_span,
        divergence_P=torch.tensor([1.0, 0.5, 2.0, 1.0, 1.0]),
        cross_entropy_R=torch.rand(sum(lengths)),
    )
    of.merged_P[4] = next(g for g in range(C - 2) if g != int(class_V[of.ids_R[of.start_P[4]]]))
    known: list[dict[Any, float]] = [
        {0: 0.5, 1: 0.2, "tail": 0.3},
        {2: 0.1, 3: 0.2, "tail": 0.3, "span": 0.4},
        {4: 0.4, 5: 0.1, "tail": 0.2, "span": 0.3},
        {6: 0.5, "tail": 0.2, "span": 0.3},
        {7: 0.2, 8: 0.1, "tail": 0.1, "span": 0.6},
    ]
    compare(class_V, of, known)


@pytest.mark.parametrize("beta", [0.0, 0.7, 1.0])
def test_a_teacher_of_another_vocabulary_has_the_gradient_of_an_oracle(beta: float) -> None:
    torch.manual_seed(4)
    class_V, teacher_class_V = torch.arange(V) % C, torch.arange(13) % C
    logits = torch.randn(3, 13)
    first, later = torch.tensor([2, 5, 7]), torch.tensor([-0.3, 0.0, -1.0])
    of = graded(None, [2, 1, 1], beta=beta, is_span_P=torch.tensor([True, False, True]))  # type: ignore[arg-type]
    own = class_V[of.ids_R[of.start_P]]
    of.merged_P = torch.where(of.is_span_P & (teacher_class_V[first] != own), teacher_class_V[first], -1)
    assert of.merged_P[2] >= 0
    facts = TurnFacts(start_P=of.start_P, length_P=of.start_P, is_span_P=of.is_span_P, merged_P=of.merged_P, own_P=own)
    of.teacher = LogitsEvents.of(logits, teacher_class_V, C, first_P=first, later_P=later, facts=facts, temperature=1.0)
    known = []
    for position in range(3):
        p = torch.softmax(logits[position], dim=-1)
        masses: dict[Any, float] = {}
        for token in range(13):
            group = int(teacher_class_V[token])
            group = int(own[position]) if group == int(of.merged_P[position]) else group
            masses[group] = masses.get(group, 0.0) + float(p[token])
        if of.is_span_P[position]:
            span = float(p[first[position]] * later[position].exp())
            masses[int(own[position])] -= span
            masses["span"] = span
        known.append(masses)
    compare(class_V, of, known)


def test_candidates_of_a_teacher_are_its_likeliest_classes_and_a_tail() -> None:
    torch.manual_seed(0)
    events = plain_events(torch.randn(5, V))
    kept = events.candidates(4)
    whole, part = events.probabilities(0, 5), kept.probabilities(0, 5)
    torch.testing.assert_close(part.sum(1), torch.ones(5))
    torch.testing.assert_close(part[:, :4], whole.sort(descending=True).values[:, :4])


def test_joined_turns_keep_their_tails_last() -> None:
    torch.manual_seed(0)
    first, second = plain_events(torch.randn(2, V)).candidates(2), plain_events(torch.randn(3, V)).candidates(4)
    both = joined([first, second])
    torch.testing.assert_close(both.probabilities(0, 5).sum(1), torch.ones(5))
    torch.testing.assert_close(both.probabilities(0, 2)[:, -1], first.probabilities(0, 2)[:, -1])


def test_what_is_rounded_above_one_is_scaled() -> None:
    facts = plain_facts(1)
    events = candidate_events([{3: 0.8, 4: 0.3}], [(0.0, 0.0)], facts)
    torch.testing.assert_close(events.masses_PE, torch.tensor([[0.8 / 1.1, 0.3 / 1.1, 0.0]]))
