"""Serves the chat page of one exported model on the loopback address, and nothing beyond it.

    browser ── guard (host, origin, policy) ── door (token, cookie, body) ── FastAPI ── /health, /connections
                                                                                └────── / (Gradio page) ── run_turn
                                                                                  decoder (one, behind a lock) ┘

No torch is imported, and no request leaves the machine, of the server or of the page.
"""

from __future__ import annotations

import os

os.environ.update(
    GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", ORT_DISABLE_TELEMETRY="1"
)  # before the imports, which read them

from functools import partial
from pathlib import Path

import gradio as gr
from fastapi import FastAPI

from apps import badge
from apps.address import LOOPBACK, listen, run_until_interrupted
from apps.admission import Admission
from apps.connections import Watch, addresses_of
from apps.desktop import Window, run_in_window
from apps.endpoint import load_endpoint
from apps.guard import Application, guard
from apps.look import CSS, HEAD, theme
from apps.model import Model, load_model
from apps.page import build_page
from export.session import Cache
from toolkit.errors import InputError
from toolkit.models import is_endpoint


def build_application(model: Model, admission: Admission, watch: Watch, hosts: frozenset[str]) -> Application:
    """The page and `/health`, behind the door and the guard."""
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @api.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "model": model.name}

    badge.add_route(api, watch)
    mounted = gr.mount_gradio_app(
        api,
        build_page(model),
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=0,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=theme(),
        css=CSS + badge.CSS,
        head=HEAD + badge.SCRIPT,
    )
    return guard(admission.wrap(mounted), hosts)


def serve(model: Model, *, host: str, port: int, window: Window) -> None:
    """Serve the page of a loaded model until interrupted; prints its address first. Port 0 is any free port."""
    if host not in LOOPBACK:
        raise InputError(f"host ({host}) must be one of {', '.join(LOOPBACK)}: the chat has no password")
    with listen(host, port) as listener:
        port = listener.getsockname()[1]
        admission = Admission(f"http://{host}:{port}", "/", _announce)
        watch = Watch(
            endpoint=model.endpoint, addresses=addresses_of(*model.endpoint) if model.endpoint else frozenset()
        )
        application = build_application(model, admission, watch, frozenset(f"{name}:{port}" for name in LOOPBACK))
        print(f"{model.name} is ready at {admission.door} (Ctrl+C ends it)", flush=True)
        watch.start()
        run_in_window(partial(run_until_interrupted, application, listener), admission.door, model.name, window)


def run_chat(
    model: str | Path, *, cache: Cache = "exact", host: str = "127.0.0.1", port: int, window: Window = "auto"
) -> None:
    """Open an exported folder or an endpoint and serve its chat until interrupted.

    Raises `InputError` where neither is there, the host is no loopback address or the port taken.
    """
    serve(open_model(model, cache), host=host, port=port, window=window)


def open_model(model: str | Path, cache: Cache) -> Model:
    """The model of a folder, or of an `http(s)://…/v1` address; raises `InputError` where it is none."""
    return load_endpoint(str(model)) if is_endpoint(str(model)) else load_model(Path(model), cache)


def _announce(door: str) -> None:
    print(f"opened; for another browser: {door}", flush=True)
