"""The auxiliary loss against its formula, and the benchmark's page at its smallest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.training.experts_cost import DENSE, IMPLEMENTATIONS, dense_shape, imbalance, main
from distill.teach.teacher_recipe import nano


def test_auxiliary_loss_equals_its_formula() -> None:
    tokens, experts, chosen = 11, 6, 2
    torch.manual_seed(0)
    logits_NE = torch.randn(tokens, experts, requires_grad=True)
    chosen_NK = logits_NE.topk(chosen).indices
    expected = 0.0
    for expert in range(experts):
        load = sum(expert in row for row in chosen_NK.tolist())
        scores = 1 / (1 + np.exp(-logits_NE.detach().double().numpy()))
        share = sum(row[expert] / row.sum() for row in scores) / tokens
        expected += experts / (chosen * tokens) * load * share
    loss = imbalance(logits_NE, chosen_NK)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert expected > 1
    loss.backward()
    assert logits_NE.grad is not None and logits_NE.grad.abs().max() > 0


def test_auxiliary_loss_is_one_where_the_load_is_even() -> None:
    assert float(imbalance(torch.zeros(4, 4), torch.tensor([[0], [1], [2], [3]]))) == pytest.approx(1)


def test_the_dense_model_is_as_wide_as_what_a_token_activates() -> None:
    shape, dense = nano().shape, dense_shape(nano().shape)
    assert dense.intermediate_size == 5 * shape.moe_intermediate_size
    assert dense.first_k_dense_replace == dense.num_hidden_layers


def test_page_holds_a_row_of_each_balance_and_each_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--steps", "2", "--rows", "1", "--rounds", "1", "--preset", "quick", "--out", str(tmp_path)])
    page = (tmp_path / "experts.md").read_text()
    assert page.strip() == capsys.readouterr().out.strip()
    for name in ("by a bias", "by an auxiliary loss", "not at all", DENSE, *IMPLEMENTATIONS.values()):
        assert f"| {name}" in page or f" | {name} |" in page, name
    assert page.count("| bf16 |") == page.count("| fp32 |") == 4
    assert "experts.svg" in page and (tmp_path / "experts.svg").read_text().rstrip().endswith("</svg>")
