"""The badge in the page: whether anything has left this machine; `assets/badge.js` asks anew every few seconds."""

from __future__ import annotations

from fastapi import FastAPI

from apps.access.connections import Watch

ROUTE = "/connections"

TEXT = "Checking connections"
"""Of the Markdown component `#badge` until the first answer (a `gr.HTML` would evaluate text as a script)."""


def add_route(api: FastAPI, watch: Watch) -> None:
    """What the script asks for."""

    @api.get(ROUTE)
    def connections() -> dict[str, str]:
        return {"state": watch.state, "text": watch.text, "detail": watch.detail}
