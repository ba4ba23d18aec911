"""Folders of other exporters are read as intended."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.peers.olive import BuiltModel
from export.runtime.decoder import OnnxDecoder


def test_a_folder_in_the_builders_layout_scores_as_our_runner_does(calibrated: Path) -> None:
    """Our folders have that layout too, and our runner reads texts in chunks, after a past that is not empty."""
    tokens_T = np.random.default_rng(0).integers(3, 320, 300).tolist()
    found = BuiltModel(calibrated, threads=1).score(tokens_T)
    expected = OnnxDecoder(calibrated, cache="exact").score(tokens_T)
    np.testing.assert_allclose(found, expected, atol=1e-4)  # sums in another order
