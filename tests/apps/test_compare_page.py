"""The comparison in a real browser: two scripted models, and a model beside an endpoint that fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import pytest

from tests.apps import test_chat_page
from tests.apps.test_chat_page import expect, opened, picture, server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark, browser = test_chat_page.pytestmark, test_chat_page.browser


@pytest.fixture(scope="module")
def comparison(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    chats = tmp_path_factory.mktemp("chats")
    with server("-m", "tests.apps.scripted_comparison", str(tiny_student), str(chats)) as address:
        yield address


@pytest.mark.parametrize("width", [1280, 360])
def test_both_models_answer_an_example_and_are_marked(browser: Browser, comparison: str, width: int) -> None:
    with opened(browser, comparison, width=width) as page:
        assert page.url.endswith("/compare/")
        first, second = page.locator("#sides > .column").all()
        expect(first).to_contain_text("270 MB")
        expect(second).to_contain_text("86 MB")
        page.get_by_role("button", name="Greatest Common Divisor").click()
        expect(second.locator(".block.verdict")).to_contain_text(re.compile(r"tokens/s.* · ✗ wrong, it is 12"))
        expect(first.locator(".block.verdict")).to_contain_text(re.compile(r"tokens/s.* · ✓ right"))
        expect(first).to_contain_text("The answer is 12.")
        expect(second).to_contain_text("The answer is 48.")
        expect(page.locator("#asked")).to_contain_text("these numbers: 84, 36")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        picture(page, f"compare-{width}")


def test_the_comparison_and_the_chat_lead_to_each_other(browser: Browser, comparison: str) -> None:
    with opened(browser, comparison) as page:
        for way in ("back to the chat", "compare"):
            target = page.locator("#title").get_by_role("link", name=way).get_attribute("href")
            page.goto(urljoin(comparison, target or ""))
        expect(page.locator("#sides > .column")).to_have_count(2)


def test_stop_ends_the_first_and_spares_the_second(browser: Browser, comparison: str) -> None:
    with opened(browser, comparison) as page:
        first, second = page.locator("#sides > .column").all()
        page.fill("#question textarea", "A long answer, please")
        page.keyboard.press("Enter")
        expect(first).to_contain_text("Step 3:")
        expect(second.locator(".block.verdict")).to_contain_text("Waiting")
        page.click("#question .stop-button")
        page.wait_for_selector("#question .submit-button")
        expect(first).to_contain_text("Stopped")
        expect(second.locator(".bot-row")).to_have_count(0)
        assert "right" not in first.locator(".block.verdict").inner_text()
