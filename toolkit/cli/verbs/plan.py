"""`toolkit plan`: says what a training run takes before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.options.command import AddCommand, Options, Result
from toolkit.cli.options.values import add_flag, count_of, money_of, name_of, path_of
from toolkit.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from distill.planning.plan import Examples, TrainingPlan
    from distill.recipes.distill_recipe import DistillRecipe

GB = 1e9


def add_plan(add: AddCommand) -> None:
    parser = add(
        "plan",
        plan,
        extra="distill",
        summary="say what training a student takes here or on GPUs: memory by part, tokens/s, hours, cost",
    )
    parser.add_argument(
        "student",
        type=name_of,
        nargs="?",
        help="model to train: a folder, a known name or a hub id; default: the recipe's",
    )
    parser.add_argument(
        "--recipe",
        type=name_of,
        default="demo",
        metavar="NAME|FILE",
        help="how it is trained: a recipe that toolkit recipes lists, or a YAML file; default: %(default)s",
    )
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="another value of the recipe"
    )
    add_flag(parser, "--lora", "train low-rank adapters where the recipe trains all weights")
    parser.add_argument(
        "--train", type=path_of, metavar="FILE", help="train.jsonl of a run or a curation, whose examples are counted"
    )
    parser.add_argument(
        "--examples", type=count_of, default=1000, help="how many examples there will be; default: %(default)s"
    )
    parser.add_argument(
        "--tokens", type=count_of, metavar="N", help="tokens of each example; default: the recipe's max_tokens"
    )
    parser.add_argument("--device", type=name_of, metavar="GPU", help="plan for this GPU, such as 'RTX 4090' or 'H100'")
    parser.add_argument(
        "--devices", type=count_of, default=1, metavar="N", help="GPUs that divide the student; default: %(default)s"
    )
    parser.add_argument("--price-per-hour", type=money_of, metavar="P", help="what an hour of one device costs")


def plan(options: Options) -> Result:
    from distill.recipes.distill_recipe import resolve_recipe

    if options.devices > 1 and options.device is None:
        raise InputError(f"--devices {options.devices} is for GPUs; name which with --device")
    recipe = resolve_recipe(options.recipe, options.settings, lora=options.lora).recipe

    from distill.planning.devices import device
    from distill.planning.plan import plan_training, shape_of

    gpu = device(options.device) if options.device else None
    student = options.student or recipe.student
    config = shape_of(student)
    _check_context(config, recipe)
    found = plan_training(
        config,
        recipe.train,
        _examples(options, student, recipe),
        gpu=gpu,
        devices=options.devices,
        price_per_hour=options.price_per_hour,
    )
    where = f"{options.devices} × {gpu.name}" if gpu and options.devices > 1 else gpu.name if gpu else "this machine"
    return Result(facts={"student": student, "where": where, **found.facts()}, text=_text(found, student, where))


def _check_context(config: PretrainedConfig, recipe: DistillRecipe) -> None:
    context = recipe.train.context_tokens or config.max_position_embeddings
    if recipe.max_tokens > context:
        raise InputError(
            f"the recipe's max_tokens ({recipe.max_tokens}) exceeds the student's context ({context}); lower it with "
            "--set max_tokens=N, or choose another student"
        )


def _examples(options: Options, student: str, recipe: DistillRecipe) -> Examples:
    from distill.planning.plan import counted_examples, equal_examples

    if options.train is not None:
        return counted_examples(Path(student), options.train)
    return equal_examples(options.examples, options.tokens or recipe.max_tokens)


def _text(found: TrainingPlan, student: str, where: str) -> str:
    from dataclasses import fields

    from toolkit.figures.tables import aligned_table
    from toolkit.progress import duration

    trained = "all trained" if found.trained >= found.parameters else f"{found.trained / 1e6:,.1f} million trained"
    parts = {part.name: getattr(found.footprint, part.name) for part in fields(found.footprint)}
    rows = [["memory", "GB"], *([name, f"{size / GB:,.2f}"] for name, size in parts.items() if size)]
    rows.append(["at its peak", f"{found.footprint.peak / GB:,.2f}"])
    rows.append(["there is", f"{found.available_bytes / GB:,.2f}"])
    verdict = "it fits" if found.fits else "it does not fit: try adapters, nf4, checkpointing, or shorter rows"
    cost = "" if found.cost is None else f", at a cost of {found.cost:,.2f}"
    return (
        f"{student} ({found.parameters / 1e6:,.0f} million weights, {trained}) on {where}\n\n{aligned_table(rows)}\n\n"
        f"{verdict}\n{found.tokens:,} tokens at {found.tokens_per_s:,.0f} tokens/s: "
        f"{duration(found.hours * 3600)}{cost}"
    )
