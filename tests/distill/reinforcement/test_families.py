"""A student of each family is reinforced in its own voice, by probabilities that are those of its own forward."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.reinforcement import grpo
from distill.reinforcement.student_grpo import words_of
from tests.distill.reinforcement.test_student_grpo import curve, reinforced, trainer
from tests.distill.reinforcement.undecided import QUICK
from tests.distill.students.made_families import FAMILIES, write_family
from tests.distill.test_train import float_model, tiny_recipe
from toolkit.formats.chat_format import ChatFormat


@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_of_each_family_is_reinforced(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The letter e is rewarded, in which even an untrained student's turns differ."""
    monkeypatch.setattr(grpo, "REWARDS", {"accuracy": lambda problem, text: text.count("e") / (1 + len(text))})
    monkeypatch.setattr(grpo, "ACCURACY", "")  # a turn that is cut counts too
    student = write_family(name, tmp_path / "student")
    config = replace(QUICK, updates=1, format_weight=0.0, temperature=0.8)
    measured = reinforced(student, tmp_path / "out", config)
    assert measured["changed_tensors"] > 0 and len(curve(tmp_path / "out")) == 1
    assert ChatFormat.from_folder(tmp_path / "out").stop_ids

    made = trainer(student, tmp_path / "again", config, tiny_recipe())
    made.model.float()
    words = words_of(ChatFormat.from_folder(tmp_path / "again"))
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, words, (3, 60), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :8] = mask[2, 50:] = 0
    found, entropies, _ = made._get_per_token_logps_and_entropies(made.model, ids, mask, 40)
    oracle = float_model(student)
    for row in range(3):
        tokens = ids[row][mask[row].bool()]
        written = int(mask[row, 20:].sum())
        logits = oracle(input_ids=tokens[None]).logits[0, -written - 1 : -1, :words] / 0.8
        expected = torch.distributions.Categorical(logits=logits)
        torch.testing.assert_close(found[row, :written], expected.log_prob(tokens[-written:]), rtol=1e-3, atol=1e-3)
        assert entropies is not None
        torch.testing.assert_close(entropies[row, :written], expected.entropy(), rtol=1e-3, atol=1e-3)
