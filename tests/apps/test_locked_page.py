"""A browser at the door, and the badge when the model is elsewhere or a connection leaves the machine."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.apps import test_chat_page
from tests.apps.streaming_server import StreamingServer, delta, usage
from tests.apps.test_chat_page import DOORS, PATIENCE_S, ask, expect, opened, picture, server
from tests.apps.test_connections import own_address

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark, browser = test_chat_page.pytestmark, test_chat_page.browser

CHAT = ("-m", "toolkit", "chat", "--window", "none", "--endpoint")
CONNECTED = (
    "import runpy, socket, sys; host, port = sys.argv[1:3]; del sys.argv[1:3];"
    "kept = socket.create_connection((host, int(port))); runpy.run_module('tests.apps.scripted', run_name='__main__')"
)
"""A chat that talks to an address outside the loopback interface."""
THOUGHT = "Both are multiples of 12."


@pytest.fixture(scope="module")
def far() -> Iterator[StreamingServer]:
    events = [delta(reasoning_content=THOUGHT), delta(content="The answer is "), delta(content="**12**.")]
    with StreamingServer([*events, delta("stop"), usage(17)]) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def chat(far: StreamingServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(*CHAT, far.url, "--data", str(tmp_path_factory.mktemp("chats"))) as address:
        yield address


def test_an_endpoint_answers_in_the_page_and_the_badge_names_its_host(browser: Browser, chat: str) -> None:
    with opened(browser, chat) as page:
        expect(page.locator("#title")).to_contain_text("answers from 127.0.0.1:")
        expect(page.locator("#chat")).not_to_contain_text("stay on this machine")
        ask(page, "Which number divides 84 and 36?")
        expect(page.locator("#chat .bot-row").last).to_contain_text("The answer is 12.")
        expect(page.locator("#status")).to_contain_text(re.compile(r"\d+ reasoning \+ \d+ answer tokens"))
        expect(page.locator("#badge [role=status]")).to_have_text("Questions go to 127.0.0.1 and nowhere else")
        page.locator("#chat .thought-group .title").click()
        expect(page.locator("#chat .thought-group")).to_contain_text(THOUGHT)
        picture(page, "endpoint")


def test_a_connection_that_leaves_turns_the_badge_to_a_warning(
    browser: Browser,
    tiny_student: Path,
    tmp_path: Path,
) -> None:
    with socket.create_server((own_address(), 0)) as listener:
        host, port = listener.getsockname()
        with (
            server("-c", CONNECTED, host, str(port), str(tiny_student), str(tmp_path)) as address,
            opened(browser, address) as page,
        ):
            badge = page.locator("#badge [role=status]")
            expect(badge).to_have_text(f"Connected to {host}:{port}")
            expect(badge).to_have_attribute("data-state", "warning")
            picture(page, "warning")


def test_a_second_browser_is_locked_out_until_it_has_an_address_of_its_own(browser: Browser, chat: str) -> None:
    used = DOORS[chat].get(timeout=PATIENCE_S)
    first, second = browser.new_context(), browser.new_context()
    page, other = first.new_page(), second.new_page()
    page.goto(used)
    page.wait_for_selector("#question textarea")
    for address in (used, chat):
        answer = other.goto(address)
        assert answer and answer.status == 403
        expect(other.locator("h1")).to_have_text("This chat is locked")
    picture(other, "locked")
    page.goto(chat)
    page.wait_for_selector("#question textarea")
    assert page.evaluate("document.cookie") == ""
    other.goto(DOORS[chat].get(timeout=PATIENCE_S))
    other.wait_for_selector("#question textarea")
    first.close()
    second.close()


def test_a_page_of_another_port_can_neither_frame_nor_read_nor_ask_the_chat(browser: Browser, chat: str) -> None:
    """A page on another port of the same host is the same site: its requests carry the cookie."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(DOORS[chat].get(timeout=PATIENCE_S))
    page.wait_for_selector("#question textarea")
    with StreamingServer([]) as foreign:
        page.goto(f"{foreign.url}/models")
        statuses: list[int] = []
        context.on("response", lambda answer: statuses.append(answer.status) if answer.url.startswith(chat) else None)
        reached = page.evaluate(
            """async (chat) => {
              const asked = [{}, { method: "POST" }].map((how) => fetch(chat + "config", { credentials: "include", ...how }));
              const frame = document.createElement("iframe");
              frame.src = chat;
              const framed = new Promise((done) => (frame.onload = done));
              document.body.append(frame);
              await framed;
              return (await Promise.allSettled(asked)).filter((one) => one.status === "fulfilled").length;
            }""",
            chat,
        )
    assert reached == 0 and set(statuses) == {403}
    context.close()
