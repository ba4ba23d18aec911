"""Examples of tens of thousands of tokens: attention and checkpointing change the memory, not the numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaMLP

from distill.training import document_attention
from distill.training.document_attention import Documents
from distill.training.train import train
from tests.distill.test_train import examples, float_model, losses, tiny_recipe

LENGTHS = [5, 70, 40, 200, 199, 33]


def states(dtype: torch.dtype, heads: int = 6, groups: int = 2) -> list[Any]:
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(1, n, sum(LENGTHS), 8, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for n in (heads, groups, groups)
    ]


def test_attention_in_long_documents_equals_a_block_diagonal_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_attention, "LONG", 64)
    query, key, value = states(torch.float64)
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    mask = (document[:, None] == document[None]) & torch.ones(sum(LENGTHS), sum(LENGTHS)).tril().bool()
    ours, _ = document_attention.attend(
        torch.nn.Identity(), query, key, value, None, scaling=0.3, documents=Documents(LENGTHS)
    )
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(ours, expected)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for mine, other in zip(
        torch.autograd.grad((ours * weights).sum(), (query, key, value)),
        torch.autograd.grad((expected * weights).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_a_long_document_keeps_no_more_than_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_attention, "LONG", 64)
    kept = []
    sizes: list[int] = []
    for length in (256, 512):
        sizes.clear()
        query, key, value = (torch.randn(1, n, length, 8, requires_grad=True) for n in (6, 2, 2))
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: sizes.append(saved.numel()), lambda none: none):
            document_attention.attend(
                torch.nn.Identity(), query, key, value, None, scaling=0.3, documents=Documents([length])
            )
        kept.append(sum(sizes))
    assert kept[0] and kept[1] == 2 * kept[0]


@pytest.mark.parametrize("lora_rank", [0, 8])
def test_checkpointing_changes_no_number(lora_rank: int, tiny_student: Path, tmp_path: Path) -> None:
    course = []
    for name, checkpointing in (("kept", False), ("computed again", True)):
        folder = tmp_path / name
        folder.mkdir()
        recipe = replace(tiny_recipe(), lora_rank=lora_rank, gradient_checkpointing=checkpointing)
        train(tiny_student, examples(24), recipe, folder)
        course.append((losses(folder), float_model(folder).state_dict()))
    (kept, weights), (again, others) = course
    assert again == kept
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_computes_each_layer_once_more(
    checkpointing: bool, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    forward = LlamaMLP.forward

    def watched(self: Any, x: Any) -> Any:
        computed.append(self)
        return forward(self, x)

    monkeypatch.setattr(LlamaMLP, "forward", watched)
    train(tiny_student, examples(4), replace(tiny_recipe(), gradient_checkpointing=checkpointing), tmp_path)
    assert len(computed) == 2 * len(set(computed)) == 4 if checkpointing else len(computed) == 2
