"""`toolkit distill`: teaches a small model a teacher's reasoning."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.cli.options.command import AddCommand, Options, Result
from toolkit.cli.options.decoders import open_decoder
from toolkit.cli.options.local import add_load_option, check_load_option, own_if_left_out
from toolkit.cli.options.scale import (
    add_scale_options,
    check_scale,
    check_training,
    memory_check,
    recipe_changes,
    trainer_of,
)
from toolkit.cli.options.shared import (
    add_problem_options,
    add_recipe_options,
    add_retry_option,
    add_unsafe_option,
    allow_unsafe_execution,
    reading_of,
)
from toolkit.cli.options.values import Parser, add_flag, count_of, name_of, path_of, rate_of, seed_of, temperature_of
from toolkit.errors import InputError
from toolkit.terminal import counted

if TYPE_CHECKING:
    from distill.recipes.distill_recipe import DistillRecipe, Resolved

RECIPES_OWN = "the recipe's"
"""The default of an option in the source of its help; the values take its place when the help is written."""
KEYS = (
    *("student", "teacher", "per_family", "samples", "temperature"),
    *("max_new_tokens", "max_tokens", "per_problem", "seed"),
)
"""Options that set the key of their name in the recipe."""
TRAIN_KEYS = ("epochs", "learning_rate")
"""Options that set the key of their name in its section `train`."""
RL_KEYS = ("learning_rate", "samples", "temperature", "max_new_tokens")
"""Options that with `--stage rl` set the key of their name in the section `rl`."""
RL_PLAIN_KEYS = ("student", "problems", "families", "per_family", "seed")
"""Keys outside of sections that count with `--stage rl`."""
NO_TEACHER = ("teacher", "load_in", "traces", "logits", "max_tokens", "per_problem", "epochs", "retry_failed")
"""Options that have no meaning with `--stage rl`."""


def add_distill(add: AddCommand) -> None:
    parser = add(
        "distill",
        distill,
        extra="distill",
        summary="teach a small model the reasoning of a large one: problems, traces, verdicts, training",
    )
    parser.before_help = _tell_recipes
    add_recipe_options(parser)
    parser.add_argument(
        "--teacher",
        type=name_of,
        help="model that answers: a folder, a known name, a hub id or an endpoint; default: the recipe's",
    )
    add_load_option(parser)
    parser.add_argument(
        "--student", type=name_of, help="model to train: a folder, a known name or a hub id; default: the recipe's"
    )
    add_problem_options(parser, "the recipe's, or procedural ones")
    parser.add_argument(
        "--traces",
        type=path_of,
        help="traces.jsonl, or the train.jsonl of toolkit traces curate, to learn from instead of asking the teacher",
    )
    parser.add_argument("--per-family", type=count_of, help="procedural problems of each family; default: the recipe's")
    parser.add_argument("--samples", type=count_of, help="answers to each problem; default: the recipe's")
    parser.add_argument(
        "--temperature", type=temperature_of, help="the teacher's sampling temperature; default: the recipe's"
    )
    parser.add_argument(
        "--max-new-tokens", type=count_of, help="most tokens of a teacher's answer; default: the recipe's"
    )
    parser.add_argument(
        "--max-tokens",
        type=count_of,
        help="most tokens of a training example; longer ones are left out; default: the recipe's",
    )
    parser.add_argument(
        "--per-problem", type=count_of, help="most training examples of one problem; default: the recipe's"
    )
    parser.add_argument(
        "--stage",
        choices=("rl",),
        help="rl: only reinforce --student on problems, by verified answers, without a teacher; default: learn from "
        "traces, and then what the sections logits and rl of the recipe say",
    )
    parser.add_argument("--epochs", type=count_of, help="passes over the training set; default: the recipe's")
    parser.add_argument(
        "--learning-rate", type=rate_of, help="highest learning rate of the schedule; default: the recipe's"
    )
    parser.add_argument(
        "--logits",
        choices=("stored", "teacher", "on-policy"),
        help="learn from the teacher's distribution over tokens: of candidates that were stored with traces, of the "
        "traces as the teacher scores them, or of turns that the student writes once it has learned from the traces; "
        "default: as the section logits of the recipe says",
    )
    add_flag(parser, "--lora", "train low-rank adapters where the recipe trains all weights")
    parser.add_argument(
        "--seed",
        type=seed_of,
        help="seed of the problems, the sampling and the training; under another one the teacher is asked anew; "
        "default: the recipe's",
    )
    add_scale_options(parser)
    add_retry_option(parser)
    add_unsafe_option(parser)
    parser.add_argument("--out", type=path_of, required=True, help="run folder to write")


def _tell_recipes(parser: Parser) -> None:
    """Let the help say which values the recipes have; they are of the stage, which no other command's help imports."""
    from distill.recipes.told_defaults import default_text

    for action in parser._actions:
        if action.help and action.help.endswith(RECIPES_OWN):
            action.help = action.help.replace(RECIPES_OWN, default_text(action.dest))


def distill(options: Options) -> Result:
    """Distil; of several processes that torchrun started, the first one does, and the others train with it."""
    resolved = _resolve(options)
    _check_distilling(options, resolved.recipe)
    if options.stage == "rl":
        return _reinforce(options, resolved)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return _distill(options, resolved)
    from distill.launching.torchrun import follow, others_waiting
    from toolkit.runs import process_rank

    if process_rank():
        try:
            follow()
        except KeyboardInterrupt:
            raise SystemExit(130) from None  # the first process says so
        raise SystemExit(0)
    with others_waiting():
        return _distill(options, resolved)


def _distill(options: Options, resolved: Resolved) -> Result:
    from distill import pipeline
    from distill.recipes.distill_recipe import SAMPLING
    from toolkit.figures.ledger import FAILED
    from toolkit.generation.generate import check_samples
    from toolkit.records import read_jsonl
    from toolkit.runs import read_manifest
    from toolkit.sources.model_names import is_endpoint, resolve

    allow_unsafe_execution(options)
    config = replace(
        pipeline.configured(resolved.recipe),
        **{name: getattr(options, name) for name in ("problems", "traces")},
        reading=reading_of(options),
    )
    alone = "reinforcement (rl)" if config.rl else ""
    alone = f"distillation by logits ({config.logits.source})" if config.logits else alone
    check_training(options, config.train, alone=alone)
    if config.traces is None and not is_endpoint(config.teacher):
        asked = {name: getattr(config.sampling, name) for name in SAMPLING if name in resolved.chosen}
        own = own_if_left_out(asked, config.teacher, resolve(config.teacher))
        config = replace(config, sampling=replace(config.sampling, **own))
        check_samples(config.samples, config.sampling.temperature, config.sampling.top_k)
    opening = (partial(open_decoder, load_in=options.load_in), f"load-in: {options.load_in}")
    folder = pipeline.distill(
        config,
        options.out,
        *(opening if options.load_in else (open_decoder,)),
        retry_failed=options.retry_failed,
        train=trainer_of(options),
        check_memory=memory_check(options, config.train, max_tokens=config.max_tokens),
    )
    measured = (read_manifest(folder) or {})["measured"]
    text = f"the student is in {folder}; {_learned(measured)}"
    if failed := sum(1 for _ in read_jsonl(folder / FAILED)) if (folder / FAILED).is_file() else 0:
        text += f"; {counted(failed, 'request')} failed: toolkit traces show {folder} --failed"
    return Result(facts={"folder": str(folder), "failed": failed, **measured}, text=text)


def _reinforce(options: Options, resolved: Resolved) -> Result:
    from distill.pipeline import configured
    from distill.reinforced import reinforce
    from toolkit.runs import read_manifest

    allow_unsafe_execution(options)
    config = replace(configured(resolved.recipe), problems=options.problems, reading=reading_of(options))
    check_training(options, config.train, alone="reinforcement (rl)")
    check_memory = memory_check(options, config.train, max_tokens=None)
    measured = (read_manifest(reinforce(config, options.out, check_memory)) or {})["measured"]
    text = (
        f"the student is in {options.out}; it learned{_reinforced(measured)}; {measured['rl_changed_tensors']} of its "
        f"{measured['rl_tensors']} tensors changed"
    )
    return Result(facts={"folder": str(options.out), **measured}, text=text)


def _reinforced(measured: Mapping[str, Any]) -> str:
    """Describe what a student learned by reinforcement."""
    from toolkit.figures.tables import percent

    return (
        f" from {counted(measured['rl_tokens'], 'token')} of its own turns in "
        f"{counted(measured['rl_updates'], 'update')} by verified answers: {percent(measured['rl_first_accuracy'])} "
        f"→ {percent(measured['rl_final_accuracy'])} of them right"
    )


def _resolve(options: Options) -> Resolved:
    """Return the recipe with what the options say, and let what they leave open be as the recipe says."""
    from distill.recipes.distill_recipe import resolve_recipe

    alone = options.stage == "rl"
    if alone:
        _refuse_teacher(options)
    given = {name: getattr(options, name) for name in KEYS if not (alone and name in RL_KEYS)}
    given |= {f"train.{name}": getattr(options, name) for name in TRAIN_KEYS if not (alone and name in RL_KEYS)}
    given |= {f"rl.{name}": getattr(options, name) for name in RL_KEYS if alone}
    given["logits.source"] = options.logits and options.logits.replace("-", "_")
    given = {name: value for name, value in given.items() if value is not None} | recipe_changes(options)
    resolved = resolve_recipe(options.recipe, options.settings, given, lora=options.lora, reinforced=alone)
    if alone:  # whatever the recipe says of them
        resolved = replace(resolved, recipe=replace(resolved.recipe, teacher="builtin", traces="", logits=None))
    recipe = resolved.recipe
    options.traces = options.traces or (Path(recipe.traces) if recipe.traces else None)
    if not recipe.teacher:
        if options.traces is None:
            raise InputError(
                f"the recipe {options.recipe} names no teacher; give --teacher, or --traces of one that has answered"
            )
        resolved = replace(resolved, recipe=replace(recipe, teacher="builtin"))  # which is not asked
    if options.problems is None and recipe.problems:
        options.problems = Path(recipe.problems)
        for name in ("question_field", "answer_field"):
            setattr(options, name, getattr(options, name) or getattr(recipe.reading, name))
        options.conflicts = recipe.reading.conflicts if options.conflicts == "refuse" else options.conflicts
    return resolved


def _refuse_teacher(options: Options) -> None:
    for name in NO_TEACHER:
        if getattr(options, name):
            raise InputError(
                f"--{name.replace('_', '-')} is for learning from a teacher, and --stage rl asks none; leave it out"
            )
    for setting in options.settings:
        _refuse_idle(setting.partition("=")[0].strip())


def _refuse_idle(key: str) -> None:
    """Raise `InputError` for a key of `--set` that nothing reads with `--stage rl`."""
    from distill.recipes.distill_recipe import KNOWN
    from distill.reinforcement.rl_config import HEEDED

    section, dot, name = key.rpartition(".")
    heeded = section in ("rl", "reading") or (section == "train" and name in HEEDED)
    if key in KNOWN and not heeded and (dot or name not in RL_PLAIN_KEYS):
        remedy = f"set rl.{name}" if f"rl.{name}" in KNOWN else "leave it out"
        raise InputError(f"--set {key} has no effect with --stage rl; {remedy}")


def _check_distilling(options: Options, recipe: DistillRecipe) -> None:
    """Refuse what the options alone show to be wrong before importing the training code, which takes seconds."""
    from distill.problems.sources import check_place, check_traces
    from toolkit.generation.generate import check_samples
    from toolkit.runs import check_out
    from toolkit.sources.model_names import check_model, is_endpoint

    reading_of(options)
    check_scale(options)
    check_load_option(options, recipe.teacher)
    check_out(options.out)
    if options.traces is not None:
        check_traces(options.traces, options.problems)
    if options.problems is not None:
        check_place(options.problems)
    check_samples(recipe.samples, recipe.temperature, recipe.top_k)
    check_model(recipe.student)
    if not is_endpoint(recipe.teacher):
        check_model(recipe.teacher)


def _learned(measured: Mapping[str, Any]) -> str:
    """Describe in one line what a student learned, from its run's measured numbers."""
    if "train_updates" not in measured:
        return "it was trained by an earlier version, which recorded fewer figures"
    trained, validation = measured["trained_on"], measured.get("validation", 0)
    trained = round(trained * min(measured.get("train_epochs", 1.0), 1.0))  # a run may end within its first epoch
    traces = (
        f"{trained} of the {counted(trained + validation, 'trace')} kept" if validation else counted(trained, "trace")
    )
    text = (
        f"it learned from {traces} in {counted(measured['train_updates'], 'update')} "
        f"({counted(measured['train_tokens'], 'token')}): loss {measured['train_first_loss']:.3f} → "
        f"{measured['train_final_loss']:.3f}"
    )
    if "train_validation_loss" in measured:
        text += f", and {measured['train_validation_loss']:.3f} on the {validation} of the validation split"
    if "logits_updates" in measured:
        text += (
            f", then from {counted(measured['logits_tokens'], 'token')} of its own turns in "
            f"{counted(measured['logits_updates'], 'update')}: loss {measured['logits_first_loss']:.3f} → "
            f"{measured['logits_final_loss']:.3f}"
        )
    if "rl_updates" in measured:
        text += f", then{_reinforced(measured)}"
    return (
        f"{text}; {measured['train_changed_tensors']} of its {measured['train_tensors']} tensors changed; "
        f"its weights are those after update {measured['train_chosen_update']} ({measured['train_chosen_by']})"
    )
