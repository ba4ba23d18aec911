"""Rotating and widening the stream changes every weight but no output."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.export.rotation import write_rotated
from toolkit.errors import InputError


@pytest.mark.parametrize("hidden_size", [64, 96])
def test_the_rotated_model_says_the_same(tiny_student: Path, tmp_path: Path, hidden_size: int) -> None:
    from transformers import AutoModelForCausalLM

    write_rotated(tiny_student, tmp_path / "rotated", hidden_size=hidden_size)
    plain, rotated = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (tiny_student, tmp_path / "rotated")
    )
    assert rotated.config.hidden_size == hidden_size
    ids_BT = torch.randint(0, 320, (2, 30), generator=torch.Generator().manual_seed(0))
    expected_BTV = plain(ids_BT).logits
    torch.testing.assert_close(
        rotated(ids_BT).logits, expected_BTV, atol=2e-3 * float(expected_BTV.abs().max()), rtol=0
    )
    before = plain.model.layers[0].mlp.up_proj.weight
    after = rotated.model.layers[0].mlp.up_proj.weight
    assert (after[:, :64] - before).abs().mean() > 0.5 * before.abs().mean()


def test_a_model_that_cannot_be_rotated_is_refused(tiny_student: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"cannot rotate a LlamaForCausalLM of hidden_size 64 to 32; it must be one of"
    ):
        write_rotated(tiny_student, tmp_path / "rotated", hidden_size=32)
