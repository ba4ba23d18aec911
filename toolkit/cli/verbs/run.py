"""Runs the whole line and reports on it: `toolkit demo` and `toolkit report`."""

from __future__ import annotations

import sys
from pathlib import Path

from toolkit.cli.options.command import AddCommand, Options, Result
from toolkit.cli.options.decoders import open_decoder
from toolkit.cli.options.values import add_flag, count_of, path_of


def add_demo(add: AddCommand) -> None:
    parser = add("demo", demo, extra="all", summary="pull, distill, export, evaluate and report, then open the chat")
    long = parser.add_mutually_exclusive_group()
    long.add_argument(
        "--minutes",
        type=count_of,
        help="size the recipe to take this many minutes on this machine, which is measured first; default: 20",
    )
    add_flag(long, "--full", "the same as --minutes 120, in a folder of its own")
    parser.add_argument("--out", type=path_of, help="run folder to write; default: runs/demo, or runs/full with --full")


def demo(options: Options) -> Result:
    from distill import pipeline
    from toolkit.cli.demo import demo as line
    from toolkit.figures.ledger import ledger_table
    from toolkit.figures.report import REPORT

    out = options.out or Path("runs/full" if options.full else "runs/demo")
    minutes = line.FULL_MINUTES if options.full else options.minutes
    ledger = line.demo(pipeline.demo(), out, open_decoder, minutes=minutes)
    text = f"{ledger_table(ledger)}\n\nreport: {out / REPORT}\nchat:   toolkit chat {out / line.INT4}"
    return Result(facts=ledger.to_dict(), text=text, then=lambda: _chat_if_someone_is_there(out / line.INT4))


def _chat_if_someone_is_there(folder: Path) -> None:
    if sys.stdin.isatty():
        from apps.chat.run_chat import run_chat
        from toolkit.machine.user_folders import data_folder

        run_chat(folder, data_folder(), port=0)


def add_report(add: AddCommand) -> None:
    parser = add("report", report, extra="distill", summary="print a run's ledger and write its report.html again")
    parser.add_argument(
        "folder", type=path_of, nargs="?", default=Path("runs/demo"), help="run folder; default: %(default)s"
    )
    parser.add_argument(
        "--readme", type=path_of, help="Markdown file whose marked blocks are filled with this run's figures"
    )


def report(options: Options) -> Result:
    from toolkit.figures.ledger import ledger_table
    from toolkit.figures.readme import write_figures
    from toolkit.figures.report import REPORT, report_run

    ledger = report_run(options.folder)
    if options.readme is not None:
        write_figures(options.readme, options.folder, ledger)
    return Result(facts=ledger.to_dict(), text=f"{ledger_table(ledger)}\n\nreport: {options.folder / REPORT}")
