"""Serves the chat page of one exported model on the loopback address, and nothing beyond it.

    browser ── guard (host, origin, policy) ── door (token, cookie, body) ── FastAPI ── /health, /connections
                                                                                └────── /, /compare (Gradio pages) ── author
                                                                                  decoder (one, behind a lock) ┘

Torch is not imported, and neither the server nor the page sends a request off this machine.
"""

from __future__ import annotations

import os

os.environ.update(
    GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", ORT_DISABLE_TELEMETRY="1"
)  # set before the imports that read them

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from apps.access.address import LOOPBACK, listen, run_until_interrupted
from apps.access.admission import Admission
from apps.access.connections import Watch
from apps.access.guard import Application, guard
from apps.chat.conversation.author import Author
from apps.chat.conversation.store import Store
from apps.chat.desktop import Window, run_in_window
from apps.chat.look import badge, look
from apps.chat.look.frames import calm
from apps.chat.page import side_by_side, sidebar
from apps.chat.page.page import build_page
from apps.chat.remote_model import load_endpoint
from apps.chat.view import live
from apps.model import CHAT_DECODER, Model, close_model, load_model
from export.runtime.decoder import OpenDecoder
from toolkit.errors import InputError
from toolkit.sources.model_names import is_endpoint
from toolkit.terminal import say, show

QUEUE_POLL_S = 0.01
NO_PROGRESS_POLL_S = 1.0
"""Rare, because no handler of these pages has a progress bar."""


def build_application(
    models: Sequence[Model], store: Store, admission: Admission, hosts: frozenset[str]
) -> Application:
    """Build the pages behind the door: `/health`, the first model's chat, and a comparison if there is a second model."""
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @api.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "model": models[0].name}

    watch = Watch(endpoints=tuple(model.endpoint for model in models if model.endpoint))
    watch.start()
    badge.add_route(api, watch)
    sidebar.add_downloads(api, store)
    author = Author(models[0], store)
    live.add_route(api, author.feeds)
    compare_path = side_by_side.PATH if len(models) > 1 else ""
    if compare_path:
        api.get(side_by_side.PATH)(lambda: RedirectResponse(f"{side_by_side.PATH}/"))  # a mount begins after the slash
        _mount(api, side_by_side.build_compare(models), side_by_side.PATH, look.COMPARE_SHEETS, look.COMPARE_HEAD)
    _mount(api, build_page(author, store, compare_path), "/", look.CHAT_SHEETS, look.CHAT_HEAD)
    return guard(admission.wrap(calm(api)), hosts)


def serve(models: Sequence[Model], store: Store, *, host: str, port: int, window: Window) -> None:
    """Serve the pages of one or two loaded models until interrupted; prints the address first.

    Port 0 takes any free port.
    """
    if host not in LOOPBACK:
        raise InputError(f"host {host} is open to others, and the chat has no password; use {', '.join(LOOPBACK)}")
    with listen(host, port) as listener:
        port = listener.getsockname()[1]
        start = side_by_side.PATH if len(models) > 1 else "/"
        admission = Admission(f"http://{host}:{port}", start, _announce)
        application = build_application(models, store, admission, frozenset(f"{name}:{port}" for name in LOOPBACK))
        names = " and ".join(model.name for model in models)
        show(f"Serving {names} at {admission.door} (Ctrl+C to stop)")
        try:
            run_in_window(partial(run_until_interrupted, application, listener), admission.door, names, window)
        finally:
            for model in models:
                close_model(model)


def run_chat(
    model: str | Path,
    data: Path,
    *,
    against: str = "",
    adapter: Path | None = None,
    open_decoder: OpenDecoder = CHAT_DECODER,
    host: str = "127.0.0.1",
    port: int,
    window: Window = "auto",
) -> None:
    """Open an exported folder or an endpoint, and a second one to compare it `against` if given; serve until interrupted.

    `data`: the folder that keeps the conversations. `open_decoder`: opens a folder. `adapter`: PEFT's folder of a
    low-rank adapter, with which the first model answers.

    Raises `InputError` if a model is missing, the host is no loopback address, or the port or `data` is in use.
    """
    opening = partial(open_decoder, adapter=adapter) if adapter else open_decoder
    models = [open_model(model, opening)] + ([open_model(against, open_decoder)] if against else [])
    store = Store(data, time.time)
    if store.damage:
        say(store.damage)
    serve(models, store, host=host, port=port, window=window)


def open_model(model: str | Path, open_decoder: OpenDecoder) -> Model:
    """Open the model of a folder or of an `http(s)://…/v1` address; raises `InputError` if there is none."""
    if is_endpoint(str(model)):
        return load_endpoint(str(model))
    return load_model(Path(model), open_decoder)


def _mount(api: FastAPI, page: gr.Blocks, path: str, sheets: list[Path], head: str) -> None:
    gr.mount_gradio_app(
        api,
        page,
        path=path,
        footer_links=[],
        run_history=False,
        max_file_size=0,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=look.theme(),
        css_paths=sheets,
        head=head,
    )
    # Gradio's queue polls for work a thousand times a second, and for pending progress a hundred times: all day, and
    # while the model writes. It has no setting for this.
    page._queue.sleep_when_free, page._queue.progress_update_sleep_when_free = QUEUE_POLL_S, NO_PROGRESS_POLL_S


def _announce(door: str) -> None:
    show(f"Opened in your browser. To use another one: {door}")
