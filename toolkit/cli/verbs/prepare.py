"""Prepares a run: `toolkit doctor` examines the machine, `toolkit pull` downloads a model, `toolkit recipes` lists how
students can be trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.cli.options.command import AddCommand, Options, Result
from toolkit.cli.options.values import name_of, path_of
from toolkit.errors import InputError

if TYPE_CHECKING:
    from toolkit.machine.doctor import Finding


def add_doctor(add: AddCommand) -> None:
    add("doctor", doctor, extra="all", summary="say what this machine has, and what each command still needs")


def doctor(options: Options) -> Result:
    from toolkit.machine.doctor import examine, to_facts, to_text

    findings = [*examine(), _kernels()]
    return Result(facts=to_facts(findings), text=to_text(findings))


def _kernels() -> Finding:
    """Find out which kernels run an exported folder here, and why."""
    from toolkit.machine.doctor import Finding

    try:
        from export.runtime.kernels.library import VARIABLE, kernels_in_words

        return Finding(subject="kernels", found=kernels_in_words())
    except InputError as error:
        return Finding(subject="kernels", found=str(error), remedy=f"unset {VARIABLE}")


def add_pull(add: AddCommand) -> None:
    parser = add("pull", pull, extra="distill", summary="download a model, once, into the cache or a folder")
    parser.add_argument(
        "model", type=name_of, help="model to download: a known name (smollm2-135m) or a hub id (owner/name)"
    )
    parser.add_argument("--out", type=path_of, help="folder to write; default: the cache")


def pull(options: Options) -> Result:
    from toolkit.runs import folder_bytes
    from toolkit.sources import model_names

    folder = model_names.pull(options.model, options.out)
    size_bytes = folder_bytes(folder)
    facts = {"model": options.model, "folder": str(folder), "bytes": size_bytes}
    return Result(facts=facts, text=f"{options.model} is in {folder} ({size_bytes / 1e6:.0f} MB)")


def add_recipes(add: AddCommand) -> None:
    parser = add("recipes", recipes, extra="distill", summary="list the recipes of toolkit distill, or show one")
    parser.add_argument(
        "recipe", nargs="?", type=name_of, help="recipe to show, with its sources: a name or a file; default: list all"
    )


def recipes(options: Options) -> Result:
    from distill.recipes.listing import listed_recipes, recipe_facts, recipe_source

    if options.recipe is None:
        facts, text = listed_recipes()
        return Result(facts={"recipes": facts}, text=text)
    return Result(facts=recipe_facts(options.recipe), text=recipe_source(options.recipe))
