"""The defaults that the help and the documents tell are those of the recipes."""

from __future__ import annotations

import re

import pytest

from distill.recipes.distill_recipe import LORA_FACTOR, shipped_recipe
from distill.recipes.told_defaults import default_text
from tests.house.modules import ROOT
from toolkit.cli.main import main

TOLD = ("per_family", "samples", "temperature", "max_new_tokens", "max_tokens", "per_problem", "seed")
TOLD_OF_TRAINING = ("epochs", "learning_rate")


def values(name: str) -> dict[str, float]:
    recipe = shipped_recipe(name)
    told = {option: getattr(recipe, option) for option in TOLD}
    return told | {option: getattr(recipe.train, option) for option in TOLD_OF_TRAINING}


def test_the_help_tells_the_values_of_both_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    demo, full = values("demo"), values("full")
    for name, value in demo.items():
        told = re.search(rf"--{name.replace('_', '-')} [A-Z_]+ .*?default: (.*?)(?= --| -h|$)", text)
        assert told, name
        numbers = [float(number) for number in re.findall(r"[\d.]+", told[0].partition("default: ")[2])]
        lora = [LORA_FACTOR * value] if name == "learning_rate" else []
        assert numbers == [value, *lora, *([full[name]] if full[name] != value else [])], name
    assert default_text("student") == "smollm2-135m" and default_text("teacher") == "builtin"
    assert not re.search(r"the recipe's(?! or|, or)", text)


def test_the_document_tells_them_too() -> None:
    text = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    rows = {
        name: (demo, full)
        for name, demo, full in re.findall(r"^\| `--([\w-]+)` \| (.*) \| (.*) \|$", text, re.MULTILINE)
    }
    demo, full = values("demo"), values("full")
    assert rows == {
        name.replace("_", "-"): tuple(
            f"{value:g}" + (f", with `--lora` {LORA_FACTOR * value:g}" if name == "learning_rate" else "")
            for value in (demo[name], full[name])
        )
        for name in demo
    }
