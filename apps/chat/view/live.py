"""Streams the running turn's newest text, which the page appends as plain text between two renderings.

    model ─ piece ─ store ─ feed ─┬─ RENDERS_PER_S times a second ─ Gradio ─ the conversation as Markdown
                                  └─ UPDATES_PER_S times a second ─ /live/TURN ─ live.js ─ what is not rendered yet

A rendering costs the browser 20 ms or more of a core that the model needs, appending text only a few. A mark in the
status line says which turn runs and how far its texts are rendered, so that no letter is shown twice or missing.
Positions are counted in UTF-16 units, as browsers do.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping

from fastapi import FastAPI
from starlette.responses import StreamingResponse

from apps.chat.conversation.author import UPDATES_PER_S
from apps.chat.conversation.feed import Feed
from apps.chat.conversation.turn import Turn

ROUTE = "/live"


def marked(status: str, turn: Turn) -> str:
    """Add a mark to a running turn's status line: how far its thought and its answer are rendered, if at all."""
    thought = _units(turn.reasoning) if turn.reasoning or turn.state == "thinking" else ""
    answer = _units(turn.answer) or ""
    return f'{status} <span class="live" title="{turn.id}/{thought}/{answer}"></span>'


def add_route(api: FastAPI, feeds: Mapping[int, Feed]) -> None:
    """Add the route that the script listens to: the texts of one turn as they are published, until it ends.

    `feeds`: the number of each turn that is being written → its feed.
    """

    @api.get(ROUTE + "/{number}")
    def live(number: int) -> StreamingResponse:
        headers = {"cache-control": "no-store"}
        return StreamingResponse(_events(feeds, number), media_type="text/event-stream", headers=headers)


async def _events(feeds: Mapping[int, Feed], number: int) -> AsyncIterator[str]:
    sent = ("", "")
    while feed := feeds.get(number):
        turn = feed.newest.turn
        texts = (turn.reasoning, turn.answer)
        if texts != sent:
            changes = [_change(old, new) for old, new in zip(sent, texts, strict=True)]
            yield f"data: {json.dumps(changes)}\n\n"
            sent = texts
        await asyncio.sleep(1 / UPDATES_PER_S)
    yield "event: end\ndata:\n\n"


def _change(old: str, new: str) -> tuple[int, str]:
    """Return the position from which the new text differs, and the text from there on."""
    return (_units(old), new[len(old) :]) if new.startswith(old) else (0, new)


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2
