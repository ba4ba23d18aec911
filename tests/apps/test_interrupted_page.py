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
from tests.apps.test_chat_page import PATIENCE_S

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark, browser = test_chat_page.pytestmark, test_chat_page.browser


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
