"""`toolkit distill`: teaches a small model a teacher's reasoning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from toolkit.cli.options.command import AddCommand, Options, Result
from toolkit.cli.options.decoders import open_decoder
from toolkit.cli.options.local import add_load_option, check_load_option, own_if_left_out
from toolkit.cli.options.shared import (
    add_problem_options,
    add_retry_option,
    add_teacher_option,
    add_unsafe_option,
    allow_unsafe_execution,
    reading_of,
)
from toolkit.cli.options.values import Parser, add_flag, count_of, name_of, path_of, rate_of, seed_of, temperature_of
from toolkit.terminal import counted

PRESETS_OWN = "the preset's"
"""The default of an option in the source of its help; the values take its place when the help is written."""


def add_distill(add: AddCommand) -> None:
    parser = add(
        "distill",
        distill,
        extra="distill",
        summary="teach a small model the reasoning of a large one: problems, traces, verdicts, training",
    )
    parser.before_help = _tell_presets
    add_teacher_option(parser)
    add_load_option(parser)
    parser.add_argument(
        "--student",
        type=name_of,
        default="smollm2-135m",
        help="model to train: a folder, a known name or a hub id; default: %(default)s",
    )
    parser.add_argument(
        "--preset",
        choices=("demo", "full"),
        default="demo",
        help="recipe that the other defaults come from; default: %(default)s",
    )
    add_problem_options(parser, "procedural problems")
    parser.add_argument(
        "--traces",
        type=path_of,
        help="traces.jsonl, or the train.jsonl of toolkit traces curate, to learn from instead of asking the teacher",
    )
    parser.add_argument("--per-family", type=count_of, help="procedural problems of each family; default: the preset's")
    parser.add_argument("--samples", type=count_of, help="answers to each problem; default: the preset's")
    parser.add_argument(
        "--temperature", type=temperature_of, help="the teacher's sampling temperature; default: the preset's"
    )
    parser.add_argument(
        "--max-new-tokens", type=count_of, help="most tokens of a teacher's answer; default: the preset's"
    )
    parser.add_argument(
        "--max-tokens",
        type=count_of,
        help="most tokens of a training example; longer ones are left out; default: the preset's",
    )
    parser.add_argument(
        "--per-problem", type=count_of, help="most training examples of one problem; default: the preset's"
    )
    parser.add_argument("--epochs", type=count_of, help="passes over the training set; default: the preset's")
    parser.add_argument(
        "--learning-rate", type=rate_of, help="highest learning rate of the schedule; default: the preset's"
    )
    parser.add_argument(
        "--logits",
        choices=("stored", "teacher", "on-policy"),
        help="learn from the teacher's distribution over tokens: of candidates that were stored with traces, of the "
        "traces as the teacher scores them, or of turns that the student writes once it has learned from the traces; "
        "default: from the traces' tokens alone",
    )
    add_flag(parser, "--lora", "train low-rank adapters and merge them into the student")
    parser.add_argument(
        "--seed",
        type=seed_of,
        help="seed of the problems, the sampling and the training; under another one the teacher is asked anew; "
        "default: the preset's",
    )
    add_retry_option(parser)
    add_unsafe_option(parser)
    parser.add_argument("--out", type=path_of, required=True, help="run folder to write")


def _tell_presets(parser: Parser) -> None:
    """Let the help say which values the presets have; they are of the stage, which no other command's help imports."""
    from distill.distill_presets import default_text

    for action in parser._actions:
        if action.help and PRESETS_OWN in action.help:
            action.help = action.help.replace(PRESETS_OWN, default_text(action.dest))


def distill(options: Options) -> Result:
    _check_distilling(options)

    from distill import pipeline
    from distill.collecting.job import check_samples
    from distill.collecting.outcomes import FAILED
    from distill.distill_presets import LORA_LEARNING_RATE, PRESETS
    from distill.logits.logits_config import USUAL
    from toolkit.records import read_jsonl
    from toolkit.runs import read_manifest
    from toolkit.sources.model_names import is_endpoint, resolve

    allow_unsafe_execution(options)
    preset = PRESETS[options.preset]
    if options.lora:
        preset = replace(preset, learning_rate=LORA_LEARNING_RATE)
    given = {name: value for name in vars(preset) if (value := getattr(options, name, None)) is not None}
    config = replace(
        pipeline.recipe(replace(preset, **given), lora=options.lora),
        **{name: getattr(options, name) for name in ("teacher", "student", "problems", "traces")},
        reading=reading_of(options),
        logits=USUAL[options.logits.replace("-", "_")] if options.logits else None,
    )
    if options.traces is None and not is_endpoint(options.teacher):
        asked = {} if options.temperature is None else {"temperature": options.temperature}
        own = own_if_left_out(asked, options.teacher, resolve(options.teacher))
        config = replace(config, sampling=replace(config.sampling, **own))
        check_samples(config.samples, config.sampling.temperature)
    opening = (partial(open_decoder, load_in=options.load_in), f"load-in: {options.load_in}")
    folder = pipeline.distill(
        config,
        options.out,
        *(opening if options.load_in else (open_decoder,)),
        retry_failed=options.retry_failed,
    )
    measured = (read_manifest(folder) or {})["measured"]
    text = f"the student is in {folder}; {_learned(measured)}"
    if failed := sum(1 for _ in read_jsonl(folder / FAILED)) if (folder / FAILED).is_file() else 0:
        text += f"; {counted(failed, 'request')} failed: toolkit traces show {folder} --failed"
    return Result(facts={"folder": str(folder), "failed": failed, **measured}, text=text)


def _check_distilling(options: Options) -> None:
    """Refuse what the options alone show to be wrong before importing the training code, which takes seconds."""
    from distill.problems.sources import check_place, check_traces
    from toolkit.runs import check_out
    from toolkit.sources.model_names import check_model, is_endpoint

    reading_of(options)
    check_load_option(options, options.teacher)
    check_out(options.out)
    if options.traces is not None:
        check_traces(options.traces, options.problems)
    if options.problems is not None:
        check_place(options.problems)
    if options.temperature is not None:
        from distill.collecting.job import check_samples

        check_samples(options.samples or 1, options.temperature)
    check_model(options.student)
    if not is_endpoint(options.teacher):
        check_model(options.teacher)


def _learned(measured: Mapping[str, Any]) -> str:
    """Describe in one line what a student learned, from its run's measured numbers."""
    if "train_updates" not in measured:
        return "it was trained by an earlier version, which recorded fewer figures"
    trained, validation = measured["trained_on"], measured.get("validation", 0)
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
    return (
        f"{text}; {measured['train_changed_tensors']} of its {measured['train_tensors']} tensors changed; "
        f"its weights are those after update {measured['train_chosen_update']} ({measured['train_chosen_by']})"
    )
