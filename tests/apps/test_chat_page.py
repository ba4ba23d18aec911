"""The chat page in a real browser, over a real server in a process of its own.

The exact flow runs on a scripted decoder, one conversation on a real exported folder. Every test ends by checking that
the page made requests to this server only and left its console empty.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.apps.scripted import LONG
from tests.processes import started

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (Debian: apt-get install chromium)")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_S = 60
"""Long enough for a slow machine; on a usual one nothing waits this long."""
expect.set_options(timeout=PATIENCE_S * 1000)
ROOT = Path(__file__).parents[2]
SCREENSHOTS = os.environ.get("CHAT_SCREENSHOTS")
"""A folder for pictures of the main views, if they are wanted."""

RUN_CHAT = (
    "import sys, pathlib, apps.chat.run_chat; apps.chat.run_chat.run_chat(*map(pathlib.Path, "
    "sys.argv[1:]), port=0, window='none')"
)
DOORS: dict[str, queue.SimpleQueue[str]] = {}
"""A server's address → addresses that open its chat, each once, as the server prints them."""


@contextmanager
def server(*arguments: str) -> Iterator[str]:
    """Start a chat server and yield its address once its `/health` answers."""
    with started(r"(http://127\.0\.0\.1:\d+/)open/\S+", *arguments) as (process, found):
        address = found[1]
        DOORS[address] = queue.SimpleQueue()
        DOORS[address].put(found[0])
        threading.Thread(target=_note_doors, args=(process.stdout, DOORS[address]), daemon=True).start()
        wait_for_health(address)
        yield address


def _note_doors(printed: IO[str], doors: queue.SimpleQueue[str]) -> None:
    for line in printed:
        if found := re.search(r"http://\S+/open/\S+", line):
            doors.put(found.group())


def wait_for_health(address: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(address + "health", timeout=5) as answer:
                assert json.load(answer)["status"] == "ok"
                return
        except OSError:
            assert time.monotonic() < deadline, "the server must answer /health"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def scripted_chat(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data = tmp_path_factory.mktemp("chats")
    with server("-m", "tests.apps.scripted", str(tiny_student), str(data)) as address:
        yield address


@contextmanager
def opened(browser: Browser, address: str, *, width: int = 1280, expected: tuple[str, ...] = ()) -> Iterator[Page]:
    """Open a fresh tab on the chat; at the end it must have asked this server only and have a clean console.

    `expected`: messages that the console may hold nevertheless.
    """
    context = browser.new_context(
        viewport={"width": width, "height": 800}, permissions=["clipboard-read", "clipboard-write"]
    )
    context.set_default_timeout(PATIENCE_S * 1000)
    page = context.new_page()
    asked: list[str] = []
    complaints: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda websocket: asked.append(websocket.url))
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    try:
        page.goto(DOORS[address].get(timeout=PATIENCE_S))
        page.wait_for_selector("#question textarea")
        page.wait_for_selector("#badge p[data-state]")  # the last of the page's own scripts to be heard of
        yield page
    except BaseException as error:
        error.add_note(f"the page showed: {page.inner_text('body')!r}")
        raise
    finally:
        context.close()
    assert [said for said in complaints if not said.startswith(expected)] == []
    assert asked and {urlsplit(url).hostname for url in asked if not url.startswith("data:")} == {"127.0.0.1"}


def open_settings(page: Page) -> None:
    """Open the panel and wait: just after it is shown, it sets its values again, over what a fast test has typed."""
    page.click("#settings button")
    page.wait_for_timeout(500)


def ask(page: Page, question: str) -> None:
    page.fill("#question textarea", question)
    page.keyboard.press("Enter")
    expect(page.locator("#chat .user-row").last).to_contain_text(question.partition("<")[0][:20])
    expect(page.locator("#question textarea")).to_have_value("")


def picture(page: Page, name: str) -> None:
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


WATCH = """
window.views = [];
new MutationObserver(() => {
  const thoughts = [...document.querySelectorAll("#chat .thought-group")];
  const answers = [...document.querySelectorAll("#chat .bot-row")].filter((row) => !row.querySelector(".thought-group"));
  const view = {
    title: thoughts.at(-1)?.querySelector(".title").innerText.trim() ?? "",
    reasoning: thoughts.at(-1)?.querySelector(".message-content")?.innerText.trim() ?? "",
    answer: answers.at(-1)?.innerText.trim() ?? "",
  };
  if (JSON.stringify(view) !== JSON.stringify(window.views.at(-1))) window.views.push(view);
}).observe(document.getElementById("chat"), { subtree: true, childList: true, characterData: true });
"""
"""Records each state that the page goes through, so that no test has to look at the right moment."""


@pytest.mark.parametrize("width", [1280, 360])
def test_reasoning_streams_then_closes_then_the_answer_stands_below(
    browser: Browser, scripted_chat: str, width: int
) -> None:
    with opened(browser, scripted_chat, width=width) as page:
        picture(page, f"empty-{width}")
        page.wait_for_selector("#chat")  # the page builds itself piece by piece
        page.evaluate(WATCH)
        ask(page, "Which number divides 84 and 36?")
        answer = page.locator("#chat .bot-row").filter(has_not=page.locator(".thought-group"))
        expect(answer).to_contain_text("The answer is 12.")
        page.wait_for_selector("#question .submit-button")
        picture(page, f"answered-{width}")
        views = page.evaluate("views")
        thinking = [view for view in views if view["reasoning"] and not view["answer"]]
        assert len({view["reasoning"] for view in thinking}) > 1, "the reasoning must stream before the answer"
        assert thinking[0]["title"].startswith("Thinking…")
        assert all(view["title"].startswith("Thought for") for view in views if view["answer"])

        thought = page.locator("#chat .thought-group")
        expect(thought).not_to_contain_text(
            "The last remainder that is not zero is 12."
        )  # closed, once it has slid shut
        expect(thought).to_contain_text(re.compile(r"Thought for \d+\.\d s · \d+ tokens"))
        top, below = thought.bounding_box(), answer.bounding_box()
        assert top and below and top["y"] < below["y"]
        expect(page.locator("#status")).to_contain_text(
            re.compile(r"\d+ reasoning \+ \d+ answer tokens · \d+\.\d tokens/s")
        )
        thought.locator(".title").click()
        expect(thought).to_contain_text("The last remainder that is not zero is 12.")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("part", ["thought", "answer"])
def test_no_letter_is_missing_or_twice_while_a_text_grows(browser: Browser, scripted_chat: str, part: str) -> None:
    """Whole renderings and the text between them arrive separately."""
    with opened(browser, scripted_chat) as page:
        page.wait_for_selector("#chat")
        page.evaluate(WATCH)
        ask(page, f"A long {part}, please")
        expect(page.locator("#chat .bot-row").last).to_contain_text("Step 12:")
        page.click("#question .stop-button")
        page.wait_for_selector("#question .submit-button")
        kind = "reasoning" if part == "thought" else "answer"
        texts = [view[kind].partition("\n")[0] for view in page.evaluate("views")]
        grown = [text for text in dict.fromkeys(texts) if text and "Stopped" not in text]
        assert len(grown) > 20 and all(LONG.startswith(text) for text in grown), grown[-3:]
        assert page.locator("#chat .tail").count() == 0


@pytest.mark.parametrize("part", ["thought", "answer"])
def test_stop_in_a_second_question_keeps_the_partial_text(browser: Browser, scripted_chat: str, part: str) -> None:
    with opened(browser, scripted_chat) as page:
        ask(page, "Which number divides 84 and 36?")
        page.wait_for_selector("#question .submit-button")
        ask(page, f"A long {part}, please")
        last = page.locator("#chat .bot-row").last
        expect(last).to_contain_text("Step 5:")
        page.click("#question .stop-button")
        page.wait_for_selector("#question .submit-button")
        expect(last).to_contain_text("Stopped")
        kept = page.locator("#chat .bot-row .message-content").nth(-2).inner_text()
        assert "Step 5:" in kept and LONG.startswith(kept.strip()) and len(kept) < len(LONG)
        picture(page, f"stopped-{part}")
        page.wait_for_timeout(300)
        assert page.locator("#chat .bot-row .message-content").nth(-2).inner_text() == kept
        ask(page, "And 84 and 36 again?")
        expect(page.locator("#chat .bot-row").last).to_contain_text("The answer is 12.")
        expect(page.locator("#chat")).to_contain_text("Step 5:")


def test_markup_in_an_answer_is_shown_as_text_and_copied_as_written(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat) as page:
        ask(page, "Some markup, please")
        answer = page.locator("#chat .bot-row").last
        expect(page.locator("#chat .code_wrap")).to_contain_text("<\u2060p>code<\u2060/p>")
        page.wait_for_selector("#question .submit-button")
        expect(answer).to_contain_text("<\u2060script>alert(1)<\u2060/script>")
        expect(answer).to_contain_text("a<\u2060b>c")
        assert answer.locator("img, script, b").count() == 0
        assert answer.locator(".katex").count() == 2
        answer.hover()
        answer.get_by_label("Copy message").click()
        page.wait_for_function("navigator.clipboard.readText().then((text) => text !== '')")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("<img src=http://example.invalid/a.png> ![x](http") and copied.endswith(
            "<p>code</p>\n```"
        )
        picture(page, "markup")


def test_an_example_asks_itself_and_new_chat_starts_over(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat) as page:
        page.locator("#chat .example").first.click()
        expect(page.locator("#chat .user-row")).to_contain_text("Greatest Common Divisor")
        expect(page.locator("#chat .bot-row").last).to_contain_text("The answer is 12.")
        ask(page, "A long thought, please")
        page.wait_for_selector("#question .stop-button")
        page.click("#new-chat")
        expect(page.locator("#chat .example")).to_have_count(4)
        ask(page, "84 and 36?")
        expect(page.locator("#chat .bot-row").last).to_contain_text("The answer is 12.")
        expect(page.locator("#chat .user-row")).to_have_count(1)


def test_a_second_tab_waits_for_the_first_and_is_told(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat) as first, opened(browser, scripted_chat) as second:
        ask(first, "A long thought, please")
        expect(first.locator("#chat .thought-group")).to_contain_text("Step 1")
        ask(second, "84 and 36?")
        expect(second.locator("#status")).to_contain_text("another tab")
        first.click("#question .stop-button")
        expect(second.locator("#chat .bot-row").last).to_contain_text("The answer is 12.")
        expect(first.locator("#chat .bot-row").last).to_contain_text("Stopped")


def test_a_closed_tab_frees_the_model(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat) as first:
        ask(first, "A long thought, please")
        expect(first.locator("#chat .thought-group")).to_contain_text("Step 1")
    with opened(browser, scripted_chat) as second:
        ask(second, "84 and 36?")
        expect(second.locator("#chat .bot-row").last).to_contain_text("The answer is 12.")


def test_a_question_beyond_the_context_is_refused_and_stays_in_the_box(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat) as page:
        page.fill("#question textarea", "Why? " * 2000)
        page.keyboard.press("Enter")
        expect(page.locator("#notice")).to_contain_text("ask a shorter question")
        assert page.input_value("#question textarea") == "Why? " * 2000
        expect(page.locator("#chat .user-row")).to_have_count(0)
        picture(page, "refused")


def test_a_real_exported_folder_holds_a_conversation(browser: Browser, tiny_student: Path, tmp_path: Path) -> None:
    """A random model hardly ever closes its thought: it writes until it ends its turn or its context is full."""
    from export.pipeline import export_model
    from export.presets import int4_config

    export_model(int4_config(tiny_student, tmp_path / "int4"))
    with (
        server("-c", RUN_CHAT, str(tmp_path / "int4"), str(tmp_path / "chats")) as address,
        opened(browser, address) as page,
    ):
        ask(page, "How many times does the letter appear?")
        expect(page.locator("#chat .thought-group")).to_contain_text("tokens")
        page.wait_for_selector("#question .submit-button")
        expect(page.locator("#chat .bot-row").last).to_contain_text(re.compile("context is full|without an answer"))
        expect(page.locator("#status")).to_contain_text("tokens/s")
        picture(page, "real")


def test_the_badge_says_that_nothing_left_this_machine(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat) as page:
        badge = page.locator("#badge [role=status]")
        expect(badge).to_have_text("No connection has left this machine")
        expect(badge).to_have_attribute("title", re.compile("sockets"))
        picture(page, "badge")
