"""`toolkit traces`: lets a teacher answer problems, thinking aloud; `toolkit traces show` lists its traces."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.cli.options.command import AddCommand, Options, Result
from toolkit.cli.options.engines import add_engine_options, check_engine, part_of, with_engine
from toolkit.cli.options.local import add_load_option, check_load_option, own_or_given_sampling
from toolkit.cli.options.serving import (
    add_asking_options,
    add_serving_options,
    add_teachers_option,
    asking_of,
    serving_of,
)
from toolkit.cli.options.shared import (
    add_cache_options,
    add_problem_options,
    add_retry_option,
    add_sampling_options,
    decoder_of,
    reading_of,
)
from toolkit.cli.options.values import Instead, add_flag, add_subcommand, count_of, name_of, path_of
from toolkit.cli.traces.curate import add_curate
from toolkit.cli.traces.data_sets import add_export, add_import
from toolkit.cli.traces.merge import add_merge
from toolkit.errors import InputError
from toolkit.terminal import counted, say

if TYPE_CHECKING:
    from distill.endpoints.remote_teacher import Serving
    from distill.teachers.trace_store import CollectedTraces
    from toolkit.records import Problem


def add_traces(add: AddCommand) -> None:
    parser = add(
        "traces", traces, extra="distill", summary="let a teacher answer problems, thinking aloud, and keep its traces"
    )
    add_teachers_option(parser)
    add_problem_options(parser, "procedural problems")
    parser.add_argument(
        "--per-family", type=count_of, default=100, help="procedural problems of each family; default: %(default)s"
    )
    add_flag(
        parser,
        "--include-test",
        "also ask problems of the test split, which no student learns from; default: they are left out, and counted",
    )
    add_sampling_options(parser)
    add_asking_options(parser)
    add_load_option(parser)
    add_cache_options(parser)
    add_serving_options(parser)
    add_engine_options(parser)
    add_retry_option(parser)
    parser.add_argument("--out", type=path_of, required=True, help="run folder to write")
    parser.usage = (
        "%(prog)s [OPTION ...] --out OUT\n       %(prog)s show [--failed | --dropped [--reason REASON]] RUN\n"
        "       %(prog)s curate [OPTION ...] --out OUT RUN|FILE ...\n       %(prog)s merge --out OUT RUN ...\n"
        "       %(prog)s export [OPTION ...] --out OUT RUN\n       %(prog)s import [OPTION ...] --out OUT DATA"
    )
    name = parser.prog
    parser.epilog = (
        f"{name} show RUN lists the traces of a run, {name} curate RUN chooses a training set from them, "
        f"{name} merge RUN ... makes one run of parts, {name} export RUN writes a data set, {name} import DATA reads a "
        "published one; each has a --help of its own"
    )
    subcommands = parser.add_subparsers(prog=parser.prog, metavar="show", help=argparse.SUPPRESS, action=Instead)
    for add_one in (_add_show, add_curate, add_merge, add_export, add_import):
        add_one(subcommands)


def _add_show(subcommands: Any) -> None:
    show = add_subcommand(
        subcommands,
        "show",
        traces_show,
        summary="list a run's traces, or the requests that failed",
        description="list the traces of a run of toolkit traces or toolkit distill, finished or not; changes nothing",
    )
    show.set_defaults(what="all")
    show.add_argument("run", metavar="RUN", type=path_of, help="run folder to read")
    what = show.add_mutually_exclusive_group()
    what.add_argument(
        "--failed", dest="what", action="store_const", const="failed", help="list requests that failed, and why"
    )
    what.add_argument(
        "--dropped",
        dest="what",
        action="store_const",
        const="dropped",
        help="list traces that no student learns from, and why",
    )
    show.add_argument(
        "--reason", type=name_of, help="list the traces with this reason only, such as wrong or near_duplicate"
    )


def traces(options: Options) -> Result:
    from distill.collecting.part import SHARD
    from distill.problems.problem_set import problems_digest
    from distill.store.sharded_store import ASKED
    from distill.teachers.respondent import ModelFolder
    from distill.teachers.trace_store import find_teacher, gather
    from toolkit.figures.ledger import FAILED, PROBLEMS
    from toolkit.generation.generate import check_samples
    from toolkit.records import write_records
    from toolkit.runs import Stage, check_out, finish, is_complete, partial_folder, read_manifest

    out, asking, part = options.out, asking_of(options), part_of(options)
    argument, serving = serving_of(options)
    check_load_option(options, argument)
    check_engine(options)
    decoder_options = decoder_of(options)
    if options.temperature is not None:
        check_samples(options.samples, options.temperature)
    check_out(out)
    problems = _problems(options)
    found = find_teacher(argument, out, *decoder_options, serving=serving)
    sampling = own_or_given_sampling(options, argument, found.folder if isinstance(found, ModelFolder) else None)
    check_samples(options.samples, sampling.temperature, sampling.top_k)
    teacher = with_engine(found, options)
    stage = Stage(
        name="traces",
        config={"samples": options.samples, **asdict(sampling), **asking.given()}
        | ({SHARD: str(part)} if part else {}),
        inputs={"teacher": teacher.digest, "problems": problems_digest(problems)},
        names={"teacher": teacher.name, "problems": str(options.problems or "procedural problems")},
    )
    complete = is_complete(out, stage)
    if complete and not _goes_on(options, (read_manifest(out) or {})["measured"]):
        _say_done(out)
    else:
        folder = partial_folder(out, stage, cheap=(PROBLEMS, ASKED, FAILED))
        write_records(folder / PROBLEMS, problems)
        collect = partial(
            gather,
            teacher,
            problems,
            sampling,
            samples=options.samples,
            batch_size=max((server.most for server in serving.servers), default=options.batch_size),
            out=out,
            folder=folder,
            retry_failed=options.retry_failed,
            asking=asking,
            part=part,
        )
        if options.dry_run:
            return _forecast(collect, serving, options.limit)
        finish(folder, out, stage, collect(limit=options.limit).counts(), anew=complete)
    return _collected(out, (read_manifest(out) or {})["measured"])


def _say_done(out: Path) -> None:
    """Say that a run is finished, or stopped by the limit that is given again."""
    from toolkit.runs import read_manifest, say_done

    if stopped_by := (read_manifest(out) or {})["measured"].get("stopped_by"):
        say(f"{out} was stopped by {stopped_by}; raise it to go on")
    else:
        say_done(out)


def _problems(options: Options) -> list[Problem]:
    from distill.problems.families import make_problems
    from distill.problems.problem_set import read_problems

    reading = reading_of(options)  # refuses names of columns where there is no file
    if options.problems is None:
        return make_problems("train", options.per_family, options.seed)
    problems = read_problems(options.problems, reading)
    return problems if options.include_test else _without_test(problems)


def _goes_on(options: Options, measured: Mapping[str, Any]) -> bool:
    """Whether a finished run collects further traces: failed ones again, or those that a limit left out."""
    stopped_by: str = measured.get("stopped_by", "")
    limits = (f"--limit {options.limit}", f"--max-tokens-total {options.max_tokens_total}")
    same = stopped_by in limits or (options.max_cost is not None and stopped_by == f"--max-cost {options.max_cost:g}")
    return bool((stopped_by and not same) or (options.retry_failed and measured.get("failed")))


def _forecast(collect: Callable[..., CollectedTraces], serving: Serving, limit: int | None) -> Result:
    """Ask a few questions, no more than the limit allows, and say what all would take."""
    from distill.teachers.forecast import SAMPLE, forecast

    begun = time.monotonic()
    gathered = collect(limit=SAMPLE if limit is None else min(SAMPLE, limit))
    seconds = time.monotonic() - begun
    found = forecast(
        islice(gathered.traces, SAMPLE),
        gathered.requests,
        serving.servers,
        asked=gathered.asked_now,
        seconds=seconds,
    )
    return Result(facts=found.facts(), text=f"{found.text()}; nothing else was asked")


def _collected(out: Path, measured: Mapping[str, Any]) -> Result:
    whole = f" ({measured['whole']} of them whole)" if "whole" in measured else ""
    are = "is" if measured["traces"] == 1 else "are"
    text = f"{counted(measured['traces'], 'trace')}{whole} {are} in {out}"
    if measured.get("whole", measured["traces"]) < measured["traces"]:
        text += f"; why others are not: toolkit traces show {out} --dropped"
    if measured.get("failed"):
        text += f"; {counted(measured['failed'], 'request')} failed: toolkit traces show {out} --failed"
    if measured.get("stopped_by"):
        text += f"; {measured['stopped_by']} stopped it at that many of {measured.get('requests')}; raise it to go on"
    return Result(facts={"folder": str(out), **measured}, text=text)


def traces_show(options: Options) -> Result:
    from distill.teachers.trace_listing import listing, table

    rows = listing(options.run, options.what, options.reason, whole=options.json)
    return Result(
        facts={"run": str(options.run), "traces": [row.to_dict() for row in rows]}, text=table(rows, options.what)
    )


def _without_test(problems: list[Problem]) -> list[Problem]:
    """Return the problems without those of the test split: what students are measured by."""
    from distill.problems.splits import split_of

    chosen = [problem for problem in problems if split_of(problem) != "test"]
    if len(chosen) < len(problems):
        say(
            f"problems: {len(problems) - len(chosen)} of {len(problems)} are of the test split, which no student learns"
            " from, and are not asked (--include-test asks them)"
        )
    if not chosen:
        raise InputError(
            f"the test split, which is never learned from, holds all of {counted(len(problems), 'problem')}; give "
            "others, or ask these with --include-test"
        )
    return chosen
