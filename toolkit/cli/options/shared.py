"""Options that several commands take, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.options.command import Options
from toolkit.cli.options.decoders import open_decoder
from toolkit.cli.options.values import Parser, add_flag, count_of, data_of, name_of, path_of, seed_of, temperature_of
from toolkit.errors import InputError
from toolkit.terminal import say

if TYPE_CHECKING:
    from distill.problems.own_form import ReadingOptions
    from toolkit.generation.generate import Decoder


OWN_OR = "as the model's generation_config.json says, or {}"


def add_problem_options(verb: Parser, default: str) -> None:
    verb.add_argument(
        "--problems",
        type=data_of,
        metavar="DATA",
        help="problems to ask: a JSONL, JSON, CSV, TSV or Parquet file, a folder of such files, a dataset folder, or "
        f"the hub id of a data set (owner/name or owner/name:config); default: {default}",
    )
    verb.add_argument(
        "--question-field",
        default="",
        metavar="COLUMN",
        help="column that holds the questions; default: recognized by the names of the columns",
    )
    verb.add_argument(
        "--answer-field",
        default="",
        metavar="COLUMN",
        help="column that holds the answers; default: recognized by the names of the columns",
    )
    verb.add_argument(
        "--conflicts",
        choices=("refuse", "leave-out"),
        default="refuse",
        help="what to do with questions that have several different answers; default: %(default)s",
    )


def add_sampling_options(parser: Parser, *, temperature: str = OWN_OR.format(0.6)) -> None:
    """`temperature`: says what it is where the option is left out."""
    parser.add_argument("--samples", type=count_of, default=1, help="answers to each problem; default: %(default)s")
    parser.add_argument(
        "--temperature",
        type=temperature_of,
        help=f"sampling temperature; 0 is greedy; default: {temperature}",
    )
    parser.add_argument(
        "--max-new-tokens", type=count_of, default=320, help="most tokens of an answer; default: %(default)s"
    )
    parser.add_argument(
        "--batch-size",
        type=count_of,
        default=64,
        help="answers sampled at once by a model on this machine; default: %(default)s",
    )
    parser.add_argument("--seed", type=seed_of, default=0, help="seed of the sampling; default: %(default)s")


def add_recipe_options(parser: Parser) -> None:
    parser.add_argument(
        "--recipe",
        "--preset",
        dest="recipe",
        type=name_of,
        default="demo",
        metavar="NAME|FILE",
        help="where all values come from: a recipe that toolkit recipes lists, or a YAML file; default: %(default)s",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        type=name_of,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another value of the recipe, such as train.learning_rate=1e-4; may be given several times",
    )


def add_retry_option(parser: Parser) -> None:
    add_flag(parser, "--retry-failed", "ask again the requests that failed before; default: they stay failed")


def add_unsafe_option(parser: Parser) -> None:
    add_flag(parser, "--allow-unsafe-exec", "run programs that a model wrote even where no sandbox can confine them")


def add_cache_option(parser: Parser) -> None:
    """Add --cache, which is for exported folders and for teachers with latent attention."""
    parser.add_argument(
        "--cache",
        choices=("auto", "exact", "int8"),
        default="auto",
        help="precision of the KV cache; default: what the export chose for the folder, exact for a teacher",
    )


def add_opening_options(parser: Parser) -> None:
    """Add what says how an exported folder is opened."""
    add_cache_option(parser)
    add_flag(
        parser,
        "--prepacked",
        "map the weights from a copy that is packed once for this processor: starts faster, takes disk space",
    )


def add_adapter_option(parser: Parser) -> None:
    parser.add_argument(
        "--adapter",
        type=path_of,
        metavar="DIR",
        help="LoRA adapter that the folder's model runs with, as PEFT or toolkit distill --lora saved it",
    )


def add_cache_options(parser: Parser) -> None:
    add_cache_option(parser)
    parser.add_argument(
        "--cache-rank",
        type=count_of,
        metavar="R",
        help="compress each latent in the cache to R numbers",
    )
    parser.add_argument(
        "--cache-calibration", type=path_of, metavar="TRACES", help="folder of traces to fit --cache-rank to"
    )


def reading_of(options: Options) -> ReadingOptions:
    from distill.problems.own_form import ReadingOptions

    reading = ReadingOptions(
        question_field=options.question_field, answer_field=options.answer_field, conflicts=options.conflicts
    )
    if options.problems is None and reading != ReadingOptions():
        raise InputError("--question-field, --answer-field and --conflicts need --problems; add it, or leave them out")
    return reading


def allow_unsafe_execution(options: Options) -> None:
    """Let all grading of this process run programs without a sandbox, if the user asked for it."""
    from distill.verification.code.sandbox import allow_unsafe

    if options.allow_unsafe_exec:
        allow_unsafe()


def decoder_of(options: Options) -> tuple[Callable[[Path], Decoder], str]:
    """Return what opens a model folder as the options say, and how that differs from opening it as it is."""
    from toolkit.runs import file_digest

    rank, traces = options.cache_rank, options.cache_calibration
    if (rank is None) != (traces is None):
        given = f"--cache-rank ({rank})" if traces is None else f"--cache-calibration ({traces})"
        missing = "--cache-calibration" if traces is None else "--cache-rank"
        raise InputError(f"{given} needs {missing} too; toolkit traces writes a folder to calibrate on")
    names = [] if options.cache == "auto" else [options.cache]
    if traces is not None:
        from toolkit.figures.ledger import TRACES

        if not (traces / TRACES).is_file():
            raise InputError(f"--cache-calibration ({traces}) must be a folder that toolkit traces wrote")
        names.append(f"rank {rank} fitted to {file_digest(traces / TRACES)[:16]}")
    how = f"cache: {', '.join(names)}" if names else ""
    opening = partial(open_decoder, cache=options.cache, rank=rank or 0, traces=traces)
    if load_in := getattr(options, "load_in", None):
        return partial(opening, load_in=load_in), "; ".join(filter(None, (f"load-in: {load_in}", how)))
    return opening, how


def say_what_is_slower(*models: Path) -> None:
    """Say on stderr which of these exported folders our kernels do not run, and why.

    Raises `InputError` for a model whose run has not finished.
    """
    from export.runtime.kernels.library import what_is_slower
    from toolkit.sources.model_names import MODEL_FILE
    from toolkit.sources.unfinished import refuse_unfinished

    for model in models:
        refuse_unfinished(model)
    for folder in filter(Path.is_dir, models):
        if line := what_is_slower(folder / MODEL_FILE):
            say(line)
