"""Hostile answers in a real browser are shown harmlessly, copied as written, and leave the page usable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.apps import test_chat_page
from tests.apps.hostile import HTML, IMAGES, LINES, LINKS, SIGNS, WIDE
from tests.apps.test_chat_page import ask, expect, opened, picture

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = test_chat_page.pytestmark
browser, scripted_chat = test_chat_page.browser, test_chat_page.scripted_chat


def answered(page: Page, question: str) -> Locator:
    """Ask a question and wait for the whole answer."""
    ask(page, question)
    page.wait_for_selector("#question .stop-button")
    page.wait_for_selector("#question .submit-button")
    return page.locator("#chat .bot-row").last


def copy_of(page: Page, answer: Locator) -> str:
    page.evaluate("navigator.clipboard.writeText('')")
    answer.hover()
    answer.get_by_label("Copy message").click()
    page.wait_for_function("navigator.clipboard.readText().then((text) => text !== '')")
    copied: str = page.evaluate("navigator.clipboard.readText()")
    return copied


def test_only_http_links_lead_anywhere_and_they_say_where(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat) as page:
        answer = answered(page, "Some hostile links, please")
        links = answer.locator("a[href]")
        assert [link.get_attribute("href") for link in links.all()] == [
            "http://a.invalid:81/x",
            "mailto:a.invalid@b.invalid",
        ]
        assert links.first.inner_text() == "good a.invalid:81"
        assert set(str(links.first.get_attribute("rel")).split()) >= {"noopener"}
        assert copy_of(page, answer) == LINKS


def test_images_are_chips_with_their_host(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat) as page:
        answer = answered(page, "Some hostile images, please")
        chips = answer.locator(".remote")
        hosts = ["a.invalid", "b.invalid", "data:", "c.invalid"]
        assert chips.all_inner_texts() == [f"image · {host}" for host in hosts]
        assert chips.nth(1).get_attribute("title") == "<img src=http://b.invalid/dog.png onerror=alert(1)>"
        assert answer.locator("img").count() == 0 and answer.locator("table").count() == 1
        assert copy_of(page, answer) == IMAGES
        picture(page, "images")


def test_raw_html_is_text_wherever_the_renderer_sees_it(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat) as page:
        answer = answered(page, "Some hostile HTML, please")
        content = answer.locator(".message-content")
        assert content.locator("img, script, b, iframe, .mermaid, svg[onload]").count() == 0
        expect(content).to_contain_text("<\u2060script>alert(1)<\u2060/script>")
        expect(content).to_contain_text("graph TD;")
        assert copy_of(page, answer) == HTML


def test_control_characters_and_overrides_are_seen(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat) as page:
        answer = answered(page, "Some hostile signs, please")
        text = answer.locator(".message-content").inner_text()
        assert "safe ‹U+202E›fdp.exe‹U+202C› and ␛[31mred␛[0m" in text and "code ‹U+2066›x‹U+2069›" in text
        assert not set(text + copy_of(page, answer)) & set(SIGNS) & set("\u202e\u202c\u2066\u2069\x1b\x07")


def test_a_line_of_a_megabyte_is_shown_whole_and_the_page_goes_on(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat, width=360) as page:
        answer = answered(page, "Write a megabyte, please")
        assert answer.locator("code").inner_text().strip() == WIDE * 100
        assert copy_of(page, answer) == WIDE * 100
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        expect(answered(page, "84 and 36?")).to_contain_text("The answer is 12.")


def test_ten_thousand_lines_are_shown_whole_and_the_page_goes_on(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat) as page:
        answer = answered(page, "Write many lines, please")
        assert answer.locator("code").inner_text().strip() == (LINES * 50).strip()
        assert copy_of(page, answer) == LINES * 50
        expect(answered(page, "84 and 36?")).to_contain_text("The answer is 12.")
        picture(page, "long")
