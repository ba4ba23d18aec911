"""Tells a person what an option is if it is not given, for the help of the command line."""

from __future__ import annotations

from distill.recipes.distill_recipe import DEFAULT, LORA_FACTOR, shipped_recipe

TOLD = (DEFAULT, "full")
"""The recipes whose values the help tells: those of a machine without a GPU."""
OPTIONS = {"epochs": "train.epochs", "learning_rate": "train.learning_rate"}
"""Options whose key in a recipe is not their own name."""


def default_text(option: str) -> str:
    """Return an option's default: the value of `demo`, and that of `full` where it differs."""
    values = {name: _text(_value(name, option)) for name in TOLD}
    text = values[DEFAULT]
    if option == "learning_rate":
        text += f", or {LORA_FACTOR * float(_value(DEFAULT, option)):g} with --lora"
    others = [f"{value} with --recipe {name}" for name, value in values.items() if value != values[DEFAULT]]
    return ", or ".join([text, *others])


def _value(name: str, option: str) -> str | float:
    value = shipped_recipe(name)
    for part in OPTIONS.get(option, option).split("."):
        value = getattr(value, part)
    assert isinstance(value, (str, int, float))
    return value


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"
