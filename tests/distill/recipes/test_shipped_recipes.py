"""The shipped recipes can be read, say where their values come from, and hold what their sources say."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from distill.pipeline import _stage, configured, demo
from distill.recipes.distill_recipe import SHIPPED, names, resolve_recipe, shipped_recipe
from distill.training.train_config import DEFAULTS
from toolkit.cli.main import main

SAMPLE = 60
"""Characters that a source has at least."""


@pytest.mark.parametrize("name", names())
def test_a_shipped_recipe_makes_a_configuration(name: str) -> None:
    config = configured(shipped_recipe(name))
    assert config.train.row_tokens >= config.max_tokens or config.max_tokens <= DEFAULTS["row_tokens"]
    assert config.sampling.max_new_tokens <= config.max_tokens


@pytest.mark.parametrize("name", [name for name in names() if name not in ("demo", "full")])
def test_it_says_where_its_values_come_from(name: str) -> None:
    text = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")
    comments = " ".join(re.findall(r"# (.*)", text))
    assert len(comments) > SAMPLE
    assert re.search(r"arXiv|open-thoughts|huggingface/open-r1|simplescaling|GAIR-NLP|Memory|same family", comments)


def test_published_values_are_those_that_were_published() -> None:
    r1 = [shipped_recipe(f"r1-distill-{size}") for size in ("1.5b", "7b", "14b", "32b")]
    assert [recipe.train.learning_rate for recipe in r1] == [1e-4, 8e-5, 7e-5, 6e-5]
    assert {(recipe.train.batch_examples, recipe.train.min_lr_share, recipe.max_tokens) for recipe in r1} == {
        (64, 0.1, 32768)
    }
    open_r1 = shipped_recipe("openr1-distill-7b").train
    assert (open_r1.learning_rate, open_r1.epochs, open_r1.warmup_share, open_r1.max_grad_norm) == (4e-5, 5, 0.03, 0.2)
    s1, limo = shipped_recipe("s1-32b").train, shipped_recipe("limo-32b").train
    assert (s1.learning_rate, s1.epochs, s1.weight_decay, s1.warmup_share) == (1e-5, 5, 1e-4, 0.05)
    assert (limo.learning_rate, limo.epochs, limo.warmup_share) == (5e-6, 15, 0.0)
    thinker = shipped_recipe("openthinker3-7b")
    assert (thinker.train.learning_rate, thinker.train.batch_examples, thinker.samples) == (8e-5, 512, 16)
    grpo = shipped_recipe("openr1-grpo-1.5b").rl
    assert grpo is not None
    assert (grpo.samples, grpo.learning_rate, grpo.temperature, grpo.max_new_tokens) == (16, 1e-6, 0.7, 2048)
    qlora = shipped_recipe("gpu-24gb").train
    assert (qlora.quantization, qlora.lora_rank, qlora.alpha, qlora.lora_dropout) == ("nf4", 64, 16, 0.1)


def test_demo_and_full_are_what_the_presets_of_earlier_versions_were(tmp_path: Path) -> None:
    """A finished run of such a version is not trained again: what names a run has no field that it did not have."""
    config = demo()
    recorded = {
        "learning_rate": 4e-4,
        "epochs": 1,
        "batch_examples": 16,
        "accumulation_steps": 1,
        "warmup_share": 0.05,
        "weight_decay": 0.01,
        "beta1": 0.9,
        "beta2": 0.95,
        "max_grad_norm": 1.0,
        "lora_rank": 0,
        "log_every": 5,
        "checkpoint_every_s": 240.0,
        "seed": 0,
    }

    class Teacher:
        name, digest = "builtin", "0"

    (tmp_path / "config.json").write_text("{}")
    key = _stage(config, Teacher(), tmp_path, None).key()["config"]  # type: ignore[arg-type]
    assert key["train"] == recorded
    assert list(key) == [
        *("teacher", "student", "families", "per_family", "samples", "sampling", "batch_size", "max_tokens"),
        *("per_problem", "seed", "train"),
    ]
    assert (key["per_family"], key["samples"], key["batch_size"], key["max_tokens"]) == (500, 1, 128, 512)
    full = shipped_recipe("full")
    assert (full.per_family, full.train.epochs, full.train.checkpoint_every_s) == (2400, 2, 600.0)
    lora = resolve_recipe("demo", lora=True).recipe.train
    assert (lora.lora_rank, lora.learning_rate, lora.alpha) == (32, 2e-3, 64)


def test_the_list_and_a_recipe_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n{name} " in listed for name in names())
    assert listed.index("\nr1-distill-7b ") < listed.index("\nr1-distill-14b ")
    assert main(["recipes", "r1-distill-14b"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("learning_rate: 7.0e-5") < shown.index("# ── r1-distill-7b ──") < shown.index("# ── demo ──")
    assert main(["recipes", "gpu-24gb", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["values"]
    assert values == json.loads(json.dumps(asdict(shipped_recipe("gpu-24gb"))))
    assert main(["recipes", "gpu-24"]) == 2
    assert "there is no recipe 'gpu-24'; did you mean gpu-24gb?" in capsys.readouterr().err
