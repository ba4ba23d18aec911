"""`toolkit traces merge`: makes one run of the parts of a job."""

from __future__ import annotations

from typing import Any

from toolkit.cli.options.command import Options, Result
from toolkit.cli.options.values import add_subcommand, path_of
from toolkit.terminal import counted


def add_merge(subcommands: Any) -> None:
    """Add the subcommand to those of `toolkit traces`."""
    parser = add_subcommand(
        subcommands,
        "merge",
        traces_merge,
        summary="make one run of the parts of a job",
        description="make one run of the parts that toolkit traces --shard has answered, or of their stores, and say "
        "what is missing",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=path_of, help="run folder of a part, or a store")
    parser.add_argument("--out", type=path_of, required=True, help="run folder to write")


def traces_merge(options: Options) -> Result:
    from distill.engines.parts_merge import merge, said
    from toolkit.runs import check_out

    check_out(options.out)
    merged = merge(options.runs, options.out)
    facts = {"folder": str(options.out), **merged.counts, "missing": merged.missing, "doubled": merged.doubled}
    are = "is" if merged.counts["traces"] == 1 else "are"
    text = f"{counted(merged.counts['traces'], 'trace')} {are} in {options.out}"
    if failed := merged.counts["failed"]:
        text += f"; {counted(failed, 'request')} failed: toolkit traces show {options.out} --failed"
    return Result(facts=facts, text=text + said(merged))
