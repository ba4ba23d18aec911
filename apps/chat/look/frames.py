"""Lets a page rest: nothing slides, and an endless chain of animation frames is slowed down.

A block that slides open is laid out again in each of twenty frames, just when a turn begins. Gradio's loader (6.31)
counts its seconds in every frame, and continues for ever once it is gone: the browser computes sixty frames a second
for nothing, on a laptop's battery and on the cores that the model needs. Gradio's scripts capture
`requestAnimationFrame` when they load, so this one must come first; Gradio itself would add it after its own.
"""

from __future__ import annotations

from apps.access.guard import Application, Event, Receive, Scope, Send
from apps.chat.look.page_files import script

SCRIPT = script("frames").encode()


def calm(application: Application) -> Application:
    """Wrap an application so that its pages begin with the script; responses are not compressed."""

    async def calmed(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        page: list[Event] = []  # the start of a response that is a page, until its body is complete
        body = b""

        async def send_with_script(event: Event) -> None:
            nonlocal body
            if event["type"] == "http.response.start" and _is_page(event):
                page.append(event)
            elif not page:
                await send(event)
            else:
                body += event.get("body", b"")
                if not event.get("more_body"):
                    body = body.replace(b"<head>", b"<head>" + SCRIPT, 1)
                    headers = [(name, value) for name, value in page[0]["headers"] if name != b"content-length"]
                    await send({**page[0], "headers": [*headers, (b"content-length", str(len(body)).encode())]})
                    await send({"type": "http.response.body", "body": body})

        headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        await application({**scope, "headers": headers}, receive, send_with_script)

    return calmed


def _is_page(event: Event) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/html") for name, value in event["headers"])
