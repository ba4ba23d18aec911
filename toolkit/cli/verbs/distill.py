"""`toolkit distill`: a small model learns a teacher's reasoning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from toolkit.cli.options.command import AddCommand, Options, Result
from toolkit.cli.options.decoders import open_decoder
from toolkit.cli.options.shared import (
    add_problem_options,
    add_retry_option,
    add_unsafe_option,
    allow_unsafe_execution,
    reading_of,
)
from toolkit.cli.options.values import count_of, name_of, path_of, rate_of, seed_of, temperature_of
from toolkit.terminal import counted


def add_distill(add: AddCommand) -> None:
    parser = add("distill", distill, extra="distill", summary="teach a small model a teacher's reasoning")
    parser.add_argument(
        "--teacher",
        type=name_of,
        default="builtin",
        help="model to learn from, or an endpoint; default: %(default)s",
    )
    parser.add_argument("--student", type=name_of, default="smollm2-135m", help="model to train; default: %(default)s")
    parser.add_argument("--preset", choices=("demo", "full"), default="demo", help="recipe; default: %(default)s")
    add_problem_options(parser, "procedural problems")
    parser.add_argument("--traces", type=path_of, help="traces.jsonl to learn from; default: the teacher is asked")
    parser.add_argument("--per-family", type=count_of, help="procedural problems a family; default: the preset's")
    parser.add_argument("--samples", type=count_of, help="answers a problem; default: the preset's")
    parser.add_argument("--temperature", type=temperature_of, help="of the teacher's sampling; default: the preset's")
    parser.add_argument("--max-new-tokens", type=count_of, help="of the teacher's answers; default: the preset's")
    parser.add_argument("--max-tokens", type=count_of, help="of the longest example; default: the preset's")
    parser.add_argument("--per-problem", type=count_of, help="most examples of one problem; default: the preset's")
    parser.add_argument("--epochs", type=count_of, help="passes over the training set; default: the preset's")
    parser.add_argument("--learning-rate", type=rate_of, help="the highest one; default: the preset's")
    parser.add_argument("--lora", action="store_true", help="train low-rank adapters, then merge them")
    parser.add_argument("--seed", type=seed_of, help="default: the preset's")
    add_retry_option(parser)
    add_unsafe_option(parser)
    parser.add_argument("--out", type=path_of, required=True, help="run folder to write")


def distill(options: Options) -> Result:
    _check_distilling(options)

    from distill import pipeline
    from distill.teachers.outcomes import FAILED
    from toolkit.records import read_jsonl
    from toolkit.runs import read_manifest

    allow_unsafe_execution(options)
    recipe = pipeline.full if options.preset == "full" else pipeline.demo
    config = recipe(lora=options.lora, **_given(options, "epochs", "seed"))
    config = replace(
        config,
        sampling=replace(config.sampling, **_given(options, "temperature", "max_new_tokens")),
        train=replace(config.train, **_given(options, "learning_rate")),
        **_given(options, "per_family", "samples", "max_tokens", "per_problem"),
        **{name: getattr(options, name) for name in ("teacher", "student", "problems", "traces")},
        reading=reading_of(options),
    )
    folder = pipeline.distill(config, options.out, open_decoder, retry_failed=options.retry_failed)
    measured = (read_manifest(folder) or {})["measured"]
    text = f"the student is in {folder}; {_learned(measured)}"
    if failed := sum(1 for _ in read_jsonl(folder / FAILED)) if (folder / FAILED).is_file() else 0:
        text += f"; {counted(failed, 'request')} failed: toolkit traces show {folder} --failed"
    return Result(facts={"folder": str(folder), "failed": failed, **measured}, text=text)


def _check_distilling(options: Options) -> None:
    """Refuse what the options alone show to be wrong, before what trains is imported, which takes seconds."""
    from distill.problems.sources import check_place, check_traces
    from toolkit.runs import check_out
    from toolkit.sources.model_names import check_model, is_endpoint

    reading_of(options)
    check_out(options.out)
    if options.traces is not None:
        check_traces(options.traces, options.problems)
    if options.problems is not None:
        check_place(options.problems)
    if options.temperature is not None:
        from distill.teachers.job import check_samples

        check_samples(options.samples or 1, options.temperature)
    check_model(options.student)
    if not is_endpoint(options.teacher):
        check_model(options.teacher)


def _learned(measured: Mapping[str, Any]) -> str:
    """What a student learned, in one line, from its run's measured numbers."""
    if "train_updates" not in measured:
        return "an earlier version trained it, and counted less"
    text = (
        f"it learned from {counted(measured['trained_on'], 'trace')} in {counted(measured['train_updates'], 'update')} "
        f"({counted(measured['train_tokens'], 'token')}): loss {measured['train_first_loss']:.3f} → "
        f"{measured['train_final_loss']:.3f}"
    )
    if "train_validation_loss" in measured:
        text += (
            f", {measured['train_validation_loss']:.3f} on {counted(measured['validation'], 'trace')} "
            "of the validation split"
        )
    return (
        f"{text}; {measured['train_changed_tensors']} of its {measured['train_tensors']} "
        "tensors changed; it is the one "
        f"after update {measured['train_chosen_update']}, for {measured['train_chosen_by']}"
    )


def _given(options: Options, *names: str) -> dict[str, Any]:
    """The options that were given, by name; the others stay the preset's."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}
