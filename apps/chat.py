"""Serves the chat page of one exported model on the loopback address, and nothing beyond it.

    browser ── guard (host, policy) ── FastAPI ── /health
                                          └────── / (Gradio page) ── run_turn ── decoder (one, behind a lock)

No torch is imported, and no request leaves the machine, of the server or of the page.
"""

from __future__ import annotations

import os

os.environ.update(
    GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", ORT_DISABLE_TELEMETRY="1"
)  # before the imports, which read them

import webbrowser
from contextlib import suppress
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI

from apps.address import LOOPBACK, listen
from apps.guard import Application, guard
from apps.look import CSS, HEAD, theme
from apps.model import Model, load_model
from apps.page import build_page
from export.session import Cache
from toolkit.errors import InputError


def build_application(model: Model, hosts: frozenset[str]) -> Application:
    """The page and `/health`, behind the guard."""
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @api.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "model": model.name}

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
        css=CSS,
        head=HEAD,
    )
    return guard(mounted, hosts)


def serve(model: Model, *, host: str, port: int, open_browser: bool) -> None:
    """Serve the page of a loaded model until interrupted; prints its address first. Port 0 is any free port."""
    if host not in LOOPBACK:
        raise InputError(f"host ({host}) must be one of {', '.join(LOOPBACK)}: the chat has no password")
    listener = listen(host, port)
    port = listener.getsockname()[1]
    application = build_application(model, frozenset(f"{name}:{port}" for name in LOOPBACK))
    address = f"http://{host}:{port}/"
    print(f"{model.name} is ready at {address} (Ctrl+C ends it)", flush=True)
    if open_browser:
        webbrowser.open(address)
    server = uvicorn.Server(
        uvicorn.Config(application, log_level="warning", server_header=False, timeout_graceful_shutdown=1)
    )
    with listener, suppress(KeyboardInterrupt):  # Ctrl+C is how a chat ends
        server.run(sockets=[listener])


def run_chat(
    folder: Path,
    *,
    cache: Cache = "exact",
    prefix_bytes: int = 0,
    prepacked: bool = False,
    host: str = "127.0.0.1",
    port: int,
    open_browser: bool,
) -> None:
    """Load an exported folder and serve its chat until interrupted; `cache`, `prefix_bytes` and `prepacked` are `OnnxDecoder`'s.

    Raises `InputError` where the folder is no export, the host no loopback address or the port taken.
    """
    serve(load_model(folder, cache, prefix_bytes, prepacked), host=host, port=port, open_browser=open_browser)
