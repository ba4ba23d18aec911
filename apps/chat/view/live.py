"""The running turn's newest text, between two renderings of the page: a stream of its own, appended as plain text.

    model ─ piece ─ store ─┬─ RENDERS_PER_S times a second ─ Gradio ─ the conversation as Markdown
                           └─ UPDATES_PER_S times a second ─ /live/TURN ─ live.js ─ what is not rendered yet, as text

A rendering costs the browser 20 ms and more of a core that the model needs, appending text a few. The status line
carries a mark with the turn and how far its texts are rendered, so that no letter stands twice or is missing; positions
are counted in UTF-16 units, as a browser does. Nothing is shown that is not stored.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from fastapi import FastAPI
from starlette.responses import StreamingResponse

from apps.chat.conversation.store import Store
from apps.chat.conversation.turns import UPDATES_PER_S, Turn

RENDERS_PER_S = 2.0
ROUTE = "/live"


def marked(status: str, turn: Turn) -> str:
    """The status line of a running turn, with how far its thought and its answer are rendered, if they are at all."""
    thought = _units(turn.reasoning) if turn.reasoning or turn.state == "thinking" else ""
    answer = _units(turn.answer) or ""
    return f'{status} <span class="live" title="{turn.id}/{thought}/{answer}"></span>'


def add_route(api: FastAPI, store: Store) -> None:
    """What the script listens to: one turn's texts as they are stored, until it ends."""

    @api.get(ROUTE + "/{number}")
    def live(number: int) -> StreamingResponse:
        headers = {"cache-control": "no-store"}
        return StreamingResponse(_events(store, number), media_type="text/event-stream", headers=headers)


async def _events(store: Store, number: int) -> AsyncIterator[str]:
    sent = ("", "")
    while texts := store.running_texts.get(number):
        if texts != sent:
            changes = [_change(old, new) for old, new in zip(sent, texts, strict=True)]
            yield f"data: {json.dumps(changes)}\n\n"
            sent = texts
        await asyncio.sleep(1 / UPDATES_PER_S)
    yield "event: end\ndata:\n\n"


def _change(old: str, new: str) -> tuple[int, str]:
    """From where on a text is another, and how it goes on there."""
    return (_units(old), new[len(old) :]) if new.startswith(old) else (0, new)


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2
