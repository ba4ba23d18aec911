"""Controls within reach and true figures, in a real browser: settings, a seed that stays empty, the context ledger, the
list of many chats.
"""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.store import FILE, Store
from apps.chat.conversation.turn import Turn
from apps.chat.panels.settings_panel import SavedSettings
from tests.apps import test_chat_page
from tests.apps.test_chat_history_page import show_list, titles
from tests.apps.test_chat_markup_page import answered
from tests.apps.test_chat_page import ask, expect, open_settings, opened, picture, server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = test_chat_page.pytestmark
browser, scripted_chat = test_chat_page.browser, test_chat_page.scripted_chat

CHATS, TURNS = 60, 95
REACHED = """(control) => {
  control.scrollIntoView({ block: "center" });
  const { left, right, top, bottom } = control.getBoundingClientRect();
  const found = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
  const isThere = left >= 0 && right <= innerWidth && top >= 0 && bottom <= innerHeight && right - left > 10;
  return isThere && !!found && (control.contains(found) || found.contains(control));
}"""
"""Whether a control can be scrolled to, is inside the page, and is the element under a pointer there."""


def test_every_setting_is_in_reach_at_each_width(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat, width=320) as page:  # where the list of chats is closed
        open_settings(page)
        controls = page.locator("#settings :is(input, textarea, button)")
        for width in (320, 768, 1280, 1920):
            page.set_viewport_size({"width": width, "height": 800})
            expect(page.locator("#system textarea")).to_be_visible()
            lost = controls.evaluate_all(f"(all) => all.filter((one) => !({REACHED})(one)).map((one) => one.outerHTML)")
            assert lost == [] and controls.count() >= 8 + 5, f"at {width} pixels"
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            picture(page, f"settings-{width}")


def wait_until_kept(page: Page, kept: SavedSettings, **values: object) -> None:
    while not values.items() <= (kept.read() or {}).items():
        page.wait_for_timeout(100)


def test_an_empty_seed_stays_empty_whatever_else_is_set(browser: Browser, tiny_student: Path, tmp_path: Path) -> None:
    kept = SavedSettings(tmp_path)
    with server("-m", "tests.apps.scripted", str(tiny_student), str(tmp_path)) as address:
        with opened(browser, address) as page:
            open_settings(page)
            page.get_by_label("number input for Maximum tokens").fill("512")
            page.keyboard.press("Tab")
            wait_until_kept(page, kept, max_new_tokens=512, seed=None)
            answered(page, "84 and 36?")
            page.click("#new-chat")
            expect(page.locator("#chat .example")).to_have_count(4)
            answered(page, "84 and 36?")
        with opened(browser, address) as page:
            open_settings(page)
            expect(page.locator("#seed input")).to_have_value("")
            page.fill("#system textarea", "Be brief.")
            wait_until_kept(page, kept, system="Be brief.", max_new_tokens=512, seed=None)
            answered(page, "84 and 36?")
            page.fill("#seed input", "a dozen")
            page.fill("#question textarea", "84 and 36 again?")
            page.keyboard.press("Enter")
            expect(page.locator("#notice")).to_contain_text("The seed 'a dozen' is not a whole number")
            assert page.input_value("#question textarea") == "84 and 36 again?" and (kept.read() or {})["seed"] is None
            page.fill("#seed input", "7")
            wait_until_kept(page, kept, seed=7)
            page.fill("#seed input", "")
            wait_until_kept(page, kept, seed=None)
    seeds = [
        json.loads(row[0])["seed"] for row in sqlite3.connect(tmp_path / FILE).execute("SELECT settings FROM turn")
    ]
    assert len(seeds) == len({*seeds}) == 3


def test_the_ledger_counts_nothing_in_an_empty_chat_and_grows_with_a_thought(
    browser: Browser, scripted_chat: str
) -> None:
    with opened(browser, scripted_chat) as page:
        total = page.locator("#ledger .total")
        expect(total).to_have_text("0 of 4,096 tokens")
        ask(page, "A long thought, please")
        expect(page.locator("#ledger span.written")).to_contain_text(re.compile(r"\d+ written"))
        seen = str(total.text_content())
        for _ in range(3):
            expect(total).not_to_have_text(seen)
            later = str(total.text_content())
            assert int(later.split()[0].replace(",", "")) > int(seen.split()[0].replace(",", ""))
            seen = later
        page.click("#question .stop-button")
        page.wait_for_selector("#question .submit-button")
        expect(page.locator("#ledger .legend")).to_contain_text("history")
        expect(page.locator("#ledger span.written")).to_have_count(0)
        page.click("#new-chat")
        expect(total).to_have_text("0 of 4,096 tokens")


def chat(*questions: str) -> Conversation:
    turns: list[Turn] = []
    for question in questions:
        parent = turns[-1] if turns else None
        turns.append(Turn(question=question, context_room=9, parent=parent, state="done", answer="12", ended_at=0.0))
    return Conversation(turns=turns, all_turns=turns.copy())


@pytest.fixture(scope="module")
def many_chats(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Sixty chats, the newest of them with as many turns as the context holds."""
    data = tmp_path_factory.mktemp("many")
    store = Store(data, map(float, itertools.count()).__next__)
    for i in range(CHATS - 1):
        store.write(chat(f"Number {i}?"))
    store.write(chat(*(f"Old {i}?" for i in range(TURNS))))
    store.close()
    with server("-m", "tests.apps.scripted", str(tiny_student), str(data)) as address:
        yield address


@pytest.mark.parametrize("width", [1280, 360])
def test_what_is_done_with_a_chat_is_in_reach_past_sixty_of_them(browser: Browser, many_chats: str, width: int) -> None:
    with opened(browser, many_chats, width=width) as page:
        show_list(page)
        expect(titles(page)).to_have_count(CHATS)
        for name in ("rename", "delete", "export", "import"):
            expect(page.locator(f"#{name}-chat")).to_be_in_viewport()
        titles(page).last.scroll_into_view_if_needed()
        expect(titles(page).last).to_be_in_viewport()
        expect(page.locator("#rename-chat")).to_be_in_viewport()
        expect(page.locator("#search textarea")).to_be_in_viewport()
        picture(page, f"many-{width}")
        page.fill("#search textarea", "nobody said this")
        expect(page.locator("#conversations")).to_contain_text("No chat contains these words.")
        expect(titles(page)).to_have_count(0)
        page.fill("#search textarea", "number 17")
        expect(titles(page)).to_have_text(["Number 17?"])
        expect(page.locator("#conversations")).not_to_contain_text("No chat has")


@pytest.mark.parametrize("width", [1280, 360])
def test_a_full_context_counts_what_must_leave_and_lists_it_where_it_scrolls(
    browser: Browser, many_chats: str, width: int
) -> None:
    with opened(browser, many_chats, width=width) as page:
        show_list(page)
        titles(page).first.click()
        expect(page.locator("#chat .user-row")).to_have_count(TURNS)
        history = page.locator("#ledger .legend .history b")
        expect(history).to_have_text(re.compile(r"\d,?\d{3}"))
        free = 4096 - int(str(history.text_content()).replace(",", ""))
        page.fill("#question textarea", "a" * free)
        leaving = page.locator("#ledger .leaving")
        expect(leaving.locator("li").first).to_have_text("Old 0?")
        count = leaving.locator("li").count()
        assert count > 30
        expect(page.locator("#ledger [role=status]")).to_contain_text(
            re.compile(rf"Without the {count} oldest questions .*: from “Old 0\?” to “Old {count - 1}\?”\.")
        )
        assert leaving.evaluate("(list) => list.scrollHeight > list.clientHeight && list.clientHeight < 150")
        expect(page.get_by_text("Leave them out")).to_be_in_viewport()
        expect(page.locator("#shorten")).to_be_in_viewport()
        picture(page, f"full-{width}")
