"""Serves one fixed chat completion as fast as an asyncio server can; prints its port first."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress

COMPLETION = {
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "reasoning_content": "Twice the number is the number and itself. " * 30,
                "content": "It is 4.",
            },
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 20, "completion_tokens": 300},
}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
LISTING, ANSWER = (json.dumps(body).encode() for body in ({"data": [{"id": "bare"}]}, COMPLETION))


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    pause_s = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
            await reader.readexactly(length)
            await asyncio.sleep(pause_s)
            body = ANSWER if head.startswith(b"post") else LISTING
            writer.write(HEAD % len(body) + body)
            await writer.drain()
    writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
