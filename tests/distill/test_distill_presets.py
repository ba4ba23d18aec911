"""The defaults that the help and the documents tell are those of the presets."""

from __future__ import annotations

import re

import pytest
from distill.distill_presets import LORA_LEARNING_RATE, PRESETS, Preset

from distill.pipeline import DistillConfig, recipe
from tests.house.modules import ROOT
from toolkit.cli.main import main


def values(config: DistillConfig) -> dict[str, float]:
    """Return what a run does, by option."""
    sampling, train = config.sampling, config.train
    assert config.seed == sampling.seed == train.seed
    return {
        "per_family": config.per_family,
        "samples": config.samples,
        "temperature": sampling.temperature,
        "max_new_tokens": sampling.max_new_tokens,
        "max_tokens": config.max_tokens,
        "per_problem": config.per_problem,
        "epochs": train.epochs,
        "learning_rate": train.learning_rate,
        "seed": config.seed,
    }


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_recipe_has_its_presets_values(preset: Preset) -> None:
    assert values(recipe(preset)).items() <= vars(preset).items()


def test_the_help_tells_the_values_of_all_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    demo, full = (values(recipe(PRESETS[name])) for name in ("demo", "full"))
    for name, value in demo.items():
        told = re.search(rf"--{name.replace('_', '-')} [A-Z_]+ .*?default: (.*?)(?= --| -h|$)", text)
        assert told, name
        numbers = [float(number) for number in re.findall(r"[\d.]+", told[0].partition("default: ")[2])]
        lora = [LORA_LEARNING_RATE] if name == "learning_rate" else []
        assert numbers == [value, *lora, *([full[name]] if full[name] != value else [])], name
    assert "the preset's" not in text


def test_the_document_tells_them_too() -> None:
    text = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    rows = {
        name: (demo, full)
        for name, demo, full in re.findall(r"^\| `--([\w-]+)` \| (.*) \| (.*) \|$", text, re.MULTILINE)
    }
    demo, full = (values(recipe(PRESETS[name])) for name in ("demo", "full"))
    assert rows == {
        name.replace("_", "-"): tuple(
            f"{value:g}" + (f", with `--lora` {LORA_LEARNING_RATE:g}" if name == "learning_rate" else "")
            for value in (demo[name], full[name])
        )
        for name in demo
    }
