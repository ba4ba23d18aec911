"""Nothing is lost, in a real browser: continued turns, versions, the list of chats, files, and a killed server."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from export.runtime.rows.prefix_cache import prefix_folder
from tests.apps.scripted import SCRIPTS
from tests.apps.test_chat_page import DOORS, PATIENCE_S, ask, browser, expect, open_settings, opened, picture, server
from tests.apps.test_chat_page import pytestmark as needs_a_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

__all__ = ["browser"]  # the fixture
pytestmark = needs_a_browser

WIDTHS = [1280, 390]
ABORTED = ("AbortError", "Unexpected error Connection")
"""Gradio's message about a request that a reload cuts off."""
STEPS = SCRIPTS["twenty steps"].partition("\n</think>")[0]


@pytest.fixture
def kept_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a file with the beginning of some chat, where `--prefix-cache` keeps it."""
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))
    path = prefix_folder() / "model" / "words.prefix"
    path.parent.mkdir(parents=True)
    path.write_text("words")
    return path


@pytest.fixture
def chat(tiny_student: Path, tmp_path: Path, kept_prefix: Path) -> Iterator[str]:
    with server("-m", "tests.apps.scripted", str(tiny_student), str(tmp_path)) as address:
        yield address


def thought(page: Page) -> Locator:
    return page.locator("#chat .thought-group").last


def last_row(page: Page) -> Locator:
    return page.locator("#chat .bot-row").last


def wait_until_done(page: Page) -> None:
    page.wait_for_selector("#question .submit-button")


def stop_at(page: Page, text: str) -> None:
    expect(thought(page)).to_contain_text(text)
    page.click("#question .stop-button")
    wait_until_done(page)


def press(page: Page, link: str) -> None:
    page.locator("#chat a", has_text=link).click()


def copied(page: Page, row: Locator) -> str:
    row.hover()
    row.get_by_label("Copy message").click()
    page.wait_for_function("navigator.clipboard.readText().then((text) => text !== '')")
    text: str = page.evaluate("navigator.clipboard.readText()")
    page.evaluate("navigator.clipboard.writeText('')")
    return text


def show_list(page: Page) -> None:
    """Open the sidebar, unless the page is wide enough for it to be open already."""
    sidebar = page.locator(".sidebar")
    if page.evaluate("innerWidth") < 1100:
        sidebar.locator(".toggle-button").click()
    expect(sidebar).to_have_class(re.compile("open"))


def titles(page: Page) -> Locator:
    return page.locator("#conversations label")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_stopped_thought_goes_on_and_reads_as_if_it_had_never_stopped(
    browser: Browser, chat: str, width: int
) -> None:
    with opened(browser, chat, width=width) as page:
        ask(page, "Take twenty steps")
        stop_at(page, "Step 5.")
        expect(last_row(page)).to_contain_text("Stopped. What was written so far is kept.")
        picture(page, f"continue-{width}")
        press(page, "Continue")
        expect(last_row(page)).to_contain_text("All twenty are done.")
        wait_until_done(page)
        expect(page.locator("#chat .user-row")).to_have_count(1)
        thought_row = page.locator("#chat .bot-row").first
        assert copied(page, thought_row) == STEPS
        assert copied(page, last_row(page)) == "All **twenty** are done."
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", WIDTHS)
def test_answer_now_ends_a_running_and_a_stopped_thought(browser: Browser, chat: str, width: int) -> None:
    with opened(browser, chat, width=width) as page:
        expect(page.locator("#answer-now")).to_be_hidden()
        ask(page, "Take twenty steps")
        expect(thought(page)).to_contain_text("Step 3.")
        page.click("#answer-now")
        expect(last_row(page)).to_contain_text("All twenty are done.")
        wait_until_done(page)
        expect(page.locator("#answer-now")).to_be_hidden()
        expect(thought(page)).to_contain_text("Thought for")
        ask(page, "A long thought, please")
        stop_at(page, "Step 3:")
        press(page, "Answer now")
        expect(last_row(page)).to_contain_text("never reached")


def test_a_thinking_budget_ends_the_thought(browser: Browser, chat: str) -> None:
    with opened(browser, chat) as page:
        open_settings(page)
        budget = page.get_by_label("number input for Thinking budget")
        budget.fill("48")
        budget.press("Tab")
        ask(page, "A long thought, please")
        expect(last_row(page)).to_contain_text("never reached")
        wait_until_done(page)
        within = re.compile(r"\b(49|5\d|6\d) reasoning")  # the budget, and the closing tag in a tokenizer of letters
        expect(page.locator("#status")).to_contain_text(within)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_reloaded_tab_opens_the_chat_that_it_had(browser: Browser, chat: str, width: int) -> None:
    with opened(browser, chat, width=width, expected=ABORTED) as page:
        ask(page, "84 and 36?")
        expect(last_row(page)).to_contain_text("The answer is 12.")
        wait_until_done(page)
        page.reload()
        expect(last_row(page)).to_contain_text("The answer is 12.")
        page.click("#new-chat")
        expect(page.locator("#chat .user-row")).to_have_count(0)
        page.reload()
        expect(page.locator("#ledger")).to_contain_text("tokens")
        page.wait_for_timeout(1000)
        expect(page.locator("#chat .user-row")).to_have_count(0)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_turn_goes_on_while_its_tab_is_loaded_again(browser: Browser, chat: str, width: int) -> None:
    with opened(browser, chat, width=width, expected=ABORTED) as page:
        ask(page, "Take twenty steps")
        expect(thought(page)).to_contain_text("Step 3.")
        page.reload()
        expect(last_row(page)).to_contain_text("All twenty are done.")
        wait_until_done(page)
        expect(page.locator("#status")).to_contain_text("reasoning")
        ask(page, "A long thought, please")
        expect(thought(page)).to_contain_text("Step 3:")
        page.reload()
        page.click("#question .stop-button")
        expect(last_row(page)).to_contain_text("Stopped")
        wait_until_done(page)
        press(page, "Continue")
        page.click("#answer-now")
        expect(last_row(page)).to_contain_text("never reached")


def test_a_second_tab_follows_what_the_first_one_asked(browser: Browser, chat: str) -> None:
    with opened(browser, chat) as first, opened(browser, chat) as second:
        ask(first, "Take twenty steps")
        expect(thought(first)).to_contain_text("Step 3.")
        second.reload()
        titles(second).click()
        expect(second.locator("#answer-now")).to_be_visible()
        expect(last_row(second)).to_contain_text("All twenty are done.")
        wait_until_done(second)
        wait_until_done(first)
        ask(first, "A long thought, please")
        expect(thought(first)).to_contain_text("Step 3:")
        second.fill("#question textarea", "84 and 36?")
        second.keyboard.press("Enter")
        expect(thought(second)).to_contain_text("Step 4:")
        assert second.input_value("#question textarea") == "84 and 36?"
        second.click("#question .stop-button")
        for page in (first, second):
            expect(last_row(page)).to_contain_text("Stopped")


def test_a_thought_that_goes_round_in_circles_is_told_and_can_be_ended(browser: Browser, chat: str) -> None:
    with opened(browser, chat) as page:
        ask(page, "Go round in circles")
        expect(page.locator("#notice")).to_contain_text("begun to repeat itself")
        picture(page, "circles")
        page.click("#answer-now")
        expect(last_row(page)).to_contain_text("It was 7.")
        wait_until_done(page)
        expect(page.locator("#notice")).to_be_hidden()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_question_is_edited_and_both_versions_stay(browser: Browser, chat: str, width: int) -> None:
    with opened(browser, chat, width=width) as page:
        for question in ("What of 84 & <36>?", "And then?"):
            ask(page, question)
            expect(last_row(page)).to_contain_text("The answer is 12.")
            wait_until_done(page)
        first = page.locator("#chat .user-row").first
        first.hover()
        first.get_by_label("Edit").click()
        box = page.locator("#question textarea")
        expect(box).to_have_value("What of 84 & <36>?")
        press_in_notice = page.locator("#notice a", has_text="Leave it unchanged")
        press_in_notice.click()
        expect(box).to_have_value("")
        first.hover()
        first.get_by_label("Edit").click()
        expect(box).to_have_value("What of 84 & <36>?")
        box.fill("Take twenty steps")
        box.press("Enter")
        expect(last_row(page)).to_contain_text("All twenty are done.")
        wait_until_done(page)
        expect(page.locator("#chat .user-row")).to_have_count(1)
        expect(page.locator("#chat")).to_contain_text("version 2 of 2")
        picture(page, f"versions-{width}")
        press(page, "previous")
        expect(page.locator("#chat .user-row")).to_have_count(2)
        expect(page.locator("#chat .user-row").first).to_contain_text("What of 84 & <36>?")
        press(page, "next")
        expect(page.locator("#chat .user-row")).to_have_count(1)
        expect(page.locator("#chat .user-row")).to_contain_text("Take twenty steps")


def stop_and_retry(page: Page) -> None:
    """Ask a question, stop its answer, and ask again."""
    ask(page, "What of 84 and 36?")
    stop_at(page, "84 =")
    last_row(page).hover()
    page.get_by_label("Retry").click()
    expect(last_row(page)).to_contain_text("The answer is 12.")
    wait_until_done(page)


def test_an_answer_is_asked_for_again_and_both_stay(browser: Browser, chat: str) -> None:
    with opened(browser, chat) as page:
        stop_and_retry(page)
        press(page, "previous")
        expect(last_row(page)).to_contain_text("Stopped")
        expect(page.locator("#chat .user-row")).to_have_count(1)


@pytest.mark.parametrize("width", WIDTHS)
def test_chats_are_listed_searched_opened_renamed_and_deleted(
    browser: Browser, chat: str, kept_prefix: Path, width: int
) -> None:
    with opened(browser, chat, width=width) as page:
        for question in ("Is it <b>84</b>?", "Take twenty steps"):
            ask(page, question)
            page.wait_for_selector("#question .stop-button")
            wait_until_done(page)
            page.click("#new-chat")
            expect(page.locator("#chat .example")).to_have_count(4)
    with opened(browser, chat, width=width) as page:
        show_list(page)
        expect(titles(page)).to_have_text(["Take twenty steps", "Is it <b>84</b>?"])
        page.fill("#search textarea", "LAST REMAINDER")
        expect(titles(page)).to_have_text(["Is it <b>84</b>?"])
        titles(page).first.click()
        expect(last_row(page)).to_contain_text("The answer is 12.")
        if width < 1100:
            show_list(page)
        page.fill("#search textarea", "")
        expect(titles(page)).to_have_count(2)
        page.click("#rename-chat")
        expect(page.locator("#title-box textarea")).to_have_value("Is it <b>84</b>?")
        page.fill("#title-box textarea", "Divisors")
        page.click("#save-title")
        expect(titles(page)).to_have_text(["Take twenty steps", "Divisors"])
        picture(page, f"list-{width}")
        page.click("#delete-chat")
        expect(page.locator("#delete-question")).to_contain_text("Delete “Divisors”?")
        page.click("#keep-chat")
        expect(page.locator("#really-delete")).to_be_hidden()
        assert kept_prefix.exists()
        page.click("#delete-chat")
        page.click("#really-delete")
        expect(titles(page)).to_have_text(["Take twenty steps"])
        assert not kept_prefix.exists(), "what was read of a chat goes with it"
        expect(page.locator("#chat .user-row")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_an_exported_chat_comes_in_again_byte_for_byte(browser: Browser, chat: str, tmp_path: Path) -> None:
    def export(page: Page, name: str) -> bytes:
        page.click("#export-chat")
        with page.expect_download() as waiting:
            page.locator(".downloads a", has_text=name).click()
        return Path(waiting.value.path()).read_bytes()

    with opened(browser, chat) as page:
        stop_and_retry(page)
        as_json, as_markdown = export(page, "JSON"), export(page, "Markdown")
        assert len(json.loads(as_json)["turns"]) == 2
        assert as_markdown.decode().endswith("### Answer\n\nThe answer is **12**.\n")
        page.click("#delete-chat")
        page.click("#really-delete")
        expect(titles(page)).to_have_count(0)

        page.click("#import-chat")
        page.fill("#import-text textarea", "{}")
        page.click("#read-import")
        expect(page.locator("#notice")).to_contain_text("Unknown format")
        (tmp_path / "chat.json").write_bytes(as_json)
        page.set_input_files("#import-file", tmp_path / "chat.json")
        expect(page.locator("#import-text textarea")).to_have_value(as_json.decode())
        page.click("#read-import")
        expect(last_row(page)).to_contain_text("The answer is 12.")
        expect(page.locator("#chat")).to_contain_text("version 2 of 2")
        assert export(page, "JSON") == as_json


RUN_AND_TELL = (
    "import os, pathlib, runpy, sys; pathlib.Path(sys.argv[2], 'pid').write_text(str(os.getpid()));"
    "runpy.run_module('tests.apps.scripted', run_name='__main__')"
)


def test_a_killed_server_has_the_partial_answer_when_it_starts_again(
    browser: Browser, tiny_student: Path, tmp_path: Path
) -> None:
    with server("-c", RUN_AND_TELL, str(tiny_student), str(tmp_path)) as address:
        context = browser.new_context()  # a page that loses its server complains
        page = context.new_page()
        page.goto(DOORS[address].get(timeout=PATIENCE_S))
        ask(page, "Take twenty steps")
        expect(thought(page)).to_contain_text("Step 5.")
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        seen = thought(page).locator(".message-content").inner_text().strip()
        context.close()
    with server("-c", RUN_AND_TELL, str(tiny_student), str(tmp_path)) as address, opened(browser, address) as page:
        titles(page).first.click()
        expect(last_row(page)).to_contain_text("Stopped. What was written so far is kept.")
        kept = thought(page).locator(".message-content").inner_text().strip()
        assert kept.startswith(seen) and "Step 5." in kept and STEPS.startswith(kept)
        press(page, "Continue")
        expect(last_row(page)).to_contain_text("All twenty are done.")
        wait_until_done(page)
        assert copied(page, page.locator("#chat .bot-row").first) == STEPS
