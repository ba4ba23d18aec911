"""What the commands from problems to students do: teach, traces, distill, eval. The others are `toolkit.cli.commands`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.cli.commands import Options, Result
from toolkit.cli.decoders import open_decoder
from toolkit.errors import InputError
from toolkit.terminal import counted, say

if TYPE_CHECKING:
    from distill.problems.own_form import Reading
    from toolkit.generation.generate import Decoder, Sampling
    from toolkit.records import Problem
    from toolkit.runs import Stage

MOST_OF_A_NAME = 60
"""Characters, of a folder's name that may have several."""


def teach(options: Options) -> Result:
    from distill.teach.stages import STAGES
    from toolkit.sources.model_names import check_model, is_endpoint, resolve

    _allow_unsafe(options)
    if options.start and not options.stage:
        raise InputError(f"--start ({options.start}) must name the model of one stage; add --stage, or give --base")
    if options.stage and options.stage not in STAGES:
        raise InputError(f"--stage ({options.stage}) must be one of {', '.join(STAGES)}")
    if options.seeds > 1 and (options.stage or options.zero):
        raise InputError(f"--seeds ({options.seeds}) must be 1 with --stage or --zero; leave one of them out")
    for model in (options.base, options.start, options.judge):
        if model and not (model == options.judge and is_endpoint(model)):
            check_model(model)

    from distill.reinforcement.judge import check_judge
    from distill.teach import teach as stages
    from distill.teach.teacher_recipe import PRESETS

    config = replace(PRESETS[options.preset](), seed=options.seed, judge=options.judge or "")
    if options.judge and not options.zero and options.stage in (None, "align_rl"):
        check_judge(options.judge)
    base, start = (resolve(model) if model else None for model in (options.base, options.start))
    if options.stage:
        folder = stages.run_stage(options.stage, config, options.out, base=base, start=start)
        return Result(facts={"folder": str(folder)}, text=f"stage {options.stage} is in {folder}")
    if options.zero:
        folder = stages.teach_zero(config, options.out, base=base)
        return Result(facts={"folder": str(folder)}, text=f"R1-Zero is in {folder}")
    folder = stages.teach(config, options.out, base=base, seeds=options.seeds)
    return Result(facts={"folder": str(folder)}, text=f"the teacher is in {folder}; its README.md has the figures")


def traces(options: Options) -> Result:
    from distill.evaluation.evaluate import problems_digest
    from distill.problems.families import make_problems
    from distill.problems.problem_set import read_problems
    from distill.teachers.outcomes import FAILED
    from distill.teachers.trace_store import ASKED, find_teacher, gather
    from distill.teachers.traces import check_samples
    from toolkit.figures.ledger import PROBLEMS
    from toolkit.records import write_records
    from toolkit.runs import Stage, check_out, finish, is_complete, partial_folder, read_manifest

    out, sampling, reading = options.out, _sampling(options), _reading(options)
    decoder_options = _decoder_options(options)
    check_samples(options.samples, options.temperature)
    check_out(out)
    problems = _without_own_test(read_problems(options.problems, reading)) if options.problems else []
    teacher = find_teacher(options.teacher, out, *decoder_options)
    if options.problems is None:
        problems = make_problems("train", options.per_family, options.seed)
    stage = Stage(
        name="traces",
        config={"samples": options.samples, **asdict(sampling)},
        inputs={"teacher": teacher.digest, "problems": problems_digest(problems)},
    )
    complete = is_complete(out, stage)
    if not complete or (options.retry_failed and (read_manifest(out) or {})["measured"].get("failed")):
        folder = partial_folder(out, stage, cheap=(PROBLEMS, ASKED, FAILED))
        write_records(folder / PROBLEMS, problems)
        gathered = gather(
            teacher,
            problems,
            sampling,
            samples=options.samples,
            batch_size=options.batch_size,
            out=out,
            folder=folder,
            retry_failed=options.retry_failed,
        )
        finish(folder, out, stage, gathered.counts(), anew=complete)
    measured = (read_manifest(out) or {})["measured"]
    whole = f" ({measured['whole']} of them whole)" if "whole" in measured else ""
    are = "is" if measured["traces"] == 1 else "are"
    text = f"{counted(measured['traces'], 'trace')}{whole} {are} in {out}"
    if measured.get("failed"):
        text += f"; {counted(measured['failed'], 'request')} failed: toolkit traces show {out} --failed"
    return Result(facts={"folder": str(out), **measured}, text=text)


def traces_show(options: Options) -> Result:
    from distill.trace_listing import listing, table

    rows = listing(options.run, options.what)
    return Result(facts={"run": str(options.run), "traces": [row.to_dict() for row in rows]}, text=table(rows))


def distill(options: Options) -> Result:
    _check_distilling(options)

    from distill import pipeline
    from distill.teachers.outcomes import FAILED
    from toolkit.records import read_jsonl
    from toolkit.runs import read_manifest

    _allow_unsafe(options)
    recipe = pipeline.full if options.preset == "full" else pipeline.demo
    config = recipe(lora=options.lora, **_given(options, "epochs", "seed"))
    config = replace(
        config,
        sampling=replace(config.sampling, **_given(options, "temperature", "max_new_tokens")),
        train=replace(config.train, **_given(options, "learning_rate")),
        **_given(options, "per_family", "samples", "max_tokens", "per_problem"),
        **{name: getattr(options, name) for name in ("teacher", "student", "problems", "traces")},
        reading=_reading(options),
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

    _reading(options)
    check_out(options.out)
    if options.traces is not None:
        check_traces(options.traces, options.problems)
    if options.problems is not None:
        check_place(options.problems)
    if options.temperature is not None:
        from distill.teachers.traces import check_samples

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
        text += f", {measured['train_validation_loss']:.3f} on {counted(measured['validation'], 'trace')} of the validation split"
    return (
        f"{text}; {measured['train_changed_tensors']} of its {measured['train_tensors']} tensors changed; it is the one "
        f"after update {measured['train_chosen_update']}, for {measured['train_chosen_by']}"
    )


def _given(options: Options, *names: str) -> dict[str, Any]:
    """The options that were given, by name; the others stay the preset's."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def eval(options: Options) -> Result:
    from distill.evaluation.compare import COMPARISON_MD, compare_models, comparison_table, names_of
    from distill.evaluation.evaluate import EvalConfig, evaluate, stage_of
    from distill.problems.families import ledger_problems
    from distill.problems.problem_set import read_problems
    from distill.teachers.respondent import ModelFolder, find_respondent
    from distill.teachers.trace_store import find_teacher
    from distill.trained_on import choose, trained_questions
    from toolkit.figures.ledger import build_ledger, ledger_table
    from toolkit.runs import check_out

    _allow_unsafe(options)
    decoder_options = _decoder_options(options)
    config = EvalConfig(sampling=_sampling(options), samples=options.samples, batch_size=options.batch_size)
    reading = _reading(options)
    if options.problems is None and (options.split or options.include_trained):
        raise InputError(
            "--split and --include-trained choose among your own problems; give --problems (the ledger's are of the test "
            "split, and no student is trained on that)"
        )
    if options.out and not options.against:
        check_out(options.out)
    given = read_problems(options.problems, reading) if options.problems else []
    models = [find_teacher(options.model, options.out or Path("runs/eval/model"), *decoder_options)]
    models += [find_respondent(model, open_decoder) for model in options.against]
    if options.problems is None:
        problems, asked, note, split = ledger_problems(), {}, "", "all"
    else:
        known = {
            name: trained_questions(model.folder) if isinstance(model, ModelFolder) else None
            for name, model in zip(names_of(models), models, strict=True)
        }
        asking = choose(given, options.split, known, include_trained=options.include_trained)
        say(asking.note())
        problems, asked, note, split = asking.problems, asking.facts(), f"\n\n{asking.note()}", asking.split
    if options.against:
        out = options.out or _out("compare", stage_of(problems, config), _problems_name(options, split) or "ledger")
        comparison = compare_models(models, problems, config, out, asked)
        text = f"{comparison_table(comparison)}{note}\n\nthe same as Markdown: {out / COMPARISON_MD}"
        return Result(facts={"folder": str(out), **comparison.to_dict()}, text=text)
    (model,) = models
    stage = stage_of(problems, config, model=model.digest)
    out = options.out or _out("eval", stage, _model_name(options.model, model.name), _problems_name(options, split))
    evaluation = evaluate(model, problems, config, out, asked)
    text = f"{ledger_table(build_ledger({model.name: out}))}{note}\n\ntraces and verdicts are in {out}"
    return Result(facts={"folder": str(out), **evaluation.to_dict()}, text=text)


def _out(kind: str, stage: Stage, *names: str) -> Path:
    """The folder that `toolkit eval` writes where none is named: names for a person, and a digest of what is asked, so
    that the same question finds its folder again and another one has another."""
    from distill.teachers.respondent import folder_name

    digest = hashlib.sha256(json.dumps(stage.key(), sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs") / kind / "-".join([*(folder_name(name)[:MOST_OF_A_NAME] for name in names if name), digest])


def _model_name(argument: str, name: str) -> str:
    """A model as a folder's name tells it from others: many students' own folders are called the same."""
    from toolkit.sources.model_names import is_endpoint

    if is_endpoint(argument):
        return name
    place = Path(argument)
    return " ".join(place.resolve().parts[-2:]) if place.exists() else argument


def _problems_name(options: Options, split: str) -> str:
    """The user's problems and which part of them is asked; empty where those of the ledger are."""
    if options.problems is None:
        return ""
    place: Path = options.problems.resolve() if options.problems.exists() else options.problems
    return place.name.partition(".")[0] + ("" if split == "all" else f" {split}")


def _decoder_options(options: Options) -> tuple[Callable[[Path], Decoder], str]:
    """What opens a model folder with the cache that is asked for, and that cache's name: empty for the exact one."""
    from toolkit.runs import file_digest

    rank, traces = options.cache_rank, options.cache_calibration
    if (rank is None) != (traces is None):
        given = f"--cache-rank ({rank})" if traces is None else f"--cache-calibration ({traces})"
        missing = "--cache-calibration" if traces is None else "--cache-rank"
        raise InputError(f"{given} must come with {missing}; toolkit traces writes a folder to calibrate on")
    names = [] if options.cache == "auto" else [options.cache]
    if traces is not None:
        from toolkit.figures.ledger import TRACES

        if not (traces / TRACES).is_file():
            raise InputError(f"--cache-calibration ({traces}) must be a folder that toolkit traces wrote")
        names.append(f"rank {rank} fitted to {file_digest(traces / TRACES)[:16]}")
    if not names:
        return open_decoder, ""

    def open_with_cache(folder: Path) -> Decoder:
        from toolkit.formats.chat_format import ChatFormat
        from toolkit.model.decoder import LatentCache, TorchDecoder
        from toolkit.model.latent_basis import trace_rows

        if (folder / "model.onnx").is_file():
            from export.runtime.decoder import OnnxDecoder

            if rank is not None:
                raise InputError(
                    f"{folder} is an exported model, whose cache cannot be projected; leave --cache-rank out"
                )
            return OnnxDecoder(folder, cache=options.cache)
        rows = [ids for ids, _ in trace_rows(traces, ChatFormat.from_folder(folder))] if traces else []
        return TorchDecoder.open(
            folder, cache=LatentCache(int8=options.cache == "int8", rank=rank or 0, calibration=rows)
        )

    return open_with_cache, ", ".join(names)


def _allow_unsafe(options: Options) -> None:
    """What the user allowed counts for all grading of this process."""
    from distill.verification.code.sandbox import allow_unsafe

    if options.allow_unsafe_exec:
        allow_unsafe()


def _reading(options: Options) -> Reading:
    from distill.problems.own_form import Reading

    reading = Reading(
        question_field=options.question_field, answer_field=options.answer_field, conflicts=options.conflicts
    )
    if options.problems is None and reading != Reading():
        raise InputError("--question-field, --answer-field and --conflicts say how --problems is read; give --problems")
    return reading


def _without_own_test(problems: list[Problem]) -> list[Problem]:
    """Problems to learn from: without those that their data set keeps for testing."""
    chosen = [problem for problem in problems if problem.split != "test"]
    if len(chosen) < len(problems):
        say(f"problems: the {len(problems) - len(chosen)} of the data set's test part are not asked")
    if not chosen:
        raise InputError(
            f"some of the {len(problems)} problems must be outside the data set's test part; all are in it"
        )
    return chosen


def _sampling(options: Options) -> Sampling:
    from toolkit.generation.generate import Sampling

    return Sampling(temperature=options.temperature, max_new_tokens=options.max_new_tokens, seed=options.seed)
