"""What the page costs: the same turns of one exported folder with and without it, and how soon a long question is answered.

    python -m tests.apps.page_benchmark DIR [--rounds 12] [--tokens 2048]

The page is `toolkit chat` in a process of its own, shown by a real Chromium on the same machine; without it the same
turns are written in this process. They take turns, question by question, and say the same: greedy. Writes a block of
docs/chat.md.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from playwright.sync_api import sync_playwright

from apps.conversation import Conversation, run_turn
from apps.model import Model, load_model
from apps.serve_benchmark import PROMPT_TOKENS, long_question
from apps.settings import Kept, Settings
from export.session import OnnxDecoder
from tests.apps.test_chat_page import CHROMIUM, DOORS, FLAGS, PATIENCE_S, RUN_CHAT, expect, server
from toolkit.ledger import markdown_table
from toolkit.progress import Progress
from toolkit.readme import fill_file

if TYPE_CHECKING:
    from playwright.sync_api import Page

DOCUMENT = Path("docs/chat.md")
QUESTIONS = (
    "Sort these numbers in descending order: 12, 99, 41, 7, 56, 23, 88, 64, 35, 71, 18, 93, 46, 5, 80",
    "Sort these numbers in ascending order: 31, 8, 77, 52, 19, 66, 94, 3, 45, 28, 83, 60, 17, 39, 72, 11, 58, 90",
    "Sort these numbers in descending order: 64, 2, 87, 33, 50, 76, 21, 98, 15, 42, 69, 8, 55, 91, 37, 24, 73, 46, 80, 13",
)
"""Long to answer, for a small model."""
PAUSES_S = (0.0, 1.0)
"""Between pasting a long question and sending it: while it stands there, the chat reads ahead."""
LOOK_S = 2.5
"""Between two looks at a turn, longer than most: Playwright's own waiting looks at the page in every frame."""
STATUS = r"(?:(\d+) reasoning)?(?: \+ )?(?:(\d+) answer)? tokens · ([\d.]+) tokens/s · first token after ([\d.]+) s"
FIRST_TEXT = """
() => new Promise((done) => {
  const chat = document.getElementById("chat");
  const asked = performance.now();
  const rows = chat.querySelectorAll(".bot-row .message-content").length;
  const look = () => {
    const shown = [...chat.querySelectorAll(".bot-row .message-content")].slice(rows);
    if (!shown.some((row) => row.innerText.trim())) return;
    watch.disconnect();
    requestAnimationFrame(() => done((performance.now() - asked) / 1000));
  };
  const watch = new MutationObserver(look);
  watch.observe(chat, { subtree: true, childList: true, characterData: true });
  document.querySelector("#question .submit-button").click();
})
"""
"""Seconds from the click on *Send* to the frame that shows the first text of the answer."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """One turn: its tokens and how long they took after the first one."""

    tokens: int
    tokens_per_s: float

    @property
    def seconds(self) -> float:
        return (self.tokens - 1) / self.tokens_per_s


def without_page(model: Model, question: str, settings: Settings) -> Written:
    conversation = Conversation()
    turn = conversation.ask(question, model.chat_format, model.decoder.max_length)
    messages, sampling = conversation.messages(question, turn), settings.sampling(seed=0)
    for _ in run_turn(model.decoder, model.chat_format, messages, turn, sampling, time.monotonic):
        pass
    assert turn.tokens_per_s is not None
    return Written(tokens=len(turn.token_ids), tokens_per_s=turn.tokens_per_s)


def on_page(page: Page, question: str) -> Written:
    new_chat(page)
    page.fill("#question textarea", question)
    page.wait_for_timeout(1000)  # the ledger counts
    page.click("#question .submit-button")
    return written(page)[0]


def first_text(page: Page, question: str, pause_s: float) -> tuple[float, float]:
    """Seconds from *Send* to the first token by the server's own clock, and to the first text on the page.

    `pause_s`: how long the question stands in the box before.
    """
    new_chat(page)
    page.fill("#question textarea", question)
    page.wait_for_timeout(1000 * pause_s)
    shown_s: float = page.evaluate(FIRST_TEXT)
    return written(page)[1], shown_s


def written(page: Page) -> tuple[Written, float]:
    """What the status line says of the turn when it has ended: the turn, and the seconds to its first token."""
    page.wait_for_timeout(LOOK_S * 1000)
    while not page.locator("#question .submit-button").is_visible():
        page.wait_for_timeout(LOOK_S * 1000)
    found = re.search(STATUS, page.locator("#status").inner_text())
    assert found, f"the status line says {page.locator('#status').inner_text()!r}"
    tokens = int(found[1] or 0) + int(found[2] or 0)
    return Written(tokens=tokens, tokens_per_s=float(found[3])), float(found[4])


def tokens_per_s(turns: Sequence[Written]) -> float:
    return sum(turn.tokens - 1 for turn in turns) / sum(turn.seconds for turn in turns)


def new_chat(page: Page) -> None:
    page.click("#new-chat")
    expect(page.locator("#chat .user-row")).to_have_count(0)


@dataclass(frozen=True, kw_only=True)
class Round:
    """Every question once with the page and once without, and a long one after each pause."""

    tokens: int
    with_page: float
    alone: float
    """Tokens of all its turns with the page; tokens/s."""
    first: dict[float, tuple[float, float]]
    read_s: float
    """The runner's own reading of the long question."""


def measure(page: Page, model: Model, runner: OnnxDecoder, settings: Settings, number: int) -> Round:
    pairs = [(on_page(page, asked), without_page(model, asked, settings)) for asked in QUESTIONS]
    with_page, alone = (tokens_per_s(turns) for turns in zip(*pairs, strict=True))
    question = long_question(model.chat_format, number)[0]["content"]
    first = {pause_s: first_text(page, f"{i} {question}", pause_s) for i, pause_s in enumerate(PAUSES_S)}
    begun = time.perf_counter()
    runner.start([model.chat_format.question_ids(question)])
    read_s = time.perf_counter() - begun
    tokens = sum(written.tokens for written, _ in pairs)
    return Round(tokens=tokens, with_page=with_page, alone=alone, first=first, read_s=read_s)


def table(rounds: Sequence[Round]) -> str:
    """Medians as Markdown."""
    costs = [100 * (1 - each.with_page / each.alone) for each in rounds]
    tokens = sum(each.tokens for each in rounds) / len(rounds) / len(QUESTIONS)
    rows = [
        ("tokens a turn", f"{tokens:.0f}"),
        ("decoding with the page", f"{median(each.with_page for each in rounds):.1f} tokens/s"),
        ("without", f"{median(each.alone for each in rounds):.1f} tokens/s"),
        ("the page's cost: median (least, most)", f"{median(costs):.1f} % ({min(costs):.1f}, {max(costs):.1f})"),
        (
            f"the runner's reading of a question of {PROMPT_TOKENS} tokens",
            f"{median(each.read_s for each in rounds):.2f} s",
        ),
    ]
    for pause_s in PAUSES_S:
        for place, name in enumerate(("first token", "first text on the screen")):
            seconds = [each.first[pause_s][place] for each in rounds]
            ratio = median(each.first[pause_s][place] / each.read_s for each in rounds)
            rows.append((f"{name}, sent {pause_s:g} s after it was pasted", f"{median(seconds):.2f} s, {ratio:.2f} ×"))
    return markdown_table([["what", "figure"], *([name, value] for name, value in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.apps.page_benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="an exported folder")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=2048, help="at most, of a turn; default: %(default)s")
    options = parser.parse_args()
    folder = options.folder.resolve()
    model, runner = load_model(folder), OnnxDecoder(folder)
    settings = Settings(temperature=0.0, max_new_tokens=min(options.tokens, runner.max_length))
    with tempfile.TemporaryDirectory() as data:
        Kept(Path(data)).write(settings.panel_values())
        with (
            server("-c", RUN_CHAT, str(folder), data) as address,
            sync_playwright() as driver,
            Progress("page, rounds", options.rounds + 1) as progress,
        ):
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(PATIENCE_S * 1000)
            page.goto(DOORS[address].get(timeout=PATIENCE_S))
            page.wait_for_selector("#question textarea")
            rounds = []
            for number in range(options.rounds + 1):
                rounds.append(measure(page, model, runner, settings, number))
                progress.advance()
            browser.close()
    text = table(rounds[1:])  # the first has its buffers to make
    print(text)
    fill_file(DOCUMENT, "page", text)


if __name__ == "__main__":
    main()
