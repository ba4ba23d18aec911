"""Builds the parser of the command line, to which every command adds its own (`toolkit.cli.verbs`)."""

from __future__ import annotations

from collections.abc import Callable

from toolkit.cli.options.command import Options, Result
from toolkit.cli.options.values import Parser, Version, shared_options
from toolkit.cli.verbs.chat import add_chat
from toolkit.cli.verbs.distill import add_distill
from toolkit.cli.verbs.evaluate import add_eval
from toolkit.cli.verbs.export import add_export, add_quantize
from toolkit.cli.verbs.exported import add_bench, add_verify
from toolkit.cli.verbs.prepare import add_doctor, add_plan, add_pull, add_recipes
from toolkit.cli.verbs.run import add_demo, add_report
from toolkit.cli.verbs.serve import add_serve
from toolkit.cli.verbs.teach import add_teach
from toolkit.cli.verbs.traces import add_traces

COMMANDS = (
    add_doctor,
    add_pull,
    add_teach,
    add_traces,
    add_recipes,
    add_plan,
    add_distill,
    add_eval,
    add_export,
    add_quantize,
    add_verify,
    add_bench,
    add_chat,
    add_serve,
    add_report,
    add_demo,
)
"""In the order in which the help lists them."""


def build_parser() -> Parser:
    parser = Parser(
        prog="toolkit",
        description="Distill a reasoning model into a small one, quantize it to int4 ONNX, and chat with it offline.",
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[Options], Result], *, extra: str, summary: str) -> Parser:
        added = verbs.add_parser(
            name, help=summary, description=summary, parents=[shared_options()], allow_abbrev=False
        )
        added.set_defaults(command=run, extra=extra)
        return added

    for command in COMMANDS:
        command(add)
    return parser
