"""The loss and its gradients do not depend on how many logits are made at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distill.training import completion_loss
from distill.training.completion_loss import IGNORED, ROWS, summed_loss

WORDS, WIDTH, TOKENS = 50, 16, 300


def made(dtype: torch.dtype, *, head_learns: bool = True) -> tuple[Any, Any, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(WORDS, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(head_learns)
    labels = torch.randint(0, WORDS, (TOKENS,), generator=generator)
    labels[:20] = labels[100:120] = IGNORED
    return hidden, weight, labels


def chunks_of(rows: int, dtype: torch.dtype, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(completion_loss, "LOGITS_BYTES", rows * WORDS * dtype.itemsize)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_learns", [True, False])
def test_chunks_of_logits_give_the_gradients_of_all_at_once(
    dtype: torch.dtype, head_learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for rows in (10 * TOKENS, ROWS):
        chunks_of(rows, dtype, monkeypatch)
        hidden, weight, labels = made(dtype, head_learns=head_learns)
        loss = summed_loss(hidden, weight, labels)
        (loss * 0.25).backward()
        found.append((loss.detach(), hidden.grad, weight.grad))
    (loss, d_hidden, d_weight), (chunked, d_hidden_chunked, d_weight_chunked) = found
    torch.testing.assert_close(chunked, loss)
    torch.testing.assert_close(d_hidden_chunked, d_hidden)
    if head_learns:
        near = 0.01 if dtype == torch.bfloat16 else 1e-6  # each chunk's product is rounded to the dtype
        assert (d_weight_chunked - d_weight).float().norm() < near * d_weight.float().norm()
    else:
        assert d_weight is None and d_weight_chunked is None


def test_chunks_equal_torchs_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks_of(ROWS, torch.float64, monkeypatch)
    hidden, weight, labels = made(torch.float64)
    loss = summed_loss(hidden, weight, labels)
    grads = torch.autograd.grad(loss, (hidden, weight))
    logits = hidden[:-1] @ weight.T
    oracle = torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum", ignore_index=IGNORED)
    torch.testing.assert_close(loss.double(), oracle, rtol=1e-6, atol=1e-6)  # rows are summed in fp32
    for mine, other in zip(grads, torch.autograd.grad(oracle, (hidden, weight)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_without_gradients_a_chunk_makes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks_of(ROWS, torch.float32, monkeypatch)
    hidden, weight, labels = made(torch.float32)
    with torch.no_grad():
        measured = summed_loss(hidden, weight, labels)
    assert not measured.requires_grad
    torch.testing.assert_close(measured, summed_loss(hidden, weight, labels).detach())


def test_a_row_of_the_demo_is_one_chunk() -> None:
    tokens, words = 8192, 49_152  # a full row of SmolLM2, all of it completion
    assert tokens * words * torch.bfloat16.itemsize <= completion_loss.LOGITS_BYTES


@pytest.mark.parametrize("rows", [10 * TOKENS, ROWS])
def test_a_batch_that_teaches_nothing_has_no_loss_and_no_gradient(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks_of(rows, torch.float32, monkeypatch)
    hidden, weight, labels = made(torch.float32)
    loss = summed_loss(hidden, weight, torch.full_like(labels, IGNORED))
    loss.backward()
    assert loss == 0 and not hidden.grad.any() and not weight.grad.any()
