"""Ctrl+C in the terminal of a chat whose page is open, in a real browser, with a real model."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from apps.chat.conversation.store import Store
from tests.apps import test_chat_page
from tests.apps.test_chat_page import PATIENCE_S, ask, expect, picture
from tests.processes import started

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark, browser = test_chat_page.pytestmark, test_chat_page.browser


@pytest.mark.parametrize("is_writing", [True, False])
def test_a_page_whose_server_is_gone_says_so_once(
    browser: Browser, tiny_student: Path, tmp_path: Path, *, is_writing: bool
) -> None:
    words = ("-m", "tests.apps.scripted", str(tiny_student), str(tmp_path))
    with started(r"http://\S+/open/\S+", *words) as (process, door):
        page = browser.new_page()
        page.goto(door[0])
        page.wait_for_selector("#badge p[data-state=private]")
        if is_writing:
            ask(page, "A long thought, please")
            expect(page.locator("#chat .thought-group")).to_contain_text("Step 3")
        process.kill()
        if not is_writing:
            page.fill("#question textarea", "Is anybody there?")
            page.keyboard.press("Enter")
        page.wait_for_selector(".toast-body", state="attached")
        expect(page.locator("#badge")).to_have_text("The chat has ended")
        expect(page.locator(".toast-body")).to_be_hidden()
        picture(page, f"gone-{is_writing}")
        page.close()


@pytest.mark.parametrize("question", ["", "How many times does the letter appear in the text? " * 3])
def test_an_interrupt_ends_the_chat_without_a_word_and_keeps_what_is_written(
    browser: Browser, learned: Path, tmp_path: Path, question: str
) -> None:
    command = [sys.executable, "-m", "toolkit", "chat", str(learned), "--window", "none", "--port", "0"]
    with subprocess.Popen(
        [*command, "--data", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        door = re.search(r"http://\S+/open/\S+", process.stdout.readline())
        assert door
        try:
            page = browser.new_page()
            page.goto(door.group())
            page.wait_for_selector("#question textarea")
            if question:
                page.fill("#question textarea", question)
                page.keyboard.press("Enter")
                page.wait_for_selector("#chat .user-row")
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=PATIENCE_S)
            page.close()
        finally:
            process.kill()
    said = [line for line in told.splitlines() if not line.startswith(str(learned))]  # said of the model at the start
    assert (process.returncode, said) == (0, [])
    store = Store(tmp_path, time.time)
    assert [entry.title[:8] for entry in store.entries()] == ([question[:8]] if question else [])
    store.close()
