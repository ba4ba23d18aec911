"""The optimizer against its definitions: orthogonal updates by singular values, AdamW by torch's own."""

from __future__ import annotations

import torch
from torch import nn

from distill.training.optimizers.muon import UPDATE_RMS, MuonAdamW, orthogonalized, split_parameters


def test_orthogonalized_matrices_keep_their_singular_vectors() -> None:
    torch.manual_seed(0)
    for shape in ((24, 24), (16, 48), (48, 16), (3, 20, 12)):
        matrices = torch.randn(shape)
        u, _, v = torch.linalg.svd(matrices, full_matrices=False)
        aligned = torch.einsum("...ij,...ik,...kj->...j", u, orthogonalized(matrices), v.mT)
        assert aligned.min() > 0.4 and aligned.max() < 1.4, shape  # the quintic ends between 0.7 and 1.2, bf16 blurs it


def test_stacked_experts_are_orthogonalized_one_by_one() -> None:
    torch.manual_seed(0)
    stack = torch.randn(4, 12, 20)
    single = torch.stack([orthogonalized(matrix) for matrix in stack])
    torch.testing.assert_close(orthogonalized(stack), single, atol=0.05, rtol=0.05)


def test_matrix_updates_have_adams_usual_size() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(64, 64))
    optimizer = MuonAdamW([weight], [], matrix_lr=1.0, other_lr=1.0, weight_decay=0.0, betas=(0.9, 0.95))
    weight.grad = torch.randn(64, 64)
    optimizer.step()
    assert 0.6 * UPDATE_RMS < weight.detach().square().mean().sqrt() < 1.3 * UPDATE_RMS


def test_other_parameters_follow_torchs_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.ones(7)), nn.Parameter(torch.ones(7))
    optimizer = MuonAdamW([], [ours], matrix_lr=1.0, other_lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    reference = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    for _ in range(5):
        ours.grad = theirs.grad = torch.randn(7)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)


def test_embeddings_routers_and_norms_are_no_matrices_of_muon() -> None:
    model = nn.ModuleDict(
        {"embed_tokens": nn.Embedding(4, 4), "proj": nn.Linear(4, 4, bias=False), "norm": nn.LayerNorm(4)}
    )
    matrices, others = split_parameters(model)
    assert [matrix is model["proj"].weight for matrix in matrices] == [True]
    assert len(others) == 3
