"""The guard in front of a real server: who is answered, and under which policy."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Iterator

import pytest
from fastapi import FastAPI

from apps.access.address import listen
from apps.access.guard import CONTENT_SECURITY_POLICY, Event, Receive, Scope, Send, guard
from tests.apps.in_thread import serving

OURS = "http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    api = FastAPI()

    @api.get("/")
    def read() -> dict[str, str]:
        return {"said": "hello"}

    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with serving(guard(api, frozenset({f"127.0.0.1:{port}"})), listener):
            yield port


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


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:{port}", ""]
)
def test_a_page_of_another_origin_gets_403(port: int, origin: str) -> None:
    answer = ask(port, f"127.0.0.1:{port}", Origin=origin.format(port=port))
    assert answer.status == 403 and b"hello" not in answer.read()


def test_our_own_origin_is_answered(port: int) -> None:
    assert ask(port, f"127.0.0.1:{port}", Origin=OURS.format(port=port)).status == 200


def test_two_host_headers_are_not_answered(port: int) -> None:
    assert ask(port, f"127.0.0.1:{port}", "evil.example").status in (400, 421)


def test_every_answer_carries_the_policy(port: int) -> None:
    for host in (f"127.0.0.1:{port}", "evil.example"):
        assert ask(port, host).getheader("content-security-policy") == CONTENT_SECURITY_POLICY
    assert "http" not in CONTENT_SECURITY_POLICY and "*" not in CONTENT_SECURITY_POLICY


def test_no_page_may_frame_an_answer_or_read_it(port: int) -> None:
    answer = ask(port, f"127.0.0.1:{port}")
    assert "frame-ancestors 'none'" in CONTENT_SECURITY_POLICY and answer.getheader("x-frame-options") == "DENY"
    assert answer.getheader("cross-origin-opener-policy") == "same-origin"
    assert answer.getheader("cross-origin-resource-policy") == "same-origin"
    assert "camera=()" in (answer.getheader("permissions-policy") or "")


@pytest.mark.parametrize("foreign", [{"host": "evil.example"}, {"origin": "http://evil.example"}, {}])
def test_a_websocket_of_another_host_or_origin_is_refused(port: int, foreign: dict[str, str]) -> None:
    """The last case is ours: uvicorn has no websockets here, so the application is asked directly."""
    headers = {"host": "ours:1", "origin": "http://ours:1"} | foreign
    scope = {"type": "websocket", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    said: list[str] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        said.append("asked")

    async def send(event: Event) -> None:
        said.append(event["type"])

    async def receive() -> Event:
        return {"type": "websocket.connect"}

    async def connect() -> None:
        await guard(application, frozenset({"ours:1"}))(scope, receive, send)

    asyncio.run(connect())
    assert said == (["websocket.close"] if foreign else ["asked"])
