"""`toolkit traces`: lets a teacher answer problems, thinking aloud; `toolkit traces show` lists its traces."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from toolkit.cli.options.command import AddCommand, Options, Result
from toolkit.cli.options.shared import (
    add_cache_options,
    add_problem_options,
    add_retry_option,
    add_sampling_options,
    add_teacher_option,
    decoder_of,
    reading_of,
    sampling_of,
)
from toolkit.cli.options.values import Instead, count_of, path_of, shared_options
from toolkit.cli.traces.curate import add_curate
from toolkit.errors import InputError
from toolkit.terminal import counted, say

if TYPE_CHECKING:
    from toolkit.records import Problem


def add_traces(add: AddCommand) -> None:
    parser = add(
        "traces", traces, extra="distill", summary="let a teacher answer problems, thinking aloud, and keep its traces"
    )
    add_teacher_option(parser)
    add_problem_options(parser, "procedural problems")
    parser.add_argument(
        "--per-family", type=count_of, default=100, help="procedural problems of each family; default: %(default)s"
    )
    add_sampling_options(parser, temperature=0.6)
    add_cache_options(parser)
    add_retry_option(parser)
    parser.add_argument("--out", type=path_of, required=True, help="run folder to write")
    subcommands = parser.add_subparsers(metavar="show|curate", action=Instead)
    _add_show(subcommands)
    add_curate(subcommands)


def _add_show(subcommands: Any) -> None:
    show = subcommands.add_parser(
        "show",
        help="list a run's traces, or the requests that failed",
        description="list the traces of a run of toolkit traces or toolkit distill, finished or not; changes nothing",
        parents=[shared_options()],
        allow_abbrev=False,
    )
    show.set_defaults(command=traces_show, what="all")
    show.add_argument("run", type=path_of, help="run folder to read")
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


def traces(options: Options) -> Result:
    from distill.collecting.job import check_samples
    from distill.collecting.outcomes import FAILED
    from distill.evaluation.evaluate import problems_digest
    from distill.problems.families import make_problems
    from distill.problems.problem_set import read_problems
    from distill.teachers.trace_store import ASKED, find_teacher, gather
    from toolkit.figures.ledger import PROBLEMS
    from toolkit.records import write_records
    from toolkit.runs import Stage, check_out, finish, is_complete, partial_folder, read_manifest

    out, sampling, reading = options.out, sampling_of(options), reading_of(options)
    decoder_options = decoder_of(options)
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


def _without_own_test(problems: list[Problem]) -> list[Problem]:
    """Return the problems without those that their data set keeps for testing."""
    chosen = [problem for problem in problems if problem.split != "test"]
    if len(chosen) < len(problems):
        say(f"problems: {len(problems) - len(chosen)} of the data set's test split are not asked")
    if not chosen:
        raise InputError(
            f"all {len(problems)} problems are in the data set's test split, which is never learned from; give others"
        )
    return chosen
