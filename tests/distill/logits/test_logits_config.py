"""Tests of the section `logits` of a recipe."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from distill.logits.logits_config import USUAL, LogitsConfig
from distill.recipes.distill_recipe import resolve_recipe
from distill.recipes.yaml_file import text_of
from toolkit.errors import InputError


def read(values: dict[str, Any], folder: Path) -> LogitsConfig:
    """Read a section as a recipe's file has it."""
    path = folder / "mine.yaml"
    path.write_text(text_of({"logits": values}))
    logits = resolve_recipe(str(path)).recipe.logits
    assert logits is not None
    return logits


@pytest.mark.parametrize("source", ["stored", "teacher", "on_policy"])
def test_what_a_section_leaves_out_is_usual_for_its_source(source: str, tmp_path: Path) -> None:
    assert read({"source": source}, tmp_path) == USUAL[source]
    changed = read({"source": source, "learning_rate_share": 0.75, "divergence_beta": 1}, tmp_path)
    assert (changed.learning_rate_share, changed.divergence_beta, changed.final_divergence_beta) == (0.75, 1, 1)
    assert read(asdict(USUAL[source]), tmp_path) == USUAL[source], "as a run's recipe.yaml has it"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": 0.5}, r"logits\.source is left out; set it to one of stored, teacher, on_policy"),
        ({"source": "on-policy"}, r"logits\.source \('on-policy'\) must be one of .*; did you mean on_policy\?"),
        ({"source": "teacher", "wieght": 1.0}, r"mine\.yaml: logits\.wieght is unknown; did you mean logits\.weight"),
        (
            {"source": "teacher", "weight": 1.5},
            r"logits\.weight \(1\.5\) must be a number at least 0 and at most 1",
        ),
        ({"source": "teacher", "weight": "half"}, r"logits\.weight \('half'\) must be a number; change it"),
        ({"source": "teacher", "top_k": 1.5}, r"logits\.top_k \(1\.5\) must be a whole number; change it"),
        ({"source": "on_policy", "updates": 0}, r"logits\.updates \(0\) must be a whole number at least 1"),
        ({"source": "on_policy", "rollout_top_p": 0.0}, r"logits\.rollout_top_p \(0\.0\) must be a number above 0"),
        ({"source": "stored", "temperature": 2.0}, r"temperature \(2\.0\) has no effect with logits\.source stored;"),
        ({"source": "stored", "top_k": 5}, r"logits\.top_k \(5\) has no effect with logits\.source stored;"),
        ({"source": "teacher", "updates": 7}, r"logits\.updates \(7\) has no effect with logits\.source teacher;"),
        (
            {"source": "teacher", "curriculum": 0.5},
            r"curriculum \(0\.5\) has no effect with logits\.source teacher",
        ),
        (
            {"source": "on_policy", "weight": 0.9},
            r"weight \(0\.9\) has no effect with logits\.source on_policy",
        ),
        (
            {"source": "on_policy", "first_new_tokens": 9},
            r"tokens \(9\) has no effect without logits\.curriculum",
        ),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_with_its_name(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(values, tmp_path)


@pytest.mark.parametrize(("name", "value"), [("label_smoothing", 0.1), ("loss_on", "all")])
@pytest.mark.parametrize("source", ["stored", "teacher", "on_policy"])
def test_what_the_loss_on_texts_alone_has_is_refused_where_there_is_none(source: str, name: str, value: Any) -> None:
    settings = [f"logits.source={source}", f"train.{name}={value}"]
    if source == "on_policy":  # follows training on texts
        assert getattr(resolve_recipe("demo", settings).recipe.train, name) == value
        return
    with pytest.raises(InputError, match=rf"train\.{name} \({value}\) has no effect with logits\.source {source}, "):
        resolve_recipe("demo", settings)


def test_the_divergence_and_the_length_move_with_the_updates() -> None:
    config = LogitsConfig.from_dict(
        {
            "source": "on_policy",
            "divergence_beta": 0.0,
            "final_divergence_beta": 1.0,
            "curriculum": 0.5,
            "first_new_tokens": 20,
            "max_new_tokens": 120,
        }
    )
    assert [config.beta_at(share) for share in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]
    assert [config.tokens_at(share) for share in (0.0, 0.25, 0.5, 1.0)] == [20, 70, 120, 120]
    constant = LogitsConfig.from_dict({"source": "on_policy"})
    assert constant.tokens_at(0.0) == constant.max_new_tokens


@pytest.mark.parametrize("setting", ["train.label_smoothing=0.1", "train.loss_on=all"])
def test_a_way_of_training_that_a_distribution_replaces_is_refused(setting: str) -> None:
    key = setting.partition("=")[0].replace(".", r"\.")
    with pytest.raises(InputError, match=rf"{key} \(.*\) has no effect with logits\.source teacher"):
        resolve_recipe("demo", ["logits.source=teacher", setting])
    assert resolve_recipe("demo", ["logits.source=on_policy", setting]).recipe.logits
