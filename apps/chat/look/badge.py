"""Tells the page's badge whether anything has left this machine; `assets/badge.js` asks every few seconds."""

from __future__ import annotations

from fastapi import FastAPI

from apps.access.connections import Watch

ROUTE = "/connections"

TEXT = "Checking connections"
"""Text of the Markdown component `#badge` until the first answer (`gr.HTML` would evaluate text as a script)."""


def add_route(api: FastAPI, watch: Watch) -> None:
    """Add the route that the script asks."""

    @api.get(ROUTE)
    def connections() -> dict[str, str]:
        return {"state": watch.state, "text": watch.text, "detail": watch.detail}
