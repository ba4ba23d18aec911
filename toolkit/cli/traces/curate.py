"""`toolkit traces curate`: chooses a training set from traces, and says why each other trace is left out."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from toolkit.cli.options.command import Options, Result
from toolkit.cli.options.shared import add_unsafe_option, allow_unsafe_execution, reading_of
from toolkit.cli.options.values import add_subcommand, count_of, data_of, name_of, path_of, seed_of
from toolkit.errors import InputError
from toolkit.terminal import counted

if TYPE_CHECKING:
    from distill.curation.selection import Rules

DIFFICULTIES = ("easy", "medium", "hard")
USUAL_RUN, USUAL_SCORE = 13, 7.0


def add_curate(subcommands: Any) -> None:
    """Add the subcommand to those of `toolkit traces`."""
    parser = add_subcommand(
        subcommands,
        "curate",
        traces_curate,
        summary="choose a training set from traces, and say why each other trace is left out",
        description="choose a training set from traces: verify, count, compare and filter them in a pool of processes; "
        "if interrupted, the same command resumes",
    )
    parser.add_argument(
        "traces", type=path_of, nargs="+", metavar="RUN|FILE", help="run folders and files of traces to choose from"
    )
    parser.add_argument("--out", type=path_of, required=True, help="folder to write")
    _add_problems(parser)
    _add_rules(parser)
    _add_filters(parser)
    _add_mix(parser)
    _add_judge(parser)
    add_unsafe_option(parser)
    parser.add_argument("--processes", type=count_of, help="processes at work; default: one for each processor")


def _add_problems(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--problems",
        type=data_of,
        metavar="DATA",
        help="problems that the traces answer: a file, a folder or a data set as of toolkit traces; default: the "
        "problems.jsonl beside the traces",
    )
    for name in ("question", "answer"):
        parser.add_argument(
            f"--{name}-field",
            default="",
            metavar="COLUMN",
            help=f"column of --problems that holds the {name}s; default: recognized by the names of the columns",
        )
    parser.add_argument(
        "--conflicts",
        choices=("refuse", "leave-out"),
        default="refuse",
        help="what to do with questions of --problems that have several different answers; default: %(default)s",
    )


def _add_rules(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep",
        choices=("verified", "majority", "best-of", "all"),
        default="verified",
        help="traces to keep: those that are right, those with the most frequent answer of their problem, the best "
        "right one of each problem, or all; default: %(default)s",
    )
    parser.add_argument(
        "--best-by",
        choices=("length", "score"),
        default="length",
        help="what makes a right trace the best one: the fewest tokens, or the highest score; default: %(default)s",
    )
    parser.add_argument("--per-problem", type=count_of, metavar="N", help="most traces of one problem; default: all")
    parser.add_argument("--min-tokens", type=count_of, help="fewest tokens of an example; default: no limit")
    parser.add_argument("--max-tokens", type=count_of, help="most tokens of an example; default: no limit")
    parser.add_argument(
        "--student",
        type=name_of,
        help="model whose tokens are counted: a folder, a known name or a hub id; default: what the teacher's server "
        "counted, or an estimate by bytes",
    )


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--near-duplicates",
        type=similarity_of,
        default=0.8,
        metavar="SIMILARITY",
        help="share of words in a row, from 0.3 to 1, from which a trace is nearly another one and is left out; off: "
        "only equal thoughts are; default: %(default)s",
    )
    parser.add_argument(
        "--decontaminate",
        type=data_of,
        nargs="+",
        default=[],
        metavar="FILE",
        help="benchmarks that must not be trained on: files of problems as of toolkit traces, or plain text",
    )
    parser.add_argument(
        "--ngram",
        type=run_of,
        default=USUAL_RUN,
        metavar="WORDS",
        help="words in a row of --decontaminate that a question or a thought must not have; default: %(default)s",
    )
    parser.add_argument(
        "--language",
        type=languages_of,
        default=(),
        metavar="CODES",
        help="languages in which traces may think, such as en or en,de; default: all",
    )


def _add_mix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--difficulty",
        type=difficulty_of,
        default={},
        metavar="SHARES",
        help="shares of easy, medium and hard problems by their pass rate (from 75 %%, from 25 %%, below), such as "
        "easy=0.2,medium=0.5,hard=0.3; default: as they come",
    )
    parser.add_argument(
        "--long-share",
        type=share_of,
        metavar="SHARE",
        help="share of long thoughts, from 0 to 1; default: as they come",
    )
    parser.add_argument(
        "--long-tokens",
        type=count_of,
        metavar="N",
        help="tokens from which a thought is long; default: those above the median",
    )
    parser.add_argument("--seed", type=seed_of, default=0, help="seed of the choice within a mix; default: %(default)s")


def _add_judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--judge",
        type=name_of,
        metavar="URL",
        help="endpoint of a model that rates answers of problems without a reference",
    )
    parser.add_argument(
        "--judge-score",
        type=rating_of,
        default=USUAL_SCORE,
        metavar="RATING",
        help="rating of --judge, from 0 to 10, from which an answer counts as right; default: %(default)s",
    )


def traces_curate(options: Options) -> Result:
    rules = _rules(options)

    from distill.curation.at_size.curation_stage import CurationConfig, curate_traces
    from toolkit.machine.allowance import usable_processors
    from toolkit.runs import read_manifest
    from toolkit.sources.model_names import check_model, is_endpoint

    if options.student is not None:
        check_model(options.student)
    if options.judge is not None and not is_endpoint(options.judge):
        raise InputError(
            f"--judge ({options.judge}) must be the address of an endpoint, such as http://127.0.0.1:8080/v1"
        )
    allow_unsafe_execution(options)
    config = CurationConfig(
        traces=tuple(options.traces),
        problems=options.problems,
        reading=reading_of(options),
        rules=rules,
        student=options.student,
        decontaminate=tuple(options.decontaminate),
        run_words=options.ngram,
        judge=options.judge,
        judge_least=options.judge_score,
        processes=options.processes or usable_processors(),
        unsafe=options.allow_unsafe_exec,
    )
    out = curate_traces(config, options.out)
    measured = (read_manifest(out) or {})["measured"]
    text = (
        f"{measured['kept']:,} of {counted(measured['traces'], 'trace')} are in {out / 'train.jsonl'}; why the others "
        f"are not: {out / 'report.html'}, or toolkit traces show {out} --dropped"
    )
    return Result(facts={"folder": str(out), **measured}, text=text)


def _rules(options: Options) -> Rules:
    """Return the rules of the options; raises `InputError` if some contradict each other."""
    if options.min_tokens and options.max_tokens and options.min_tokens > options.max_tokens:
        raise InputError(f"--min-tokens ({options.min_tokens}) must be at most --max-tokens ({options.max_tokens})")
    if options.keep == "best-of" and options.per_problem:
        raise InputError("--keep best-of keeps one trace of each problem; leave out --per-problem")
    if options.keep != "best-of" and options.best_by != "length":
        raise InputError(f"--best-by {options.best_by} is for --keep best-of; add that, or leave it out")
    if options.judge is None and options.judge_score != USUAL_SCORE:
        raise InputError(f"--judge-score ({options.judge_score:g}) needs a --judge; add one, or leave it out")
    if not options.decontaminate and options.ngram != USUAL_RUN:
        raise InputError(f"--ngram ({options.ngram}) needs --decontaminate; add it, or leave it out")
    if options.long_tokens and options.long_share is None:
        raise InputError(f"--long-tokens ({options.long_tokens}) needs --long-share; add it, or leave this out")

    from distill.curation.selection import Rules

    return Rules(
        keep=options.keep,
        best_by=options.best_by,
        per_problem=options.per_problem,
        min_tokens=options.min_tokens or 0,
        max_tokens=options.max_tokens,
        languages=options.language,
        near_duplicates=options.near_duplicates,
        difficulty=options.difficulty,
        long_share=options.long_share,
        long_tokens=options.long_tokens,
        seed=options.seed,
    )


def similarity_of(text: str) -> float | None:
    """Parse a similarity, or `off`."""
    return None if text == "off" else _between(text, 0.3, 1.0, "a number from 0.3 to 1, or off")


def share_of(text: str) -> float:
    return _between(text, 0.0, 1.0, "a number from 0 to 1")


def rating_of(text: str) -> float:
    return _between(text, 0.0, 10.0, "a number from 0 to 10")


def run_of(text: str) -> int:
    words = count_of(text)
    if not 3 <= words <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 3 to 100, such as 8 or 13")
    return words


def languages_of(text: str) -> tuple[str, ...]:
    """Parse codes of languages such as `en,de`."""
    codes = tuple(dict.fromkeys(code.strip() for code in text.split(",")))
    for code in codes:
        if not (code.isascii() and code.isalpha() and code.islower() and len(code) in (2, 3)):
            raise argparse.ArgumentTypeError(f"{code!r:.60} is not the code of a language; give codes such as en,de,zh")
    return codes


def difficulty_of(text: str) -> dict[str, float]:
    """Parse wished-for shares such as `easy=0.2,medium=0.5,hard=0.3`."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in DIFFICULTIES or name in shares:
            raise argparse.ArgumentTypeError(
                f"{part!r:.60} must name one of {', '.join(DIFFICULTIES)} once, with its share, such as easy=0.2"
            )
        shares[name] = _between(value, 0.0, 1.0, "a number from 0 to 1")
    if abs(sum(shares.values()) - 1) > 0.005:
        raise argparse.ArgumentTypeError(
            f"the shares of {text!r:.80} add up to {sum(shares.values()):g}, and must to 1"
        )
    return shares


def _between(text: str, least: float, most: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r:.60} must be {what}")
    return value
