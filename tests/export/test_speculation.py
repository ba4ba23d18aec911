"""Drafting changes how many steps a text takes, and not a token of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.pipeline import export_model
from export.presets import int4_config
from export.runtime.decoder import OnnxDecoder
from toolkit.generation.generate import GREEDY, Floats, Sampling, complete
from toolkit.generation.speculation import DRAFT_LENGTHS, Pace, SpeculativeDecoder

NO_STOP: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def exported(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "int4"
    export_model(replace(int4_config(tiny_student, out), bounds=None))
    return out


def count_runs(decoder: OnnxDecoder) -> list[Floats]:
    """Record the results of each run of the model from now on."""
    runs: list[Floats] = []
    run = decoder.model.run

    def counted_run(*given: Any, **named: Any) -> Floats:
        runs.append(run(*given, **named))
        return runs[-1]

    decoder.model.run = counted_run  # type: ignore[method-assign]
    return runs


def ticking() -> Callable[[], float]:
    """Make a clock by which all steps take equally long, so that every partly correct draft pays."""
    ticks = count()
    return lambda: float(next(ticks))


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.05, seed=3)])
def test_a_drafted_text_is_the_plain_one_in_fewer_steps(exported: Path, sampling: Sampling) -> None:
    """A random model that is sampled greedily soon repeats itself."""
    sampling = replace(sampling, max_new_tokens=160)
    prompts = [[5, 9, 30, 2, 7, 11], [40, 41, 42, 40, 41, 42, 40, 41]]
    for prompt in prompts:
        plain = complete(OnnxDecoder(exported), [prompt], sampling, NO_STOP)
        decoder = OnnxDecoder(exported)
        runs = count_runs(decoder)
        drafted = complete(SpeculativeDecoder(decoder, ticking()), [prompt], sampling, NO_STOP)
        assert drafted[0].ids == plain[0].ids
        assert len(runs) < 0.7 * len(plain[0].ids)


def test_several_rows_are_passed_on_untouched(exported: Path) -> None:
    sampling = replace(GREEDY, max_new_tokens=30)
    prompts = [[5, 9, 30], [7, 8, 9, 7, 8, 9]]
    plain = complete(OnnxDecoder(exported), prompts, sampling, NO_STOP)
    drafted = complete(SpeculativeDecoder(OnnxDecoder(exported), ticking()), prompts, sampling, NO_STOP)
    assert [row.ids for row in drafted] == [row.ids for row in plain]


def test_the_context_is_filled_to_its_last_position(exported: Path) -> None:
    decoder = SpeculativeDecoder(OnnxDecoder(exported), ticking())
    [row] = complete(decoder, [[5, 9, 30, 2]], replace(GREEDY, max_new_tokens=1000), NO_STOP)
    assert len(row.ids) == decoder.max_length - 4


def test_an_extended_and_rewound_row_goes_on_as_if_it_had_never_been(exported: Path) -> None:
    decoder, plain = OnnxDecoder(exported), OnnxDecoder(exported)
    decoder.start([[5, 9, 30]])
    extended_TV = decoder.extend([7, 8, 9, 10])
    decoder.rewind(3)
    plain.start([[5, 9, 30, 7]])
    np.testing.assert_allclose(decoder.step(np.array([20])), plain.step(np.array([20])), atol=0.02)
    for place, text in enumerate(([5, 9, 30, 7], [5, 9, 30, 7, 8])):
        np.testing.assert_allclose(extended_TV[place], plain.start([text])[0], atol=0.02)


def test_drafts_stop_where_they_cost_more_than_they_give_and_are_tried_again() -> None:
    pace = Pace()
    pace.note_step(0, 1.0)
    for length in DRAFT_LENGTHS:
        assert pace.length() == length, "each length is measured once"
        pace.note_step(length, 1.0 + 0.3 * length)
    assert pace.length() in DRAFT_LENGTHS
    for _ in range(40):
        pace.note_draft(accepted=False)
    lengths = [pace.length() for _ in range(200)]
    assert lengths.count(0) > 190
    assert any(lengths)
