"""Lists the shipped recipes, and shows one as it is written, with its sources and those of the recipes below it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from distill.recipes.distill_recipe import (
    SHIPPED,
    DistillRecipe,
    about,
    below,
    names,
    recipe_path,
    resolve_recipe,
    shipped_recipe,
)
from toolkit.figures.tables import columns


def listed_recipes() -> tuple[list[dict[str, Any]], str]:
    """Return the facts of each shipped recipe, and the same as a table."""
    facts = []
    for name in names():
        recipe = shipped_recipe(name)
        facts.append(
            {
                "name": name,
                "student": recipe.student,
                "trains": _trains(recipe),
                "max_tokens": recipe.max_tokens,
                "about": about(name),
            }
        )
    rows = [["recipe", "student", "trains", "tokens", "about"]]
    rows += [[str(value) for value in row.values()] for row in facts]
    show = "toolkit recipes NAME shows one with the source of each value; toolkit distill --recipe NAME runs it"
    return facts, f"{columns(rows, right=[3])}\n\n{show}"


def recipe_facts(name: str) -> dict[str, Any]:
    """Return all values of a recipe."""
    return {"recipe": name, "values": asdict(resolve_recipe(name).recipe)}


def recipe_source(name: str) -> str:
    """Return the text of a recipe, and of each recipe that it builds on."""
    resolve_recipe(name)  # a wrong one is not shown
    path: Path | None = recipe_path(name)
    texts = []
    while path is not None:
        title = path.stem if path.parent == SHIPPED else str(path)
        texts.append(f"# ── {title} ──\n{path.read_text(encoding='utf-8').rstrip()}")
        path = below(path)
    return "\n\n".join(texts)


def _trains(recipe: DistillRecipe) -> str:
    """Return what is trained, in a word."""
    train = recipe.train
    if not train.lora_rank:
        return "all weights"
    return f"{'QLoRA' if train.quantization else 'LoRA'} {train.lora_rank}"
