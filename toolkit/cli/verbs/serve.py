"""`toolkit serve`: serves an exported folder to other programs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from toolkit.cli.options.command import AddCommand, Options, Result
from toolkit.cli.options.shared import add_opening_options, say_what_is_slower
from toolkit.cli.options.values import add_flag, count_of, named_path_of, path_of, port_of
from toolkit.errors import InputError


def add_serve(add: AddCommand) -> None:
    parser = add(
        "serve", serve, extra="serve", summary="serve an exported folder to other programs through OpenAI's API"
    )
    parser.add_argument("folder", type=path_of, help="exported folder to serve")
    add_opening_options(parser)
    parser.add_argument(
        "--adapter",
        type=named_path_of,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="LoRA adapter to serve as a model of this name, as PEFT or toolkit distill --lora saved it; repeatable",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    parser.add_argument(
        "--port", type=port_of, default=8000, help="port to listen on; 0 picks a free one; default: %(default)s"
    )
    parser.add_argument(
        "--api-key",
        help="key that clients must send; default: the environment's TOOLKIT_API_KEY, or none on the loopback address",
    )
    parser.add_argument("--name", default="", help="name of the model in requests; default: the folder's name")
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="allow requests from web pages of this origin (https://example.org, * for any); repeatable; default: none",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="accept this host name in requests too (a proxy's, a container's; NAME:PORT for one port); repeatable",
    )
    parser.add_argument(
        "--parallel", type=count_of, default=8, help="most answers generated at once; default: %(default)s"
    )
    parser.add_argument("--queue", type=count_of, default=32, help="most answers that may wait; default: %(default)s")
    add_flag(
        parser,
        "--repeatable",
        "keep each answer independent of other requests and of the cache, whatever kernels run; gives up the "
        "batch's speed; see docs/explanation/serving.md",
    )


def _by_name(adapters: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for name, folder in adapters:
        if name in named:
            raise InputError(f"--adapter names {name!r} twice ({named[name]}, {folder}); give each another name")
        named[name] = folder
    return named


def serve(options: Options) -> Result:
    from apps.server.run_server import run_server
    from export.runtime.exported_model import open_exported

    say_what_is_slower(options.folder)
    run_server(
        options.folder,
        open_model=partial(open_exported, cache=options.cache, prepacked=options.prepacked),
        host=options.host,
        port=options.port,
        api_key=options.api_key,
        parallel=options.parallel,
        queue=options.queue,
        name=options.name,
        adapters=_by_name(options.adapter),
        repeatable=options.repeatable,
        origins=options.allow_origin,
        hosts=options.allow_host,
    )
    return Result(facts={"folder": str(options.folder)}, text="")
