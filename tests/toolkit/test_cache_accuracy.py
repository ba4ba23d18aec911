"""The figures in the latent cache's table, each against its definition written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from benchmarks.latents.cache_accuracy import drift, output_error, toolkit_json
from benchmarks.latents.cache_cost import VARIANTS, cached_bytes, document, expanded_bytes, measure
from benchmarks.latents.latent_shapes import Shape, nano
from toolkit.errors import InputError
from toolkit.model.decoder import LatentCache, TorchDecoder


def random_model(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    return nano(1).eval()


def test_bytes_are_those_of_the_numbers_that_are_kept() -> None:
    model = random_model(0)
    assert expanded_bytes(model) == 6 * (32 + 32 + 32) * 2
    assert {variant.name: cached_bytes(model, variant) for variant in VARIANTS} == {
        "absorbed": (64 + 32) * 2,
        "QMLA": 64 + 2 + 32 * 2,
        "CMLA": (48 + 32) * 2,
        "QMLA + CMLA": 48 + 2 + 32 * 2,
    }


def test_drift_is_the_divergence_after_every_token_that_was_fed() -> None:
    answers = [([5, 6, 7], [8, 9, 10, 11]), ([12, 13], [14, 15]), ([3], [4, 5, 6])]
    models = [random_model(0), random_model(1)]
    divergences, same = [], []
    for prompt, completion in answers:
        with torch.no_grad():
            logits = [model(torch.tensor([prompt + completion])).logits[0].double().numpy() for model in models]
        for place in range(len(prompt), len(prompt) + len(completion) - 1):
            p, q = (np.exp(rows[place]) / np.exp(rows[place]).sum() for rows in logits)
            divergences.append((p * np.log(p / q)).sum())
            same.append(p.argmax() == q.argmax())
    found = drift(TorchDecoder(models[0]), TorchDecoder(models[1]), answers)
    assert found.tokens == len(same) == 6
    assert found.mean_kl == pytest.approx(np.mean(divergences), rel=1e-4)
    assert found.same_first == pytest.approx(np.mean(same))


def test_output_error_grows_with_what_is_left_out() -> None:
    model = random_model(0)
    rows = [torch.randint(1024, (400,)).tolist()]
    exact = TorchDecoder(model)
    caches = [LatentCache(), LatentCache(int8=True), *(LatentCache(rank=r, calibration=rows) for r in (48, 16))]
    errors = []
    for cache in caches:
        torch.manual_seed(2)
        errors.append(output_error(exact, TorchDecoder(model, cache)))
    assert errors[0] == 0
    assert errors == sorted(errors)
    assert 1e-4 < errors[1] < 0.05 < errors[3] < 1


def test_the_table_has_a_row_for_each_way_to_keep_the_cache() -> None:
    shape = Shape(name="tiny", layers=1, make=nano)
    rows = measure(shape, [16, 32], 1, {"QMLA": ("99.96%, 1.9e-04", "89.6%")})
    page = document(rows, [16, 32], 1, 1)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    assert {len(row) for row in cells} == {8}
    assert [row[1] for row in cells[2:]] == [
        "transformers", "absorbed", "QMLA", "CMLA, rank 48", "QMLA + CMLA, rank 48",
    ]  # fmt: skip
    assert [row[5] == "–" for row in cells[2:]] == [True, True, False, False, False]
    assert cells[4][6:] == ["99.96%, 1.9e-04", "89.6%"]


def test_a_command_that_fails_is_named_with_what_it_says() -> None:
    with pytest.raises(InputError, match=r"toolkit eval .*nowhere failed with exit code 2: .*nowhere"):
        toolkit_json("eval", "./nowhere")
