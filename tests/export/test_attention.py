"""An int8 cache holds the same codes after a prompt that was read over floats as after single tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.checks.parity import Bounds
from export.graph.attention_over_codes import FEW_TOKENS
from export.pipeline import export_model
from export.presets import int4_config, nearest_config
from export.runtime.decoder import OnnxDecoder
from export.runtime.rows.prefix import PROMPT_CHUNK

WIDE = Bounds(max_mean_kl=9.0, min_top1=0.0)
CLOSE = 0.99
"""A prompt's tokens see each other before they are rounded: 0.995 at least, where a wrong window gives 0.98 at most."""


@pytest.mark.parametrize("length", [FEW_TOKENS + 1, PROMPT_CHUNK + 30])
def test_every_architecture_reads_a_prompt_into_the_codes_that_its_tokens_leave_one_by_one(
    checkpoint_folder: Path, traces: Path, length: int, tmp_path: Path
) -> None:
    config = nearest_config(checkpoint_folder, tmp_path / "fp32", "fp32", calibration=traces)
    export_model(replace(config, bounds=None))
    at_once, stepped = (OnnxDecoder(config.out, cache="int8") for _ in range(2))
    prompt = np.random.default_rng(0).integers(3, 320, length).tolist()
    at_once_V = at_once.start([prompt])[0]
    stepped.start([prompt[:1]])
    for token in prompt[1:]:
        stepped_V = stepped.step(np.array([token]))[0]
    assert np.corrcoef(at_once_V, stepped_V)[0, 1] > CLOSE
    for name in at_once.model.shape.names:
        read, kept = (decoder.kept()[name][:, :length].astype(int) for decoder in (at_once, stepped))
        assert np.corrcoef(read.ravel(), kept.ravel())[0, 1] > CLOSE
        if name.startswith("0."):  # before any attention both round the same floats
            assert np.abs(read - kept).max() <= 1
            assert (read != kept).mean() < 0.01


def test_rows_that_are_read_together_say_what_they_say_alone(calibrated: Path) -> None:
    decoder = OnnxDecoder(calibrated, cache="int8")
    rows = np.random.default_rng(1).integers(3, 320, (2, FEW_TOKENS + 9))
    alone = [decoder.start([row.tolist()])[0] for row in rows]
    decoder.model.make_room(2, rows.shape[1], used=0)
    together_BTV = decoder.model.run(0, rows, np.full(2, rows.shape[1]), wanted=1)
    for together_V, alone_V in zip(together_BTV[:, 0], alone, strict=True):
        assert np.corrcoef(together_V, alone_V)[0, 1] > 0.999


def test_a_folder_runs_with_the_cache_that_it_was_compared_with(
    calibrated: Path, tiny_student: Path, traces: Path, tmp_path: Path
) -> None:
    best = replace(int4_config(tiny_student, tmp_path / "best", preset="best", calibration=traces), bounds=WIDE)
    export_model(best)
    exact, rounded = (OnnxDecoder(calibrated, cache=cache).model.position_bytes for cache in ("exact", "int8"))
    assert rounded * 4 == exact
    assert OnnxDecoder(calibrated).model.position_bytes == rounded
    assert OnnxDecoder(best.out).model.position_bytes == exact
    assert OnnxDecoder(best.out, cache="int8").model.position_bytes == rounded
