"""What a server may send without harm: event streams by their rules, bounds of size, time and counts, and no key
printed."""

from __future__ import annotations

import gzip
import html
import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import pytest

from tests.http_server import HttpServer, QuietHandler
from toolkit.errors import InputError, Unreachable
from toolkit.generation import bounded_response, endpoint
from toolkit.generation.bounded_response import TIMEOUT_VARIABLE
from toolkit.generation.endpoint import (
    KEY_VARIABLE,
    Chunk,
    ask_listing,
    is_loopback,
    locate,
    parse_address,
    printable,
    stream_chat,
)

Say = Callable[["_Handler"], None]
MODEL = {"id": "far", "max_model_len": 2048}
TROUBLE_S = 60


class RawServer(HttpServer):
    """Answers each request with whatever bytes a test writes; `paths` are those that were asked for."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.paths: list[str] = []
        self.over = threading.Event()

    def __exit__(self, *error: object) -> None:
        self.over.set()
        super().__exit__(*error)


class _Handler(QuietHandler):
    owner: RawServer

    def do_GET(self) -> None:
        self.owner.paths.append(self.path)
        with suppress(BrokenPipeError, ConnectionResetError):
            self.owner.say(self)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)


RawServer.handler = _Handler


def event(**fields: Any) -> str:
    return "data: " + json.dumps({"choices": [{"index": 0, "delta": fields}]}, ensure_ascii=False)


def streaming(*events: str, end: str = "\n\n", **headers: str) -> RawServer:
    return RawServer(lambda handler: handler.send("".join(f"{text}{end}" for text in events).encode(), 200, **headers))


def chunks(server: RawServer) -> list[Chunk]:
    return [chunk for chunk in stream_chat(server.url, {"messages": []}, 0.05) if chunk]


def said(server: RawServer) -> str:
    return "".join(chunk.content for chunk in chunks(server))


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r"])
def test_an_event_ends_at_an_empty_line_and_nowhere_else(end: str) -> None:
    text = "one\u2028two\u2029three\u0085four\x0bfive\x1csix"
    with streaming(event(content=text), ": a comment", event(content=" seven"), end=end) as server:
        assert said(server) == f"{text} seven"


def test_an_event_may_have_its_data_in_lines_and_other_fields() -> None:
    lines = 'event: message\nid: 5\nretry: 10\ndata: {"choices": [{"delta":\ndata:{"content": "one"}}]}'
    with streaming(lines, "event: ping", "id: 6", "data:", event(content=" two")) as server:
        assert said(server) == "one two"


def test_a_stream_is_unicode_whatever_its_header_says() -> None:
    with streaming(event(content="é…"), Content_Type="text/plain; charset=latin-1") as server:
        assert said(server) == "é…"


def test_a_byte_order_mark_costs_no_event() -> None:
    content = f"\ufeff{event(content='one ')}\n\n{event(content='two')}\n\n".encode()
    with RawServer(lambda handler: handler.send(content)) as server:
        assert said(server) == "one two"


@pytest.mark.parametrize(
    "data", ['{"message": "no memory left"}', '{"error": {"message": "no memory left"}}', "no memory left"]
)
def test_what_an_event_of_the_kind_error_says_is_told(data: str) -> None:
    server = streaming(event(content="one"), f"event: error\ndata: {data}")
    with server, pytest.raises(InputError, match=r"broke off: .*no memory left"):
        chunks(server)


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1", "127.1", "0", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "0x0", "2130706433"],
)
def test_each_way_to_write_this_machine_is_asked_without_a_proxy(host: str) -> None:
    assert is_loopback(f"http://{host}:8080/v1")


@pytest.mark.parametrize("host", ["example.org", "10.0.0.1", "localhost.example.org", "1", "[2001:db8::1]"])
def test_no_other_machine_is_taken_for_this_one(host: str) -> None:
    assert not is_loopback(f"http://{host}:8080/v1")


def test_an_https_address_of_a_server_without_tls_is_named_with_http_before_it() -> None:
    with RawServer(lambda handler: handler.send(b"{}")) as server:
        address = server.url.replace("http:", "https:")
        for ask in (locate, ask_listing):
            with pytest.raises(Unreachable, match=f"^{address} does not speak https; try {server.url}$"):
                ask(address)


def test_an_http_address_that_sends_no_http_is_named_with_https_before_it() -> None:
    with RawServer(lambda handler: None) as server, pytest.raises(Unreachable) as caught:
        ask_listing(server.url)
    assert str(caught.value).endswith(f"if it speaks https, try {server.url.replace('http:', 'https:')}")


def test_an_address_without_its_v1_is_named_with_it() -> None:
    def say(handler: _Handler) -> None:
        there = handler.path == "/v1/models"
        handler.send(json.dumps({"data": [MODEL]}).encode() if there else b"not here", 200 if there else 404)

    with RawServer(say) as server:
        short = server.url.removesuffix("/v1")
        with pytest.raises(InputError, match=rf"^{short} lists no models \(404.*\); did you mean {server.url}, which "):
            locate(short)
        assert locate(server.url).model == "far"
        with pytest.raises(InputError, match="the one to use must be named: add #MODEL"):
            locate(f"{short}/other")


def test_nothing_counts_after_the_end() -> None:
    with streaming(event(content="one"), "data: [DONE]", event(content="two"), "data: {") as server:
        assert said(server) == "one"


def test_half_a_surrogate_pair_becomes_a_sign_of_its_loss() -> None:
    with streaming('data: {"choices": [{"delta": {"content": "a\\ud800b \\ud83d\\ude00"}}]}') as server:
        assert said(server) == "a\ufffdb \U0001f600"


@pytest.mark.parametrize(
    "count", ["1000000000000000000", "Infinity", "-1", "1e400", "12.5", "true", '"12"', "[12]", "NaN"]
)
def test_a_count_that_is_none_does_not_count(count: str) -> None:
    with streaming(f'data: {{"choices": [], "usage": {{"completion_tokens": {count}}}}}') as server:
        assert [chunk.completion_tokens for chunk in chunks(server)] == [None]


@pytest.mark.parametrize("data", ["[" * 100_000, "[]", "5", '"text"', '{"choices": 5}', '{"choices": [5]}', "1" * 5000])
def test_what_is_no_chunk_is_one_line(data: str) -> None:
    with streaming(f"data: {data}") as server, pytest.raises(InputError, match="sends no chunks") as caught:
        chunks(server)
    assert len(str(caught.value)) < 400


def test_whatever_goes_wrong_while_reading_reaches_the_reader() -> None:
    with streaming() as server, pytest.raises(InputError, match="not JSON serializable"):
        next(stream_chat(server.url, {"messages": object()}, TROUBLE_S))
    with (
        streaming(event(content="one"), Content_Encoding="gzip") as server,
        pytest.raises(InputError, match="did not answer to the end"),
    ):
        next(stream_chat(server.url, {}, TROUBLE_S))


def test_an_event_and_all_events_have_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    with streaming(event(content="x" * 2_000_000)) as server, pytest.raises(InputError, match="byte limit"):
        chunks(server)
    monkeypatch.setattr(bounded_response, "MOST_STREAM_BYTES", 1000)
    with (
        streaming(*[event(content="x" * 100)] * 20) as server,
        pytest.raises(InputError, match="more than 1000 bytes of events"),
    ):
        chunks(server)


def test_a_body_has_a_largest_size_however_it_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_response, "MOST_BODY_BYTES", 1_000_000)
    bomb = gzip.compress(gzip.compress(bytes(50_000_000)))
    for content, packing in ((bytes(1_000_001), ""), (bomb, "gzip, gzip")):
        refused = RawServer(lambda handler: handler.send(content, 500, Content_Encoding=packing))  # noqa: B023
        with refused as server:
            for ask in (lambda server: ask_listing(server.url), chunks):
                with pytest.raises(InputError, match="more than 1000000 bytes"):
                    ask(server)


def drip(handler: _Handler, piece: bytes, pause_s: float) -> None:
    """Send a piece again and again, until the test is over."""
    handler.send(b"")
    while not handler.owner.over.wait(pause_s):
        handler.wfile.write(piece)


def test_a_server_that_drips_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "LISTING_TIMEOUT_S", 0.1)
    with RawServer(lambda handler: drip(handler, b" ", 0.02)) as server:
        with pytest.raises(InputError, match=r"was not complete within 0\.3 s"):
            ask_listing(server.url)
        monkeypatch.setenv(TIMEOUT_VARIABLE, "0.2")
        with pytest.raises(InputError, match=rf"sent no event for 0\.2 s; set {TIMEOUT_VARIABLE}"):
            chunks(server)
    for nothing in (b": still here\n\n", b"event: ping\n\n", b"data:\n\n", b"id: 1\ndata: \n\n"):
        dripping = RawServer(lambda handler: drip(handler, nothing, 0.02))  # noqa: B023
        with dripping as server, pytest.raises(InputError, match="sent no event for"):
            chunks(server)


def test_a_slow_stream_that_goes_on_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT_VARIABLE, "1")

    def say(handler: _Handler) -> None:
        handler.send(b"")
        for _ in range(8):
            handler.wfile.write(f"{event(content='x')}\n\n".encode())
            time.sleep(0.2)

    with RawServer(say) as server:
        assert said(server) == "x" * 8


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf", "nan"])
def test_a_time_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(TIMEOUT_VARIABLE, text)
    with pytest.raises(InputError, match=rf"{TIMEOUT_VARIABLE} \('{text}'\) must be a number of seconds above 0"):
        bounded_response.silence_s()


def listing(described: dict[str, Any], properties: Any = None) -> RawServer:
    def say(handler: _Handler) -> None:
        answer = properties if handler.path == "/props" else {"data": [described]}
        handler.send(json.dumps(answer).encode())

    return RawServer(say)


@pytest.mark.parametrize(
    ("described", "properties", "context"),
    [
        ({"max_model_len": 512}, None, 512),
        ({"context_window": 513}, None, 513),
        ({"owned_by": "llamacpp", "meta": {"n_ctx_train": 9999, "n_ctx": 514}}, None, 514),
        ({"owned_by": "llamacpp", "meta": {"n_ctx_train": 9999}}, {"default_generation_settings": {"n_ctx": 515}}, 515),
        ({"owned_by": "llamacpp", "meta": None}, {"error": "?"}, None),
        ({"owned_by": "llamacpp"}, ["?"], None),
        ({"max_model_len": 10**12, "context_length": 516}, None, 516),
        ({"max_model_len": "long"}, None, None),
    ],
)
def test_the_context_is_read_from_wherever_servers_tell_it(
    described: dict[str, Any], properties: Any, context: int | None
) -> None:
    with listing({"id": "far", **described}, properties) as server:
        assert locate(server.url).max_length == context
        assert ("/props" in server.paths) == (properties is not None), "only llama-server is asked"


@pytest.mark.parametrize("key", ["sk-123", 'sk-"quoted"', "sk-\\back/slash+%"])
def test_a_key_that_a_server_says_is_in_no_message(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    sent: list[str] = []

    def refuse(handler: _Handler) -> None:
        sent.append(handler.headers["Authorization"])
        handler.send_response(401, f"No {key}")
        handler.end_headers()
        handler.wfile.write(json.dumps({"error": {"message": f"{key} is wrong", "data": [{"id": key}] * 2}}).encode())

    names = json.dumps({"data": [{"id": key}, {"id": "other"}]}).encode()
    broken = streaming(f"data: {json.dumps({'error': {'message': f'no {key}'}})}")
    for server, fails in (
        (RawServer(refuse), chunks),
        (RawServer(refuse), lambda server: locate(server.url)),
        (RawServer(lambda handler: handler.send(names)), lambda server: locate(server.url)),
        (broken, chunks),
    ):
        with server, pytest.raises(InputError) as caught:
            fails(server)
        assert f"[{KEY_VARIABLE}]" in str(caught.value)
        assert not any(part in str(caught.value) for part in ("123", "quoted", "slash"))
    assert sent == [f"Bearer {key}"] * 2


ESCAPES: dict[str, Callable[[str], str]] = {
    "a solidus in PHP": lambda key: key.replace("/", "\\/"),
    "JSON in JSON": lambda key: json.dumps(json.dumps(key)[1:-1])[1:-1],
    "PHP in JSON": lambda key: json.dumps(key.replace("/", "\\/"))[1:-1],
    "Go": lambda key: "".join(f"\\u{ord(c):04x}" if c in "&<>" else c for c in key),
    "Go, in capitals": lambda key: "".join(f"\\u{ord(c):04X}" if c in "&<>" else c for c in key),
    "all in JSON": lambda key: "".join(f"\\u{ord(c):04x}" for c in key),
    "C": lambda key: "".join(f"\\x{ord(c):02x}" for c in key),
    "octal": lambda key: "".join(f"\\{ord(c):03o}" for c in key),
    "HTML": html.escape,
    "HTML by number": lambda key: "".join(f"&#{ord(c)};" for c in key),
    "HTML by hexadecimal number": lambda key: "".join(f"&#X{ord(c):X};" for c in key),
    "HTML in HTML": lambda key: html.escape(html.escape(key)),
    "HTML by name": lambda key: key.replace("&", "&AMP;").replace("/", "&sol;"),
    "an address": lambda key: quote(key, safe=""),
    "an address but for solidi": quote,
    "an address in small letters": lambda key: re.sub("%..", lambda found: found[0].lower(), quote(key, safe="")),
    "an address in an address": lambda key: quote(quote(key, safe=""), safe=""),
    "all in an address": lambda key: "".join(f"%{ord(c):02X}" for c in key),
}


@pytest.mark.parametrize("way", ESCAPES)
def test_a_key_is_in_no_message_however_a_server_escapes_it(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    key = """sk-secret/12&<3>"+='~"""
    monkeypatch.setenv(KEY_VARIABLE, key)
    assert printable(f"no {ESCAPES[way](key)}!") == repr(f"no [{KEY_VARIABLE}]!")
    assert printable("no sk-secret") == "'no sk-secret'", "what is not the key stays"


def test_a_long_text_is_searched_for_the_key_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-\\secret")
    begun = time.monotonic()
    printable("\\" * 1_000_000 + "sk-" * 1_000_000 + "&amp;" * 100_000)
    assert time.monotonic() - begun < 10


def test_a_key_with_a_line_break_inside_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret\nmore")
    with (
        streaming() as server,
        pytest.raises(InputError, match=r"number 7 is not \(a line break, perhaps\)") as caught,
    ):
        chunks(server)
    assert "secret" not in str(caught.value) and server.paths == []
    monkeypatch.setenv(KEY_VARIABLE, "secret\n")
    with listing(MODEL) as server:
        assert locate(server.url).model == "far"


def test_what_a_server_says_reaches_the_terminal_as_printable_text() -> None:
    def say(handler: _Handler) -> None:
        handler.send_response(500, "Bad\x1b[2J")
        handler.end_headers()
        handler.wfile.write(b"\x1b[31m\r\n red")

    with RawServer(say) as server, pytest.raises(InputError) as caught:
        chunks(server)
    assert str(caught.value).isprintable() and printable("\x1b\n").isprintable()
    assert parse_address(server.url) == (server.url, "")
