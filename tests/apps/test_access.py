"""Who may ask the server and under which names: other origins and hosts, keys, IPv6, a model's name, unknown routes."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest

from apps.access.address import listen
from apps.server.run_server import allowed_hosts, build_application, run_server
from apps.server.service import Service
from tests.apps.conftest import SUM
from tests.apps.in_thread import serving
from toolkit.errors import InputError

KEY = "a key"
PAGE = "https://page.example"
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    "Access-Control-Request-Private-Network": "true",
}
Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def service(learned: Path) -> Iterator[Service]:
    service = Service(learned, parallel=2, queue=2, api_key=KEY, name="small/one")
    with closing(service.scheduler):
        yield service


@pytest.fixture(scope="module")
def closed(service: Service) -> Iterator[int]:
    """The port of a server with no further origins or hosts."""
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with serving(build_application(service, "127.0.0.1", port), listener):
            yield port


@pytest.fixture(scope="module")
def opened(service: Service) -> Iterator[int]:
    """The port of a server that accepts one page, and two more names."""
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        hosts = frozenset({"model.local", "proxy.example:443"})
        application = build_application(service, "127.0.0.1", port, origins=frozenset({PAGE}), hosts=hosts)
        with serving(application, listener):
            yield port


def ask(port: int, method: str = "GET", path: str = "/v1/models", body: Any = None, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    sent = {"Authorization": f"Bearer {KEY}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    content = None if body is None else json.dumps(body).encode()
    connection.request(method, path, content, sent | ({} if body is None else {"Content-Type": "application/json"}))
    answer = connection.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def test_a_page_of_another_origin_is_refused_unless_it_is_named(closed: int, opened: int) -> None:
    for port, origin in (
        (closed, PAGE),
        (opened, "https://other.example"),
        (opened, "null"),
        (opened, "http://page.example"),
    ):
        for method in ("GET", "OPTIONS"):
            status, headers, _ = ask(port, method, Origin=origin, **(PREFLIGHT if method == "OPTIONS" else {}))
            assert status == 403 and "access-control-allow-origin" not in headers
    status, headers, _ = ask(opened, Origin=PAGE)
    assert (status, headers["access-control-allow-origin"]) == (200, PAGE) and "Origin" in headers["vary"]


def test_a_named_page_may_ask_before_it_asks(opened: int) -> None:
    status, headers, _ = ask(opened, "OPTIONS", "/v1/chat/completions", Origin=PAGE, **PREFLIGHT)
    assert (status, headers["access-control-allow-origin"]) == (200, PAGE)
    assert "POST" in headers["access-control-allow-methods"]
    assert headers["access-control-allow-headers"] == PREFLIGHT["Access-Control-Request-Headers"]
    assert headers["access-control-allow-private-network"] == "true"
    assert "access-control-allow-credentials" not in headers


def test_a_named_page_can_read_refusals(opened: int) -> None:
    for options in ({"Authorization": "Bearer other"}, {"path": "/v1/nothing"}):
        _, headers, body = ask(opened, Origin=PAGE, **options)
        assert headers["access-control-allow-origin"] == PAGE and json.loads(body)["error"]["message"]


@pytest.mark.parametrize("host", ["model.local", "model.local:9", "MODEL.local:80", "proxy.example:443"])
def test_a_named_host_is_answered_under_any_port_or_the_one_that_was_named(opened: int, closed: int, host: str) -> None:
    assert ask(opened, Host=host)[0] == 200
    assert ask(closed, Host=host)[0] == 421


@pytest.mark.parametrize("host", ["proxy.example", "proxy.example:80", "evil.example", "model.local.evil.example", ""])
def test_any_other_host_is_refused(opened: int, host: str) -> None:
    status, _, body = ask(opened, Host=host)
    assert status in (400, 421) and (status == 400 or b"--allow-host" in body)


def test_each_refusal_is_an_error_as_openai_writes_it(closed: int) -> None:
    cases: list[tuple[int, dict[str, str]]] = [
        (421, {"Host": "evil.example"}),
        (403, {"Origin": "http://evil.example"}),
    ]
    cases += [(404, {"path": path}) for path in ("/v1/nothing", "/v1/chat/completions/", "/v1/models/other")]
    for expected, options in cases:
        status, headers, body = ask(closed, **options)
        assert (status, headers["content-type"]) == (expected, "application/json")
        assert json.loads(body)["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"origins": ["page.example"]}, r"--allow-origin \('page.example'\) must be an origin like"),
        ({"origins": ["https://page.example/path"]}, "--allow-origin"),
        ({"hosts": ["https://page.example"]}, r"--allow-host \('https://page.example'\) must be a name like"),
        ({"hosts": ["*"]}, "--allow-host"),
        ({"name": "a\nb"}, r"--name \('a\\nb'\) must be printable"),
        ({"api_key": "a\nsecret"}, r"the key \(8 characters\) must be printable ASCII"),
    ],
)
def test_what_no_browser_or_client_sends_is_refused_before_the_model_is_loaded(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        run_server(tmp_path, host="127.0.0.1", port=0, parallel=1, queue=1, **({"api_key": ""} | options))
    assert "secret" not in str(caught.value)


def test_the_scheme_of_a_key_is_read_in_small_letters_too(closed: int) -> None:
    for sent in (f"bearer {KEY}", f"BEARER {KEY}", f"Bearer  {KEY}"):
        assert ask(closed, Authorization=sent)[0] == 200
    for sent in (KEY, f"Basic {KEY}", "Bearer", f"Bearer {KEY}x", ""):
        status, _, body = ask(closed, Authorization=sent)
        assert status == 401 and json.loads(body)["error"]["code"] == "invalid_api_key"


def test_a_model_is_described_under_the_name_that_it_was_given(closed: int, learned: Path) -> None:
    listed = json.loads(ask(closed)[2])["data"]
    status, _, body = ask(closed, path="/v1/models/small/one")
    assert status == 200 and [json.loads(body)] == listed
    assert listed[0]["id"] == "small/one" and listed[0]["created"] == int((learned / "config.json").stat().st_mtime)
    for path in ("/v1/models/other", "/v1/models/"):
        status, _, body = ask(closed, path=path)
        assert status == 404 and json.loads(body)["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("model", [None, "small/one"])
def test_a_null_model_is_the_one_that_is_served(closed: int, model: str | None) -> None:
    asked = {"model": model, "messages": [{"role": "user", "content": SUM[0]}], "temperature": 0}
    status, _, body = ask(closed, "POST", "/v1/chat/completions", asked)
    answer = json.loads(body)
    assert (status, answer["model"], answer["choices"][0]["message"]["content"]) == (200, "small/one", SUM[2])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("POST", "/", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
    ],
)
def test_what_is_not_served_is_refused_as_openai_refuses_it(closed: int, method: str, path: str, status: int) -> None:
    found, headers, body = ask(closed, method, path)
    error = json.loads(body)["error"]
    assert (found, error["type"], headers["content-type"]) == (status, "invalid_request_error", "application/json")
    assert path in error["message"] and ("allow" in headers) == (status == 405)


def test_the_loopback_address_of_ipv6_is_served(service: Service) -> None:
    try:
        listener = listen("::1", 0)
    except InputError:
        pytest.skip("this machine has no IPv6")
    with listener:
        port = listener.getsockname()[1]
        with serving(build_application(service, "::1", port), listener):
            for host in ("[::1]", "localhost"):
                with socket.create_connection(("::1", port), timeout=60) as raw:
                    raw.sendall(f"GET /health HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
                    assert raw.recv(100).startswith(b"HTTP/1.1 200 ")
            client = openai.OpenAI(base_url=f"http://[::1]:{port}/v1", api_key=KEY, max_retries=0)
            assert [model.id for model in client.models.list()] == ["small/one"]
    assert allowed_hosts("::1", 9) == {"[::1]:9", "127.0.0.1:9", "localhost:9"}
    assert {"[::1]:9", "127.0.0.1:9", f"{socket.gethostname().lower()}:9"} <= allowed_hosts("::", 9)
