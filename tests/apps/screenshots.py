"""Pictures of the chat's main views for the README: `python -m tests.apps.screenshots FOLDER`, or `make screenshots`.

The pages are real and their model is scripted, so that the pictures change only when the page does.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.apps.scripted import SCRIPTS
from tests.apps.test_chat_page import CHROMIUM, DOORS, FLAGS, PATIENCE_S, ask, server
from toolkit.formats.chat_format import REASONING_TEMPLATE, TURN_END, TURN_START, write_chat_files

QUESTION = "Find the Greatest Common Divisor (GCD) of these numbers: 84, 36."


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made, sync_playwright() as driver:
        write_tokenizer(Path(made))
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        with server("-m", "tests.apps.scripted", made, str(Path(made) / "chats")) as address:
            page = opened(browser, address, 1000, 640)
            answered(page)
            page.locator("#chat .thought-group .title").click()
            page.wait_for_timeout(600)  # the thought slides open
            page.screenshot(path=folder / "chat.png")
            page.fill("#question textarea", "And what of a far longer question? " * 116)
            page.get_by_text("Leave them out").wait_for()
            page.screenshot(path=folder / "chat-ledger.png")
            page = opened(browser, address, 1000, 640, dark=True)
            answered(page)
            page.screenshot(path=folder / "chat-dark.png")
            page = opened(browser, address, 360, 640)
            answered(page)
            page.screenshot(path=folder / "chat-phone.png")
        browser.close()
    print(f"wrote {', '.join(sorted(path.name for path in folder.glob('chat*.png')))} into {folder}")


def opened(browser: Browser, address: str, width: int, height: int, *, dark: bool = False) -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(DOORS[address].get(timeout=PATIENCE_S))
    page.locator("#ledger").get_by_text("of 4,096 tokens").first.wait_for()
    return page


def answered(page: Page) -> None:
    ask(page, QUESTION)
    page.wait_for_selector("#question .stop-button")
    page.wait_for_selector("#question .submit-button")
    page.locator("#ledger").get_by_text("history").first.wait_for()
    page.mouse.move(0, 0)


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer that knows the words of the conversation, and the reasoning template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([SCRIPTS[""], QUESTION], trainer)
    write_chat_files(folder, tokenizer, template=REASONING_TEMPLATE, eos_token=TURN_END, pad_token="<|endoftext|>")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
