"""Prepares a run: `toolkit doctor` examines the machine, `toolkit pull` downloads a model, `toolkit recipes` lists how
students can be trained, and `toolkit plan` says what that takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.options.command import AddCommand, Options, Result
from toolkit.cli.options.scale import add_memory_options, recipe_changes
from toolkit.cli.options.shared import add_recipe_options
from toolkit.cli.options.values import add_flag, count_of, money_of, name_of, path_of
from toolkit.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from distill.planning.training_plan import Examples, TrainingPlan
    from distill.recipes.distill_recipe import DistillRecipe
    from toolkit.machine.doctor import Finding


GB = 1e9
REMEDY = (
    "train adapters (--lora), on weights of four bits (--quantization nf4), compute activations again "
    "(--gradient-checkpointing), or shorten rows (--set train.row_tokens=N, --set max_tokens=N); toolkit recipes lists "
    "recipes for GPUs of 8 GB and more"
)
MOST_EXAMPLES = 10**7
"""A plan holds the lengths of all."""


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
        from export.runtime.kernels.library import kernels_in_words

        return Finding(subject="kernels", found=kernels_in_words())
    except InputError as error:
        found, _, remedy = str(error).partition("; ")
        return Finding(subject="kernels", found=found, remedy=remedy)


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
    add_recipe_options(parser)
    add_flag(parser, "--lora", "train low-rank adapters where the recipe trains all weights")
    add_memory_options(parser)
    parser.add_argument(
        "--train", type=path_of, metavar="FILE", help="train.jsonl of a run or a curation, whose examples are counted"
    )
    parser.add_argument(
        "--examples", type=count_of, default=1000, help="how many examples there will be; default: %(default)s"
    )
    parser.add_argument(
        "--tokens", type=count_of, metavar="N", help="tokens of each example; default: the recipe's max_tokens"
    )
    parser.add_argument(
        "--device",
        type=name_of,
        metavar="GPU",
        help="plan for this GPU, such as 'RTX 4090' or 'H100', or for any GPU by its memory, such as 24GB, whose speed "
        "is not known then; default: this machine",
    )
    parser.add_argument(
        "--devices",
        type=count_of,
        default=1,
        metavar="N",
        help="GPUs that divide the student; each holds all of it if it is in nf4, or if another optimizer than adamw "
        "updates it; default: %(default)s",
    )
    parser.add_argument("--price-per-hour", type=money_of, metavar="P", help="what an hour of one device costs")


def plan(options: Options) -> Result:
    from distill.recipes.distill_recipe import resolve_recipe

    if options.devices > 1 and options.device is None:
        raise InputError(f"--devices {options.devices} is for GPUs; name which with --device")
    recipe = resolve_recipe(options.recipe, options.settings, recipe_changes(options), lora=options.lora).recipe
    _check_sizes(options, recipe)

    from distill.planning.devices import device
    from distill.planning.training_plan import plan_training, shape_of

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
    later = [name for name in ("logits", "rl") if getattr(recipe, name)]
    text = _text(found, student, where)
    if options.train is None:
        text += (
            f"\nplanned for {options.examples:,} examples of {options.tokens or recipe.max_tokens:,} tokens; give "
            "others by --examples and --tokens, or a run's own by --train"
        )
    if later:
        text += (
            f"\nthis is supervised training alone: what the recipe's {' and '.join(later)} take beside or after it (a "
            "teacher's memory, turns that the student writes) is not planned"
        )
    return Result(facts={"student": student, "where": where, **found.facts(), "not_planned": later}, text=text)


def _check_sizes(options: Options, recipe: DistillRecipe) -> None:
    if options.devices > recipe.train.batch_examples:
        raise InputError(
            f"a batch of {recipe.train.batch_examples} examples cannot be divided among {options.devices} devices; use "
            f"at most {recipe.train.batch_examples}, or raise train.batch_examples"
        )
    if (options.tokens or 0) > recipe.max_tokens:
        raise InputError(
            f"--tokens {options.tokens} exceeds the recipe's max_tokens ({recipe.max_tokens}), beyond which examples "
            "are left out; lower it, or raise that with --set max_tokens=N"
        )
    if options.examples > MOST_EXAMPLES:
        raise InputError(f"--examples {options.examples} must be at most {MOST_EXAMPLES:,}; plan for fewer")


def _check_context(config: PretrainedConfig, recipe: DistillRecipe) -> None:
    context = recipe.train.context_tokens or config.max_position_embeddings
    if recipe.max_tokens > context:
        raise InputError(
            f"the recipe's max_tokens ({recipe.max_tokens}) exceeds the student's context ({context}); lower it with "
            "--set max_tokens=N, or choose another student"
        )


def _examples(options: Options, student: str, recipe: DistillRecipe) -> Examples:
    from distill.planning.training_plan import counted_examples, equal_examples

    if options.train is not None:
        return counted_examples(Path(student), options.train)
    return equal_examples(options.examples, options.tokens or recipe.max_tokens)


def _text(found: TrainingPlan, student: str, where: str) -> str:
    from dataclasses import fields

    from toolkit.figures.tables import aligned_table

    trained = "all trained" if found.trained == found.parameters else f"{found.trained / 1e6:,.1f} million trained"
    parts = {part.name: getattr(found.footprint, part.name) for part in fields(found.footprint)}
    rows = [["memory", "GB"], *([name, f"{size / GB:,.2f}"] for name, size in parts.items() if size)]
    rows.append(["at its peak", f"{found.footprint.peak / GB:,.2f}"])
    rows.append(["there is", f"{found.available_bytes / GB:,.2f}"])
    verdict = "it fits" if found.fits else f"it does not fit: {REMEDY}"
    return (
        f"{student} ({found.parameters / 1e6:,.0f} million weights, {trained}) on {where}\n\n{aligned_table(rows)}\n\n"
        f"{verdict}\n{found.tokens:,} tokens{_time(found)}"
    )


def _time(found: TrainingPlan) -> str:
    from toolkit.progress import duration

    if found.tokens_per_s is not None and found.hours is not None:
        cost = "" if found.cost is None else f", at a cost of {found.cost:,.2f}"
        return f" at {found.tokens_per_s:,.0f} tokens/s: {duration(found.hours * 3600)}{cost}"
    end = f", fewer where {found.max_minutes:g} minutes end it before" if found.max_minutes else ""
    if found.rehearsal_bytes:
        return (
            f"{end}; how fast is not known, since a few steps to measure it would take "
            f"{found.rehearsal_bytes / GB:.1f} GB, more than is free; train adapters, or name a GPU with --device"
        )
    return f"{end}; how fast is not known, since no data sheet of this GPU is here"
