"""Tests of the section `logits` of a recipe."""

from __future__ import annotations

from typing import Any

import pytest

from distill.logits.logits_config import USUAL, LogitsConfig
from distill.recipes.distill_recipe import resolve_recipe
from toolkit.errors import InputError


@pytest.mark.parametrize("source", ["stored", "teacher", "on_policy"])
def test_what_a_section_leaves_out_is_usual_for_its_source(source: str) -> None:
    assert LogitsConfig.from_dict({"source": source}) == USUAL[source]
    changed = LogitsConfig.from_dict({"source": source, "learning_rate_share": 0.75, "divergence_beta": 1})
    assert (changed.learning_rate_share, changed.divergence_beta, changed.final_divergence_beta) == (0.75, 1, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"logits.source \(None\) must be one of stored, teacher, on_policy"),
        ({"source": "on-policy"}, r"logits.source \('on-policy'\) must be one of"),
        ({"source": "teacher", "wieght": 1.0}, "has no key 'wieght'; did you mean 'weight'"),
        ({"source": "teacher", "weight": 1.5}, r"logits.weight \(1.5\) must be between 0 and 1"),
        ({"source": "teacher", "weight": "half"}, r"weight \('half'\) of a LogitsConfig must be a number"),
        ({"source": "on_policy", "updates": 0}, r"logits.updates \(0\) must be between 1 and"),
        ({"source": "on_policy", "weight": 0.75}, r"logits.weight \(0.75\) has no effect with logits.source on_policy"),
        ({"source": "teacher", "rollouts": 8}, r"logits.rollouts \(8\) has no effect with logits.source teacher"),
        ({"source": "stored", "top_k": 8}, r"logits.top_k \(8\) has no effect with logits.source stored"),
        (
            {"source": "on_policy", "first_new_tokens": 9},
            r"first_new_tokens \(9\) has no effect .* without a cur",
        ),
        ({"source": "stored", "temperature": 2.0}, r"logits.temperature \(2.0\) must be 1 for stored candidates"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LogitsConfig.from_dict(values)


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
