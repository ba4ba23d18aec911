"""The chat's door, over real sockets in front of the real page: who comes in, and what even they cannot ask."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from apps.access import bounded_body, peer
from apps.access.address import listen
from apps.access.admission import Admission
from apps.access.bounded_body import MOST_BODY_BYTES
from apps.access.guard import Event, Receive, Scope, Send
from apps.chat.conversation.store import Store
from apps.chat.run_chat import build_application
from apps.model import Model
from tests.apps.in_thread import serving
from tests.apps.scripted import ScriptedDecoder
from toolkit.formats.chat_format import ChatFormat
from toolkit.generation.chat_model import LocalChatModel

PATIENCE_S = 60


@dataclass(kw_only=True)
class Chat:
    """A running chat and the addresses that it announced."""

    port: int
    admission: Admission
    announced: list[str] = field(default_factory=list)

    def enter(self) -> str:
        """Open the door and return the cookie."""
        answer = self.ask("GET", self.admission.door.partition(str(self.port))[2])
        found = re.search(r"set-cookie: (.*?);", answer, re.IGNORECASE)
        assert found, answer
        return found[1]

    def ask(self, method: str, path: str, *headers: str, body: bytes = b"") -> str:
        """Send a request line as it is written here; returns the answer, headers first."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", "Connection: close", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        return self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def send(self, request: bytes) -> str:
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as raw:
            raw.sendall(request)
            return b"".join(iter(lambda: raw.recv(65536), b"")).decode(errors="replace")


@pytest.fixture(scope="module")
def chat(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    chat_format = ChatFormat.from_folder(tiny_student)
    decoder = ScriptedDecoder(chat_format, max_length=512, step_s=0.0)
    model = Model(name="scripted", size_bytes=1, chat_model=LocalChatModel(decoder, chat_format))
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        store = Store(tmp_path_factory.mktemp("chats"), time.time)
        announced: list[str] = []
        admission = Admission(f"http://127.0.0.1:{port}", "/", announced.append)
        application = build_application([model], store, admission, frozenset({f"127.0.0.1:{port}"}))
        with serving(application, listener):
            yield Chat(port=port, admission=admission, announced=announced)


def status(answer: str) -> int:
    return int(answer.split(" ", 2)[1])


def test_a_token_opens_the_door_once_and_the_next_is_announced(chat: Chat) -> None:
    door = chat.admission.door
    path = door.partition(str(chat.port))[2]
    first = chat.ask("GET", path)
    assert status(first) == 303 and re.search(r"location: /\r", first, re.IGNORECASE)
    assert re.search(r"set-cookie: chat-\d+=\S+; Path=/; HttpOnly; SameSite=Strict\r", first, re.IGNORECASE)
    assert status(chat.ask("GET", path)) == 403
    assert chat.announced[-1] == chat.admission.door != door
    assert chat.enter() not in first


def test_a_door_that_another_user_read_opens_to_this_user_alone(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = tmp_path / "tcp"
    monkeypatch.setattr(peer, "TABLES", (table,))
    path = chat.admission.door.partition(str(chat.port))[2]
    for owner, expected in ((os.getuid() + 1, 403), (os.getuid(), 303)):
        with socket.create_connection(("127.0.0.1", chat.port), timeout=PATIENCE_S) as raw:
            ours, theirs = (f"0100007F:{port:04X}" for port in (raw.getsockname()[1], chat.port))
            queues = "01 00000000:00000000 00:00000000 00000000"
            table.write_text(
                f"  sl  local_address rem_address   st\n   0: {theirs} {ours} {queues} {os.getuid()}\n"
                f"   1: {ours} {theirs} {queues} {owner}        0 59 1\n"
            )
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{chat.port}\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(partial(raw.recv, 65536), b"")).decode()
        assert status(answer) == expected


@pytest.mark.skipif(not peer.TABLES[0].exists(), reason="the kernel does not tell")
def test_the_kernel_tells_whose_connection_it_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        ends = client.getsockname(), server.getsockname()
        assert peer._owner(peer.TABLES[0], *ends) == os.getuid()
        assert not peer.is_another_user(*ends)
        assert peer._owner(peer.TABLES[0], ("127.0.0.1", 1), ends[1]) is None


def test_the_cookie_opens_the_page(chat: Chat) -> None:
    answer = chat.ask("GET", "/", f"Cookie: other=1; {chat.enter()}")
    assert status(answer) == 200 and "gradio" in answer


@pytest.mark.parametrize("other", ['theme={"a": "b, c"}', "bad key=1", "=", "a;;b", "x=\xe9\x01"])
def test_a_cookie_of_another_server_of_this_host_locks_nobody_out(chat: Chat, other: str) -> None:
    for cookies in (f"{other}; {chat.enter()}", f"{chat.enter()}; {other}"):
        scope = {"headers": [(b"cookie", cookies.encode("latin-1"))]}
        assert chat.admission._knows(scope)
    assert not chat.admission._knows({"headers": [(b"cookie", f"{other}; chat-{chat.port}=x".encode("latin-1"))]})


@pytest.mark.parametrize(
    "path", ["/", "/config", "/assets/x.js", "/theme.css", "/gradio_api/queue/data?session_hash=a"]
)
@pytest.mark.parametrize("cookie", ["", "Cookie: chat-{port}=wrong", "Cookie: chat-1={value}", "Cookie: ;;\x80="])
def test_without_the_cookie_everything_is_locked_and_says_what_to_do(chat: Chat, path: str, cookie: str) -> None:
    value = chat.enter().partition("=")[2]
    answer = chat.ask("GET", path, *filter(None, [cookie.format(port=chat.port, value=value)]))
    assert status(answer) == 403 and "printed" in answer and "gradio" not in answer
    assert "content-security-policy" in answer.lower()


@pytest.mark.parametrize(
    "path", ["/open/", "/open/wrong", "/open/%00", "/open/" + "a" * 5000, "/open/\xff", "/?token=x"]
)
def test_a_wrong_token_is_locked_out_and_uses_nothing_up(chat: Chat, path: str) -> None:
    door = chat.admission.door
    assert status(chat.ask("GET", path)) in (400, 403)
    assert chat.admission.door == door
    assert status(chat.ask("POST", door.partition(str(chat.port))[2])) == 403
    assert chat.admission.door == door


def test_health_is_open(chat: Chat) -> None:
    assert '"status":"ok"' in chat.ask("GET", "/health")


@pytest.mark.parametrize(
    ("site", "mode", "dest", "expected"),
    [
        ("same-origin", "cors", "empty", 200),
        ("none", "navigate", "document", 200),
        ("cross-site", "navigate", "document", 200),
        ("same-site", "cors", "empty", 403),
        ("same-site", "no-cors", "script", 403),
        ("cross-site", "navigate", "iframe", 403),
    ],
)
def test_only_a_person_or_our_page_may_use_the_cookie(
    chat: Chat, site: str, mode: str, dest: str, expected: int
) -> None:
    sent = (f"Sec-Fetch-Site: {site}", f"Sec-Fetch-Mode: {mode}", f"Sec-Fetch-Dest: {dest}")
    assert status(chat.ask("GET", "/", f"Cookie: {chat.enter()}", *sent)) == expected


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/static/../../../../../../../etc/passwd",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/svelte/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy=http://example.invalid/",
        "//etc/passwd",
        "http://127.0.0.1:1/etc/passwd",
    ],
)
def test_no_path_leads_to_a_file_of_this_machine(chat: Chat, path: str) -> None:
    answer = chat.ask("GET", path, f"Cookie: {chat.enter()}")
    assert 400 <= status(answer) < 500 and "root:" not in answer and "This chat is locked" not in answer


def test_a_file_cannot_be_uploaded(chat: Chat) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\nhello\r\n--x--\r\n'
    kind = "Content-Type: multipart/form-data; boundary=x"
    answer = chat.ask("POST", "/gradio_api/upload", f"Cookie: {chat.enter()}", kind, body=body)
    assert 400 <= status(answer) < 500


def head(chat: Chat, *headers: str) -> bytes:
    lines = ["POST /gradio_api/queue/join HTTP/1.1", f"Host: 127.0.0.1:{chat.port}", f"Cookie: {chat.enter()}"]
    return "\r\n".join([*lines, "Content-Type: application/json", *headers]).encode() + b"\r\n\r\n"


def test_a_body_of_100_megabytes_is_refused_before_it_is_read(chat: Chat) -> None:
    assert status(chat.send(head(chat, "Content-Length: 100000000"))) == 413
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with socket.create_connection(("127.0.0.1", chat.port), timeout=PATIENCE_S) as raw:
        raw.sendall(head(chat, "Transfer-Encoding: chunked"))
        for _ in range(MOST_BODY_BYTES // 65536 + 1):
            raw.sendall(piece)
        assert raw.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_comes_too_slowly_is_refused(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_body, "BODY_TIMEOUT_S", 0.2)
    answer = chat.send(head(chat, "Content-Length: 10") + b"{")
    assert status(answer) == 408 and "within 0.2 s" in answer


def test_a_body_within_its_bounds_reaches_the_application_whole() -> None:
    """Ten pieces come in; the application reads them as one, and waits for the client's leaving behind them."""
    pieces = [bytes([i]) * 300_000 for i in range(10)]
    events: list[Event] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    events += [{"type": "http.request", "body": b"end", "more_body": False}, {"type": "http.disconnect"}]
    found: list[Event] = []

    async def receive() -> Event:
        return events.pop(0)

    async def send(event: Event) -> None:
        found.append(event)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        found.extend([await receive(), await receive()])

    async def run() -> None:
        admission = Admission("http://127.0.0.1:1", "/", print)
        path = admission.door.removeprefix("http://127.0.0.1:1")
        scope: Scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        await admission.wrap(application)(scope, receive, send)
        cookie = dict(found.pop(0)["headers"])[b"set-cookie"].partition(b";")[0]
        found.clear()
        headers = [(b"cookie", cookie), (b"transfer-encoding", b"chunked")]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        await admission.wrap(application)(scope, receive, send)

    asyncio.run(run())
    assert [found[0]["body"], found[0]["more_body"]] == [b"".join(pieces) + b"end", False]
    assert found[1:] == [{"type": "http.disconnect"}]
