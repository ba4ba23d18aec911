"""`toolkit eval`: measures models on held-out problems."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.options.command import AddCommand, Options, Result
from toolkit.cli.options.decoders import open_decoder
from toolkit.cli.options.local import own_or_given_sampling
from toolkit.cli.options.shared import (
    OWN_OR,
    add_cache_options,
    add_problem_options,
    add_sampling_options,
    add_unsafe_option,
    allow_unsafe_execution,
    decoder_of,
    reading_of,
)
from toolkit.cli.options.values import add_flag, name_of, path_of
from toolkit.errors import InputError
from toolkit.terminal import say

if TYPE_CHECKING:
    from toolkit.generation.generate import Sampling
    from toolkit.runs import Stage

MOST_OF_A_NAME = 60
"""The most characters of each name in the name of a folder."""


def add_eval(add: AddCommand) -> None:
    evaluation = add("eval", evaluate_models, extra="distill", summary="measure a model on held-out problems")
    evaluation.add_argument(
        "model",
        type=name_of,
        help="model to measure: a folder (torch or exported), known name, hub id or http(s)://…/v1 endpoint",
    )
    evaluation.add_argument(
        "--against",
        type=name_of,
        nargs="+",
        action="extend",
        default=[],
        metavar="OTHER",
        help="models to measure on the same problems and compare with it",
    )
    add_problem_options(evaluation, "the ledger's problems")
    evaluation.add_argument(
        "--split",
        choices=("test", "validation", "train", "all"),
        help="split of --problems to ask; default: the data set's own test split, else all problems",
    )
    add_flag(
        evaluation,
        "--include-trained",
        "also ask problems that the model was trained on; default: they are left out, and counted",
    )
    add_sampling_options(evaluation, temperature=f"0; with several --samples, {OWN_OR.format(0.6)}")
    add_cache_options(evaluation)
    add_unsafe_option(evaluation)
    evaluation.add_argument(
        "--out",
        type=path_of,
        help="run folder to write; default: a folder in runs/eval (with --against in runs/compare), named after the "
        "model, the problems and a digest of everything that is asked",
    )


def evaluate_models(options: Options) -> Result:
    from distill.evaluation.compare import COMPARISON_MD, compare_models, comparison_table, names_of
    from distill.evaluation.evaluate import EvalConfig, evaluate, stage_of
    from distill.problems.families import ledger_problems
    from distill.problems.problem_set import read_problems
    from distill.problems.splits import FEW_HELD_OUT, HOLD_OUT_MORE
    from distill.teachers.respondent import ModelFolder, find_respondent
    from distill.teachers.trace_store import find_teacher
    from distill.trained_on import choose, trained_questions
    from toolkit.figures.ledger import build_ledger, ledger_table
    from toolkit.runs import check_out

    allow_unsafe_execution(options)
    decoder_options = decoder_of(options)
    reading = reading_of(options)
    if options.problems is None and (options.split or options.include_trained):
        raise InputError(
            "--split and --include-trained choose among your own problems; give --problems (the ledger's problems are "
            "all of the test split, which no student is trained on)"
        )
    if options.out and not options.against:
        check_out(options.out)
    given = read_problems(options.problems, reading) if options.problems else []
    models = [find_teacher(options.model, options.out or Path("runs/eval/model"), *decoder_options)]
    models += [find_respondent(model, open_decoder) for model in options.against]
    sampling = _sampling(options, models[0].folder if isinstance(models[0], ModelFolder) else None)
    config = EvalConfig(sampling=sampling, samples=options.samples, batch_size=options.batch_size)
    if options.problems is None:
        problems, asked, note, split = ledger_problems(), {}, "", "all"
    else:
        known = {
            name: trained_questions(model.folder) if isinstance(model, ModelFolder) else None
            for name, model in zip(names_of(models), models, strict=True)
        }
        asking = choose(given, options.split, known, include_trained=options.include_trained)
        say(asking.note())
        if len(asking.problems) < FEW_HELD_OUT:
            say(f"asked: so few problems measure next to nothing; to hold out more, {HOLD_OUT_MORE}, and distill again")
        problems, asked, note, split = asking.problems, asking.facts(), f"\n\n{asking.note()}", asking.split
    if options.against:
        out = options.out or _out("compare", stage_of(problems, config), _problems_name(options, split) or "ledger")
        comparison = compare_models(models, problems, config, out, asked)
        text = f"{comparison_table(comparison)}{note}\n\nas Markdown: {out / COMPARISON_MD}"
        return Result(facts={"folder": str(out), **comparison.to_dict()}, text=text)
    (model,) = models
    stage = stage_of(problems, config, model=model.digest)
    out = options.out or _out("eval", stage, _model_name(options.model, model.name), _problems_name(options, split))
    names = {"problems": str(options.problems or "the ledger's problems")}
    evaluation = evaluate(model, problems, config, out, asked, names)
    text = f"{ledger_table(build_ledger({model.name: out}))}{note}\n\ntraces and verdicts are in {out}"
    return Result(facts={"folder": str(out), **evaluation.to_dict()}, text=text)


def _sampling(options: Options, folder: Path | None) -> Sampling:
    """Return the sampling: a single sample is greedy, several are drawn as the model's authors say, unless the options
    say otherwise. Models that it is compared with are sampled in the same way."""
    if options.temperature is None and options.samples > 1:
        return own_or_given_sampling(options, options.model, folder)
    from toolkit.generation.generate import Sampling

    temperature = options.temperature or 0.0
    return Sampling(temperature=temperature, max_new_tokens=options.max_new_tokens, seed=options.seed)


def _out(kind: str, stage: Stage, *names: str) -> Path:
    """Return the folder to write where none is named: names for a person, and a digest of what is asked, so that the
    same evaluation finds its folder again and no other does."""
    from distill.teachers.respondent import folder_name

    digest = hashlib.sha256(json.dumps(stage.key(), sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs") / kind / "-".join([*(folder_name(name)[:MOST_OF_A_NAME] for name in names if name), digest])


def _model_name(argument: str, name: str) -> str:
    """Name a model by the last two parts of its path, since many students' folders have the same name."""
    from toolkit.sources.model_names import is_endpoint

    if is_endpoint(argument):
        return name
    place = Path(argument)
    return " ".join(place.resolve().parts[-2:]) if place.exists() else argument


def _problems_name(options: Options, split: str) -> str:
    """Name the user's problems and their split; empty for the ledger's problems."""
    if options.problems is None:
        return ""
    place: Path = options.problems.resolve() if options.problems.exists() else options.problems
    return place.name.partition(".")[0] + ("" if split == "all" else f" {split}")
