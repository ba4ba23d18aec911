"""`toolkit chat`: the local chat."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from urllib.parse import quote

from toolkit.cli.options.command import AddCommand, Options, Result
from toolkit.cli.options.shared import add_adapter_option, add_opening_options, say_what_is_slower
from toolkit.cli.options.values import name_of, path_of, port_of, size_of
from toolkit.errors import InputError


def add_chat(add: AddCommand) -> None:
    parser = add("chat", chat, extra="chat", summary="open the local chat with an exported folder or an endpoint")
    parser.add_argument("folder", type=name_of, nargs="?", help="exported folder to chat with")
    parser.add_argument(
        "--endpoint",
        type=name_of,
        metavar="URL",
        help="chat with the model of an OpenAI-compatible server instead: http(s)://…/v1",
    )
    parser.add_argument(
        "--compare",
        type=name_of,
        metavar="OTHER",
        help="folder or endpoint whose answers are shown beside the first model's",
    )
    parser.add_argument("--model", metavar="NAME", help="name of the endpoint's model; default: its only one")
    add_opening_options(parser)
    add_adapter_option(parser)
    parser.add_argument(
        "--prefix-cache",
        type=size_of,
        default=0,
        metavar="SIZE",
        help="keep the cached beginnings of long prompts on disk, at most SIZE of them, such as 1GB; default: none",
    )
    parser.add_argument("--port", type=port_of, default=0, help="port on 127.0.0.1; default: a free one")
    parser.add_argument(
        "--data", type=path_of, help="folder to keep the conversations in; default: the user's data folder"
    )
    parser.add_argument(
        "--window",
        choices=("auto", "app", "browser", "none"),
        default="auto",
        help="open a window of its own (app), a browser tab, or print the address only (none); "
        "auto: the first that works; default: %(default)s",
    )
    parser.add_argument(
        "--no-browser", dest="window", action="store_const", const="none", help="the same as --window none"
    )


def chat(options: Options) -> Result:
    from toolkit.sources.model_names import check_exported, is_endpoint

    model = _chat_model(options)
    folders = [Path(name) for name in (model, options.compare) if name and not is_endpoint(name)]
    for folder in folders:
        check_exported(folder)

    from apps.chat.run_chat import run_chat
    from apps.model import CHAT_DECODER
    from toolkit.machine.user_folders import data_folder

    if options.adapter is not None and options.endpoint:
        raise InputError(
            f"--adapter ({options.adapter}) needs a folder; ask the server for its adapter's name with --model"
        )
    say_what_is_slower(*folders)
    run_chat(
        model,
        options.data or data_folder(),
        against=options.compare or "",
        adapter=options.adapter,
        open_decoder=partial(
            CHAT_DECODER, cache=options.cache, prefix_bytes=options.prefix_cache, prepacked=options.prepacked
        ),
        port=options.port,
        window=options.window,
    )
    return Result(facts={"model": model}, text="")


def _chat_model(options: Options) -> str:
    """Return the model argument that the options name: a folder, or an endpoint with its model."""
    if options.folder is None and options.endpoint is None:
        raise InputError(
            "chat needs a model; give an exported folder (toolkit demo makes runs/demo/int4, toolkit export others), "
            "or a server with --endpoint"
        )
    if options.folder is not None and options.endpoint is not None:
        raise InputError(
            f"chat takes the folder ({options.folder}) or --endpoint ({options.endpoint}), not both; leave one out"
        )
    if options.model and not options.endpoint:
        raise InputError(f"--model ({options.model}) needs --endpoint; a folder holds only one model")
    named = f"{options.endpoint}#{quote(options.model)}" if options.model else options.endpoint
    return str(options.folder or named)
