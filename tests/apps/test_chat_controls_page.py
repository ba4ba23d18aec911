"""Settings, context ledger, shortcuts and what a screen reader hears, in a real browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from apps.chat.look.shortcuts import SHORTCUTS
from apps.chat.panels.settings_panel import SavedSettings
from tests.apps import test_chat_page
from tests.apps.test_chat_markup_page import answered
from tests.apps.test_chat_page import DOORS, PATIENCE_S, expect, open_settings, opened, server
from toolkit.records import Problem, Trace, read_records

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = test_chat_page.pytestmark
browser, scripted_chat = test_chat_page.browser, test_chat_page.scripted_chat

LONG_QUESTION = "Why? " * 605
"""Leaves no room for the reserve in the scripted model's context beside an earlier turn."""


def test_settings_come_back_in_a_new_tab_and_after_a_restart_under_another_address(
    browser: Browser, tiny_student: Path, tmp_path: Path
) -> None:
    scripted = ("-m", "tests.apps.scripted", str(tiny_student), str(tmp_path))
    with server(*scripted) as address, opened(browser, address) as page:
        open_settings(page)
        page.fill("#system textarea", "Be brief.")
        page.fill("#seed input", "7")
        page.keyboard.press("Tab")
        kept = SavedSettings(tmp_path)
        while (kept.read() or {}).get("seed") != 7 or kept.read()["system"] != "Be brief.":
            page.wait_for_timeout(100)
        with opened(browser, address) as tab:
            open_settings(tab)
            expect(tab.locator("#seed input")).to_have_value("7")
    with server(*scripted) as other, opened(browser, other) as page:
        assert other != address
        open_settings(page)
        expect(page.locator("#system textarea")).to_have_value("Be brief.")
        expect(page.locator("#seed input")).to_have_value("7")
        page.click("#advice")
        expect(page.locator("#system textarea")).to_have_value("")
        expect(page.locator("#seed input")).to_have_value("")


def test_the_ledger_counts_as_one_types_and_names_what_must_leave(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat, width=360) as page:
        ledger = page.locator("#ledger")
        expect(ledger).to_contain_text("of 4,096 tokens")
        answered(page, "84 and 36, please?")
        history = re.compile(r"[1-9]\d* history")
        expect(ledger).to_contain_text(history)
        page.fill("#question textarea", LONG_QUESTION)
        expect(ledger).to_contain_text("“84 and 36, please?”")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        ledger.get_by_text("Leave them out").click()
        expect(ledger).to_contain_text("Left out, as you chose: the oldest question")
        expect(ledger).not_to_contain_text(history)
        ledger.get_by_text("Send them again").click()
        expect(ledger).to_contain_text(history)
        assert page.input_value("#question textarea") == LONG_QUESTION


def test_a_question_mark_shows_the_shortcuts_and_each_does_what_it_says(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat) as page:
        page.locator("#question textarea").press("?")
        assert page.input_value("#question textarea") == "?"
        page.locator("#question textarea").fill("")
        page.locator("#new-chat").focus()
        page.keyboard.press("?")
        shown = page.locator("#shortcuts")
        for key, does, control in SHORTCUTS:
            assert control.startswith(".sidebar") or shown.get_by_text(does, exact=True).is_visible()
        page.keyboard.press("Escape")
        expect(shown).to_be_hidden()
        page.keyboard.press("Alt+q")
        expect(page.locator("#question textarea")).to_be_focused()
        page.keyboard.type("A long answer,")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("please")
        page.keyboard.press("Enter")
        expect(page.locator("#chat .bot-row").last).to_contain_text("Step 5:")
        page.keyboard.press("Escape")
        page.wait_for_selector("#question .submit-button")
        expect(page.locator("#chat .bot-row").last).to_contain_text("Stopped")
        answered(page, "84 and 36?")
        page.evaluate("navigator.clipboard.writeText('')")
        page.keyboard.press("Alt+c")
        page.wait_for_function("() => navigator.clipboard.readText().then((text) => text === 'The answer is **12**.')")
        page.keyboard.press("Alt+n")
        expect(page.locator("#chat .example")).to_have_count(4)


def test_a_screen_reader_hears_the_answer_and_not_the_thought(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat) as page:
        answered(page, "Which number divides 84 and 36?")
        expect(page.locator("#spoken")).to_contain_text("The answer is 12.")
        assert page.locator("#spoken p").all_inner_texts()[0] == "Thinking"
        assert "remainder" not in str(page.locator("#spoken").text_content())
        live = page.evaluate(
            "[...document.querySelectorAll('[aria-live], [role=log]')].filter(e => "
            "e.closest('#chat') && e.innerText.trim()).length"
        )
        assert live == 0
        answered(page, "And 84 and 36 again?")
        expect(page.locator("#spoken")).to_contain_text("The answer is 12.")
        assert str(page.locator("#spoken").text_content()).count("The answer is 12.") == 1


def test_every_control_has_a_name(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat) as page:
        expect(page.locator("#ledger")).to_contain_text("tokens")
        page.keyboard.press("Alt+s")
        answered(page, "84 and 36?")
        page.wait_for_function("() => document.querySelector('#chat .arrow button')?.ariaLabel")
        nameless = page.evaluate(
            """[...document.querySelectorAll("button, input, textarea, select, a[href]")].filter((control) =>
                 control.checkVisibility() && !control.innerText.trim() && !control.getAttribute("aria-label")
                 && !control.title && !control.labels?.length).map((control) => control.parentElement.parentElement.outerHTML.slice(0, 300))"""
        )
        assert nameless == [], nameless


def test_feedback_is_kept_with_consent_only(browser: Browser, tiny_student: Path, tmp_path: Path) -> None:
    kept = tmp_path / "feedback" / "traces.jsonl"
    scripted = ("-m", "tests.apps.scripted", str(tiny_student), str(tmp_path))
    with server(*scripted) as address, opened(browser, address) as page:
        answered(page, "84 and 36?")
        page.locator("#chat .bot-row").last.hover()
        page.locator("#chat .bot-row").last.get_by_label("Like", exact=True).click()
        expect(page.locator("#feedback")).to_contain_text("Feedback is not kept")
        assert not kept.exists()
        answered(page, "And twice that?")
        page.keyboard.press("Alt+s")
        page.locator("#consent input").check()
        assert str(kept.parent) in page.locator("#consent").inner_text()
        page.locator("#chat .bot-row").last.hover()
        page.locator("#chat .bot-row").last.get_by_label("Dislike", exact=True).click()
        page.fill("#corrected-answer textarea", "12")
        page.click("#keep-correction")
        expect(page.locator("#feedback")).to_contain_text("toolkit distill --traces")
    (trace,) = read_records(kept, Trace)
    assert trace.answer == "12" and trace.reasoning.startswith("84 = 2 * 36 + 12")
    (problem,) = read_records(kept.with_name("problems.jsonl"), Problem)
    said = problem.messages
    assert [message["role"] for message in said] == ["user", "assistant", "user"]
    assert (said[0]["content"], said[2]["content"]) == ("84 and 36?", "And twice that?")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system(browser: Browser, scripted_chat: str, scheme: Literal["light", "dark"]) -> None:
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(DOORS[scripted_chat].get(timeout=PATIENCE_S))
    page.wait_for_selector("#question textarea")
    page.wait_for_function("() => getComputedStyle(document.body).backgroundColor !== 'rgba(0, 0, 0, 0)'")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    lightness = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
    assert (lightness > 200) if scheme == "light" else (lightness < 60)
    context.close()
