"""`toolkit serve`: an exported folder for other programs."""

from __future__ import annotations

from functools import partial

from toolkit.cli.options.command import AddCommand, Options, Result
from toolkit.cli.options.shared import add_cache_option, add_prepacked_option, say_what_is_slower
from toolkit.cli.options.values import count_of, path_of, port_of


def add_serve(add: AddCommand) -> None:
    parser = add(
        "serve", serve, extra="serve", summary="serve an exported folder to other programs, as OpenAI's API does"
    )
    parser.add_argument("folder", type=path_of, help="exported folder")
    add_cache_option(parser)
    add_prepacked_option(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    parser.add_argument("--port", type=port_of, default=8000, help="0 is any free one; default: %(default)s")
    parser.add_argument(
        "--api-key", help="key that clients must send; default: TOOLKIT_API_KEY, or none on the loopback address"
    )
    parser.add_argument("--name", default="", help="the model's name in requests; default: its folder's")
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let a web page of this origin ask, such as https://example.org, or * for any; repeatable; default: none",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="answer under this name too (a proxy's, a container's), NAME:PORT for one port; repeatable; default: none",
    )
    parser.add_argument("--parallel", type=count_of, default=8, help="answers in work at once; default: %(default)s")
    parser.add_argument("--queue", type=count_of, default=32, help="answers that may wait; default: %(default)s")
    parser.add_argument(
        "--repeatable",
        action="store_true",
        help="let no other answer or cache change a word, whatever the kernels, for what "
        "the batch gains; see docs/explanation/serving.md",
    )


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
        repeatable=options.repeatable,
        origins=options.allow_origin,
        hosts=options.allow_host,
    )
    return Result(facts={"folder": str(options.folder)}, text="")
