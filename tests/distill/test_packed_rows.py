"""What examples begin with is computed once in a row, and changes neither the loss nor a gradient."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from distill.training import document_attention, packed_rows
from distill.training.completion_loss import IGNORED, LossForward
from distill.training.document_attention import Documents
from distill.training.packed_rows import collate, parts_of, shares_beginnings, within
from distill.training.student import add_adapters
from distill.training.train import train
from tests.distill.students.made_families import TINY
from tests.distill.test_train import examples, losses, tiny_recipe

SYSTEM, WORDS = [3, 5, 8, 13] * 10, 90
KINDS = ["llama", "qwen2", "qwen3", "gemma3_text", "mistral", "phi3", "granite", "olmo3", "cohere"]


def made(*tails: int, system: int = 40, seed: int = 0) -> list[dict[str, list[int]]]:
    """Make examples that begin with the same tokens, with tails of some lengths; the last two share a question too."""
    generator = torch.Generator().manual_seed(seed)
    question = torch.randint(3, WORDS, (30,), generator=generator).tolist()
    rows = []
    for n, length in enumerate(tails):
        tail = torch.randint(3, WORDS, (length,), generator=generator).tolist()
        asked = [*SYSTEM[:system], *(question if n >= len(tails) - 2 else [])]
        rows.append({"input_ids": [*asked, *tail], "labels": [IGNORED] * len(asked) + tail})
    return rows


def tiny(kind: str, **settings: Any) -> Any:
    shapes = TINY | {"vocab_size": 96, "pad_token_id": 0, "head_dim": 16, "sliding_window": 32} | settings
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shapes), dtype=torch.float32)
    model.set_attn_implementation(document_attention.NAME)
    return model


def check_equal(model: Any, rows: list[dict[str, list[int]]]) -> None:
    """Compare loss and gradients of a row with shared beginnings with those of whole examples."""
    other = deepcopy(model)
    whole, shared = collate(rows), collate(rows, shares=True)
    assert shared["input_ids"].numel() < whole["input_ids"].numel()
    assert shared["labels"].tolist() == whole["labels"].tolist()
    expected, loss = LossForward(other)(**whole), LossForward(model)(**shared)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-5)
    expected.backward()
    loss.backward()
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        if mine.requires_grad:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("long", [document_attention.LONG, 48])
@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_beginning_changes_neither_loss_nor_gradients(
    kind: str, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_attention, "LONG", long)
    check_equal(tiny(kind), made(70, 9, 33, 1, 20, 41))


def test_a_token_that_all_examples_learn_counts_for_each() -> None:
    rows = [row | {"labels": [IGNORED, *row["input_ids"][1:]]} for row in made(5, 60, 17, 33)]
    check_equal(tiny("llama"), rows)


def test_answers_to_one_question_share_it_and_what_they_have_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_rows, "WORTH", 1)
    asked, answer = list(range(3, 59)), [*range(60, 80)]
    rows = [
        {"input_ids": [*asked, *answer[:cut], *tail], "labels": [IGNORED] * len(asked) + answer[:cut] + tail}
        for cut, tail in ((20, [5, 6]), (20, [7]), (0, [9, 9, 9]), (20, [5, 6]), (20, [5]))  # two are equal, one ends
    ]
    shared = collate(rows, shares=True)
    check_equal(tiny("llama"), rows)
    assert shared["input_ids"].numel() == len(asked) + len(answer) + sum((2, 1, 3, 2, 1))


def test_every_place_has_its_token_and_position() -> None:
    rows = made(12, 50, 1, 30, 25)
    shared = collate(rows, shares=True)
    places = shared["documents"].token_of_place
    assert shared["input_ids"][0, places].tolist() == [id for row in rows for id in row["input_ids"]]
    positions = [n for row in rows for n in range(len(row["input_ids"]))]
    assert shared["position_ids"][0, places].tolist() == positions


def test_a_beginning_that_saves_little_is_left_in_each_example(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"input_ids": [1, 2, 3, 4, 5, n, n], "labels": [IGNORED, 2, 3, 4, 5, n, n]} for n in range(6, 10)]
    monkeypatch.setattr(packed_rows, "WORTH", 13)
    unshared, batch = collate(rows), collate(rows, shares=True)
    assert batch["documents"].token_of_place is None
    assert batch["input_ids"].tolist() == unshared["input_ids"].tolist()
    monkeypatch.setattr(packed_rows, "WORTH", 12)
    parts = parts_of([row["input_ids"] for row in rows])
    assert [(part.begin, part.end) for part in parts] == [(0, 4), *[(4, 7)] * 4]


def test_attention_after_earlier_documents_equals_that_in_whole_ones() -> None:
    generator = torch.Generator().manual_seed(3)
    query, key, value = (
        torch.randn(1, heads, 95, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (6, 2, 2)
    )
    documents = Documents([35, 20, 30, 10], [-1, 0, 0, 2])  # 0 → 1, 0 → 2 → 3
    before = {0: [], 1: [0], 2: [0], 3: [0, 2]}
    document = torch.repeat_interleave(torch.arange(4), torch.tensor(documents.lengths))
    seen = torch.ones(95, 95).tril().bool()
    for n, earlier in before.items():
        for unseen in set(range(4)) - {n, *earlier}:
            seen[(document == n)[:, None] & (document == unseen)] = False
    ours, _ = document_attention.attend(torch.nn.Identity(), query, key, value, None, scaling=0.3, documents=documents)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(ours, expected)
    for mine, other in zip(
        torch.autograd.grad(ours.square().sum(), (query, key, value)),
        torch.autograd.grad(expected.square().sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_and_checkpointing_bear_shared_beginnings(checkpointing: bool) -> None:
    plain = tiny("llama")
    adapted: Any = add_adapters(plain, replace(tiny_recipe(), lora_rank=4))
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        parameter.data = parameter.data.float()
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    if checkpointing:
        plain.gradient_checkpointing_enable({"use_reentrant": False})
        plain.train()
    check_equal(adapted.get_base_model(), made(20, 34, 8))


@pytest.mark.parametrize("setting", [{}, {"lora_rank": 4}, {"lora_rank": 4, "quantization": "nf4"}])
def test_a_training_computes_a_beginning_once_and_has_the_losses_of_whole_examples(
    setting: dict[str, Any], tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    forward = LossForward.__call__

    def counted(self: Any, **inputs: Any) -> torch.Tensor:
        computed.append(inputs["input_ids"].numel())
        return forward(self, **inputs)

    monkeypatch.setattr(LossForward, "__call__", counted)
    recipe = replace(tiny_recipe(), **setting)
    tokens = []
    for name, shares in (("shared", True), ("whole", False)):
        if not shares:
            monkeypatch.setattr("distill.training.train.shares_beginnings", lambda *_: False)
        (tmp_path / name).mkdir()
        train(tiny_student, examples(12), recipe, tmp_path / name, examples(2))
        tokens.append(sum(computed))
        computed.clear()
    assert tokens[0] < tokens[1]
    assert losses(tmp_path / "shared") == pytest.approx(losses(tmp_path / "whole"), rel=5e-3)


def test_noise_and_dropout_stay_different_in_each_example() -> None:
    model = tiny("llama")
    assert shares_beginnings(model, tiny_recipe())
    assert not shares_beginnings(model, replace(tiny_recipe(), neftune_noise=5.0))
    assert not shares_beginnings(model, replace(tiny_recipe(), lora_rank=4, lora_dropout=0.1))
    model.set_attn_implementation("sdpa")
    assert not shares_beginnings(model, tiny_recipe())


def test_rows_of_bounded_length_share_within_themselves() -> None:
    rows = made(*[20] * 8)
    cut = within(rows, 130, shares=True)
    assert len(cut) > 2
    assert [label for row in cut for label in row["labels"][0].tolist()] == [n for row in rows for n in row["labels"]]
