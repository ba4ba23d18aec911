"""A connection on which no request comes is closed; one whose request is answered is not, however long that takes.

What is no HTTP is answered as the server answers any other error.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from apps.access import patience
from apps.access.address import listen
from apps.access.guard import Receive, Scope, Send
from apps.access.patience import that_tells

SOON_S = 0.3
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def slow(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(3 * SOON_S)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"done"})


def tell(message: str, status: int) -> tuple[bytes, bytes]:
    return f"{status}: {message}".encode(), b"text/own"


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(patience, "HEAD_TIMEOUT_S", SOON_S)
    with listen("127.0.0.1", 0) as listener:
        config = uvicorn.Config(slow, http=that_tells(tell), ws="none", lifespan="off", log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("head", [b"", REQUEST[:10], REQUEST[:-2]])
@pytest.mark.parametrize("before", [b"", REQUEST])
def test_a_request_whose_head_does_not_come_is_not_waited_for(port: int, before: bytes, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        if before:
            client.sendall(before)
            assert b"200 OK" in client.recv(65536)
        client.sendall(head)
        while client.recv(65536):
            pass


def test_a_head_that_trickles_is_not_waited_for_either(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client, pytest.raises(OSError):
        for byte in REQUEST[:-4] + b"\r\nX: " + b"a" * 600:
            client.sendall(bytes([byte]))
            time.sleep(SOON_S / 3)
        pytest.fail("it was waited for")


@pytest.mark.parametrize("request_", [b"\x16\x03\x01 hello\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_what_is_no_http_is_answered_as_any_other_error(port: int, request_: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(request_)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and b"content-type: text/own" in head.lower()
    assert body == b"400: Invalid HTTP request received."


def test_a_body_that_ends_as_no_http_after_its_answer_has_begun_ends_the_connection_alone(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(head)
        assert b"200 OK" in client.recv(65536)
        client.sendall(b"no size of a chunk\r\n\r\n")
        assert b"HTTP/1.1" not in b"".join(iter(lambda: client.recv(65536), b""))
    assert not [record for record in caplog.records if record.exc_info]
