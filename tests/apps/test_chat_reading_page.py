"""Reading on the page, in a real browser: the reader's place is held while the model writes, a question looks as it was
typed, and tables, tasks, mathematics and text directions look as their writers meant them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.apps import test_chat_page
from tests.apps.formatted import ARABIC, DIRECTIONS, HEBREW, MATHEMATICS, TABLE, TASKS
from tests.apps.test_chat_markup_page import answered, copy_of
from tests.apps.test_chat_page import ask, expect, opened, picture

if TYPE_CHECKING:
    from playwright.sync_api import Browser, CDPSession, Page

pytestmark = test_chat_page.pytestmark
browser, scripted_chat = test_chat_page.browser, test_chat_page.scripted_chat

BOX = "document.querySelector('#chat .panel-wrap')"
BELOW = f"{BOX}.scrollHeight - {BOX}.clientHeight - {BOX}.scrollTop"
"""Pixels of the conversation below the view."""
TRIES = 5
"""With each hand."""

STEADY = f"""() => new Promise((done) => {{
  let last = -1, same = 0;
  const look = () => {{
    const now = {BOX}.scrollTop;
    same = now === last ? same + 1 : 0;
    last = now;
    same > 25 ? done(now) : setTimeout(look, 20);
  }};
  look();
}})"""
"""Where the view is once it has come to rest."""


def wait_until(page: Page, claim: str) -> None:
    """Poll by a clock, because the page slows down what polls in every frame (`apps.chat.look.frames`)."""
    page.wait_for_function(f"() => {claim}", polling=50)


def wait_until_at_the_end(page: Page) -> None:
    wait_until(page, f"{BELOW} < 2")


def wait_until_more_is_written(page: Page) -> None:
    height = page.evaluate(f"{BOX}.scrollHeight")
    wait_until(page, f"{BOX}.scrollHeight > {height} + 300")


def stop(page: Page) -> None:
    """Stop the running turn, unless it has just ended."""
    page.evaluate("document.querySelector('#question .stop-button')?.click()")
    page.wait_for_selector("#question .submit-button")


def let_it_write(page: Page, question: str) -> None:
    """Begin a turn that grows, in a chat of its own, with the mouse over it, where the wheel scrolls it."""
    stop(page)
    page.click("#new-chat")
    page.locator("#chat").hover()
    expect(page.locator("#chat .bot-row")).to_have_count(0)
    ask(page, question)
    wait_until(page, f"{BOX}.scrollHeight > {BOX}.clientHeight + 500")


def scroll_up(page: Page, hand: str, fingers: CDPSession, by: int) -> None:
    if hand == "wheel":
        page.mouse.wheel(0, -by)
        return
    x, y = page.evaluate(
        f"(() => {{ const r = {BOX}.getBoundingClientRect(); return [r.x + r.width / 2, r.y + 60]; }})()"
    )
    for kind, down in (("touchStart", 0), *(("touchMove", by * i // 8) for i in range(1, 9)), ("touchEnd", None)):
        points = [] if down is None else [{"x": x, "y": y + down}]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


@pytest.mark.parametrize("hand", ["wheel", "touch"])
def test_who_scrolls_up_stays_until_they_come_back_to_the_end(browser: Browser, scripted_chat: str, hand: str) -> None:
    with opened(browser, scripted_chat) as page:
        fingers = page.context.new_cdp_session(page)
        page.wait_for_selector("#chat")
        for i in range(TRIES):
            let_it_write(page, f"Try {i} with many paragraphs")
            wait_until_at_the_end(page)
            scroll_up(page, hand, fingers, 60 + 30 * i)
            wait_until(page, f"{BELOW} > 40")
            held = page.evaluate(STEADY)
            wait_until_more_is_written(page)
            assert page.evaluate(f"{BOX}.scrollTop") == held, f"try {i}"
            page.mouse.wheel(0, 100_000)
            wait_until_at_the_end(page)
            wait_until_more_is_written(page)
            wait_until_at_the_end(page)
        stop(page)


def test_a_thought_that_is_opened_is_read_where_it_is_and_a_question_leads_to_the_end(
    browser: Browser, scripted_chat: str
) -> None:
    with opened(browser, scripted_chat) as page:
        answered(page, "Many lines to scroll, please")
        answered(page, "Some hostile HTML, please")
        wait_until_at_the_end(page)
        page.evaluate(f"{BOX}.scrollTop = 0")
        ask(page, "84 and 36?")
        wait_until_at_the_end(page)
        page.wait_for_selector("#question .submit-button")
        thought = page.locator("#chat .thought-group").last
        thought.locator(".title").click()
        expect(thought).to_contain_text("The last remainder that is not zero is 12.")
        expect(thought.locator(".title")).to_be_in_viewport()


def test_a_user_s_message_is_shown_and_copied_as_it_was_typed(browser: Browser, scripted_chat: str) -> None:
    typed = (
        "# no heading\n    def __init__(self):\n\treturn *a* <b>x</b> $x$ \\(y\\) `c`\n\n- [x] item & 100 %\n"
        "http://bank@evil.invalid"
    )
    with opened(browser, scripted_chat) as page:
        page.fill("#question textarea", typed)
        page.keyboard.press("Enter")
        row = page.locator("#chat .user-row")
        expect(row.locator(".typed")).to_be_visible()
        assert row.locator(".typed").text_content() == typed
        assert row.locator("a, b, em, h1, li, code, .katex").count() == 0
        assert row.locator(".typed").inner_text() == typed
        page.wait_for_selector("#question .submit-button")
        assert copy_of(page, row) == typed
        picture(page, "typed")


@pytest.mark.parametrize("width", [1280, 360])
def test_tables_keep_words_and_alignment_and_scroll_by_themselves(
    browser: Browser, scripted_chat: str, width: int
) -> None:
    with opened(browser, scripted_chat, width=width) as page:
        answer = answered(page, "Show a table, please")
        tables = answer.locator("table")
        expect(tables).to_have_count(2)
        lines = page.evaluate(
            """() => [...document.querySelectorAll("#chat th, #chat td")].filter((cell) => {
                 const range = document.createRange();
                 return [...cell.textContent.matchAll(/\\S+/g)].some(({ index, 0: word }) => {
                   range.setStart(cell.firstChild, index); range.setEnd(cell.firstChild, index + word.length);
                   return range.getClientRects().length > 1;
                 });
               }).map((cell) => cell.textContent)"""
        )
        assert lines == [], "no word is broken"
        aligned = "(cells) => cells.slice(0, 3).map((cell) => getComputedStyle(cell).textAlign)"
        assert tables.first.locator("th").evaluate_all(aligned) == ["left", "right", "center"]
        assert tables.first.locator("td").evaluate_all(aligned) == ["left", "right", "center"]
        assert tables.first.evaluate("(table) => getComputedStyle(table).borderTopWidth") == "0px", "cells have a frame"
        assert tables.last.evaluate("(table) => table.scrollWidth > table.clientWidth")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert copy_of(page, answer) == TABLE
        picture(page, f"table-{width}")


def test_the_boxes_of_a_task_list_show_what_is_done(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat) as page:
        answer = answered(page, "Write a task list, please")
        expect(answer.locator("li")).to_have_text([" done", " open", " done too", "none"])
        boxes = answer.locator("li input")
        assert boxes.evaluate_all("(boxes) => boxes.map((box) => box.checked)") == [True, False, True]
        colours = boxes.evaluate_all("(boxes) => boxes.map((box) => getComputedStyle(box).backgroundColor)")
        assert colours[0] == colours[2] != colours[1], "a white tick stands on a colour"
        assert copy_of(page, answer) == TASKS
        picture(page, "tasks")


def test_mathematics_between_dollars_is_drawn_and_amounts_stay_text(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat) as page:
        answer = answered(page, "Use dollars, please")
        expect(answer.locator(".katex")).to_have_count(4)
        text = answer.locator(".message-content").inner_text()
        assert "It costs $5 and $10, or US$20 to $30; $HOME is $PATH." in text
        assert "$code$ stays, as does $5 and $6." in text and "not $5, or 6$ though." in text
        assert copy_of(page, answer) == MATHEMATICS
        picture(page, "dollars")


def test_each_paragraph_runs_in_its_own_direction(browser: Browser, scripted_chat: str) -> None:
    with opened(browser, scripted_chat) as page:
        answer = answered(page, "Write from right to left, please")
        direction = "(blocks) => blocks.map((block) => getComputedStyle(block).direction)"
        assert answer.locator(".md > *").evaluate_all(direction) == ["rtl", "ltr", "rtl", "ltr"]
        assert copy_of(page, answer) == DIRECTIONS
        gaps = answer.locator(".md > p").evaluate_all(
            """(blocks) => blocks.map((block) => {
                 const range = document.createRange(); range.selectNodeContents(block);
                 const [text, box] = [range.getBoundingClientRect(), block.getBoundingClientRect()];
                 return [text.left - box.left, box.right - text.right];
               })"""
        )
        assert gaps[0][1] < 2 < gaps[0][0] and gaps[1][0] < 2 < gaps[1][1], gaps
        page.fill("#question textarea", HEBREW)
        assert page.locator("#question textarea").evaluate("(box) => getComputedStyle(box).direction") == "rtl"
        ask(page, f"{ARABIC}, 84?")
        typed = page.locator("#chat .typed").last
        assert typed.evaluate("(block) => getComputedStyle(block).direction") == "rtl"
        picture(page, "directions")
