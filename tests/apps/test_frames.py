"""A page at rest asks for no frames: in front of a real server, and in a real browser."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, PlainTextResponse
from starlette.middleware.gzip import GZipMiddleware

from apps.access.address import listen
from apps.chat.look.frames import SCRIPT, calm
from tests.apps import test_chat_page
from tests.apps.in_thread import serving
from tests.apps.test_chat_page import DOORS, PATIENCE_S, expect

if TYPE_CHECKING:
    from playwright.sync_api import Browser

browser, scripted_chat = test_chat_page.browser, test_chat_page.scripted_chat
PAGE = "<!doctype html><html><head><title>é</title></head><body>" + "<head>" * 500 + "</body></html>"
COUNT = """
window.frames_asked = 0;
const frame = requestAnimationFrame.bind(window);
window.requestAnimationFrame = (callback) => { window.frames_asked++; return frame(callback); };
"""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    api = FastAPI()
    api.add_middleware(GZipMiddleware, minimum_size=10)
    api.get("/", response_class=HTMLResponse)(lambda: PAGE)
    api.get("/text", response_class=PlainTextResponse)(lambda: PAGE)
    with listen("127.0.0.1", 0) as listener, serving(calm(api), listener):
        yield listener.getsockname()[1]


def ask(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("GET", path, headers={"accept-encoding": "gzip, br"})
    return connection.getresponse().read()


def test_a_page_begins_with_the_script_and_nothing_else_is_touched(port: int) -> None:
    first, found, rest = ask(port, "/").partition(SCRIPT)
    assert found and first.endswith(b"<head>") and (first + rest).decode() == PAGE
    assert ask(port, "/text").decode() == PAGE


@test_chat_page.pytestmark
def test_a_page_at_rest_asks_for_no_frames(browser: Browser, scripted_chat: str) -> None:
    context = browser.new_context()
    context.add_init_script(COUNT)
    page = context.new_page()
    page.goto(DOORS[scripted_chat].get(timeout=PATIENCE_S))
    expect(page.locator("#ledger")).to_contain_text("tokens")
    for _ in range(PATIENCE_S):
        before = page.evaluate("window.frames_asked")
        page.wait_for_timeout(1000)
        if page.evaluate("window.frames_asked") - before <= 3:  # sixty without the script, for ever
            break
    else:
        raise AssertionError("the page goes on asking for frames")
    context.close()
