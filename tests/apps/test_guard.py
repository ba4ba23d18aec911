"""The guard in front of a real server: who is answered, and under which policy."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from fastapi import FastAPI, WebSocket

from apps.guard import CONTENT_SECURITY_POLICY, guard


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    api = FastAPI()

    @api.get("/")
    def read() -> dict[str, str]:
        return {"said": "hello"}

    @api.websocket("/socket")
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(guard(api, frozenset({f"127.0.0.1:{port}"})), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield port
        server.should_exit = True
        thread.join()


def ask(port: int, *hosts: str, path: str = "/", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest("GET", path, skip_host=True)
    for host in hosts:
        connection.putheader("Host", host)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    return connection.getresponse()


def test_the_printed_address_is_answered(port: int) -> None:
    answer = ask(port, f"127.0.0.1:{port}")
    assert (answer.status, answer.read()) == (200, b'{"said":"hello"}')


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "evil.example:{port}", ""])
def test_any_other_host_gets_421(port: int, host: str) -> None:
    answer = ask(port, host.format(port=port))
    assert answer.status == 421 and b"hello" not in answer.read()


def test_two_host_headers_are_not_answered(port: int) -> None:
    assert ask(port, f"127.0.0.1:{port}", "evil.example").status in (400, 421)


def test_every_answer_carries_the_policy(port: int) -> None:
    for host in (f"127.0.0.1:{port}", "evil.example"):
        assert ask(port, host).getheader("content-security-policy") == CONTENT_SECURITY_POLICY
    assert "http" not in CONTENT_SECURITY_POLICY and "*" not in CONTENT_SECURITY_POLICY


def test_a_websocket_of_another_host_is_refused(port: int) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    assert ask(port, "evil.example", path="/socket", **upgrade).status in (403, 421)
