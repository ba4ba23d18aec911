"""`toolkit traces export` and `toolkit traces import`: exchange traces with other programs."""

from __future__ import annotations

from typing import Any

from toolkit.cli.options.command import Options, Result
from toolkit.cli.options.shared import add_unsafe_option, allow_unsafe_execution
from toolkit.cli.options.values import add_flag, add_subcommand, count_of, data_of, name_of, path_of
from toolkit.terminal import counted


def add_export(subcommands: Any) -> None:
    """Add the subcommand to those of `toolkit traces`."""
    parser = add_subcommand(
        subcommands,
        "export",
        traces_export,
        summary="write a run's traces as a data set with its card",
        description="write the traces of a run as parquet files with a card, as datasets.load_dataset and the Hugging "
        "Face hub read them",
    )
    parser.add_argument("run", metavar="RUN", type=path_of, help="run folder to read, finished or not")
    parser.add_argument("--out", type=path_of, required=True, help="folder to write")
    add_flag(parser, "--no-verify", "leave traces without a verdict in the run as they are: neither right nor wrong")
    add_unsafe_option(parser)


def add_import(subcommands: Any) -> None:
    """Add the subcommand to those of `toolkit traces`."""
    parser = add_subcommand(
        subcommands,
        "import",
        traces_import,
        summary="read a published data set of traces as a run",
        description="read a published data set of traces, or one that toolkit traces export wrote, as a run folder; "
        "answers are verified here where there is a reference",
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        type=data_of,
        help="a JSONL, JSON, CSV, TSV or Parquet file, a folder of such files, a dataset folder, or the hub id of a "
        "data set (owner/name or owner/name:config)",
    )
    parser.add_argument("--out", type=path_of, required=True, help="run folder to write")
    parser.add_argument("--limit", type=count_of, metavar="N", help="most rows to read; default: all")
    parser.add_argument(
        "--teacher",
        type=name_of,
        metavar="NAME",
        help="model that answered; default: the one that the data are known for",
    )
    parser.add_argument(
        "--reference-field",
        type=name_of,
        metavar="COLUMN",
        help="column that holds the references; default: that of the data's form",
    )
    parser.add_argument(
        "--conflicts",
        choices=("refuse", "leave-out"),
        default="refuse",
        help="what to do with questions that have several different references; default: %(default)s",
    )
    parser.add_argument(
        "--broken",
        choices=("refuse", "leave-out"),
        default="refuse",
        help="what to do with rows that lack what the others have; default: %(default)s",
    )
    add_flag(parser, "--no-verify", "make no verdicts now; toolkit distill makes its own")
    add_unsafe_option(parser)


def traces_export(options: Options) -> Result:
    from distill.exchange.export_stage import export_traces

    allow_unsafe_execution(options)
    out = export_traces(options.run, options.out, verify=not options.no_verify)
    measured = _measured(out)
    text = f'{_are(measured)} in {out}; load_dataset("{out}") reads them'
    return Result(facts={"folder": str(out), **measured}, text=text)


def traces_import(options: Options) -> Result:
    from distill.exchange.import_stage import ImportConfig, import_traces

    allow_unsafe_execution(options)
    config = ImportConfig(
        place=options.data,
        limit=options.limit,
        teacher=options.teacher or "",
        reference_field=options.reference_field or "",
        conflicts=options.conflicts,
        broken=options.broken,
        verify=not options.no_verify,
    )
    out = import_traces(config, options.out)
    measured = _measured(out)
    text = f"{_are(measured)} in {out}"
    return Result(facts={"folder": str(out), **measured}, text=text)


def _are(measured: dict[str, Any]) -> str:
    are = "is" if measured["traces"] == 1 else "are"
    return f"{counted(measured['traces'], 'trace')} of {counted(measured['problems'], 'problem')} {are}"


def _measured(out: Any) -> dict[str, Any]:
    from toolkit.runs import read_manifest

    measured: dict[str, Any] = (read_manifest(out) or {})["measured"]
    return measured
