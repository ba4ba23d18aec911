"""Measures what the page costs: the same turns of one exported folder with and without it, and how soon a long question
is answered.

    python -m tests.apps.page_benchmark DIR [--rounds 12] [--tokens 2048]

The page is that of `toolkit chat`, shown by a real Chromium on the same machine. One loaded model writes both, turn by
turn, because the same weights can be a fifth faster in one process than in another, depending on where their memory
happens to be. Writes a block of docs/notes/page-cost.md.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from playwright.sync_api import sync_playwright

from apps.access.address import listen
from apps.access.admission import Admission
from apps.chat.conversation.author import run_turn
from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.store import Store
from apps.chat.panels.settings_panel import SavedSettings, Settings
from apps.chat.run_chat import build_application
from apps.model import Model, load_model
from benchmarks.serving.load import PROMPT_TOKENS, long_question
from tests.apps.in_thread import serving
from tests.apps.test_chat_page import CHROMIUM, FLAGS, PATIENCE_S, expect
from toolkit.figures.readme import fill_file
from toolkit.figures.tables import markdown_table, percent
from toolkit.generation.chat_model import LocalChatModel
from toolkit.generation.speculation import SpeculativeDecoder
from toolkit.progress import Progress

if TYPE_CHECKING:
    from playwright.sync_api import Page

DOCUMENT = Path("docs/notes/page-cost.md")
QUESTIONS = (
    "Sort these numbers in descending order: 12, 99, 41, 7, 56, 23, 88, 64, 35, 71, 18, 93, 46, 5, 80",
    "Sort these numbers in ascending order: 31, 8, 77, 52, 19, 66, 94, 3, 45, 28, 83, 60, 17, 39, 72, 11, 58, 90",
    (
        "Sort these numbers in descending order: 64, 2, 87, 33, 50, 76, 21, 98, "
        "15, 42, 69, 8, 55, 91, 37, 24, 73, 46, 80, 13"
    ),
)
"""Questions whose answers are long, for a small model."""
PAUSES_S = (0.0, 1.0)
"""Between pasting a long question and sending it, in which the chat reads ahead."""
LOOK_S = 2.5
"""Between two checks of a turn, longer than most: Playwright's own waiting checks the page in every frame."""
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


def without_page(model: Model, question: str, settings: Settings) -> Written:
    conversation = Conversation()
    turn = conversation.ask(question, model.chat_model)
    messages, sampling = conversation.messages(question, turn), settings.sampling(seed=0)
    for _ in run_turn(model.chat_model, messages, turn, sampling, time.monotonic):
        pass
    assert turn.tokens_per_s is not None
    return Written(tokens=turn.tokens, tokens_per_s=turn.tokens_per_s)


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
    """Read the status line when the turn has ended: the turn, and the seconds to its first token."""
    page.wait_for_timeout(LOOK_S * 1000)
    while not page.locator("#question .submit-button").is_visible():
        page.wait_for_timeout(LOOK_S * 1000)
    found = re.search(STATUS, page.locator("#status").inner_text())
    assert found, f"the status line says {page.locator('#status').inner_text()!r}"
    tokens = int(found[1] or 0) + int(found[2] or 0)
    return Written(tokens=tokens, tokens_per_s=float(found[3])), float(found[4])


def new_chat(page: Page) -> None:
    page.click("#new-chat")
    expect(page.locator("#chat .user-row")).to_have_count(0)


@dataclass(frozen=True, kw_only=True)
class Round:
    """Measurements of every question with and without the page, and of a long one after each pause."""

    pairs: list[tuple[Written, Written]]
    """For each question: with the page and without."""
    first: dict[float, tuple[float, float]]
    read_s: float
    """The runner's own reading of the long question."""


@contextmanager
def served(model: Model, data: Path) -> Iterator[str]:
    """Serve the chat of a loaded model on a thread, and yield the address that opens it."""
    with listen("127.0.0.1", 0) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        admission = Admission(f"http://{address}", "/", lambda door: None)
        application = build_application([model], Store(data, time.time), admission, frozenset({address}))
        with serving(application, listener):
            yield admission.door


def measure(page: Page, model: Model, settings: Settings, number: int) -> Round:
    pairs = [(on_page(page, asked), without_page(model, asked, settings)) for asked in QUESTIONS]
    chat_model = model.chat_model
    assert isinstance(chat_model, LocalChatModel) and isinstance(chat_model.decoder, SpeculativeDecoder)
    question = long_question(chat_model.chat_format, number)[0]["content"]
    first = {pause_s: first_text(page, f"{i} {question}", pause_s) for i, pause_s in enumerate(PAUSES_S)}
    begun = time.perf_counter()
    chat_model.decoder.start([chat_model.chat_format.question_ids(question)])
    read_s = time.perf_counter() - begun
    return Round(pairs=pairs, first=first, read_s=read_s)


def table(rounds: Sequence[Round]) -> str:
    """Write the medians as Markdown."""
    pairs = [pair for each in rounds for pair in each.pairs]
    tokens, shown, alone = _medians(pairs)
    by_question = zip(*(each.pairs for each in rounds), strict=True)  # rounds differ in their words, and so in speed
    costs = ", ".join(f"{100 * (1 - shown / alone):.1f}" for _, shown, alone in map(_medians, by_question))
    rows = [
        ("tokens a turn", f"{tokens:.0f}"),
        ("decoding with the page", f"{shown:.1f} tokens/s"),
        ("without", f"{alone:.1f} tokens/s"),
        ("the page's cost (of each question)", f"{percent(1 - shown / alone)} ({costs})"),
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


def _figures(pair: tuple[Written, Written]) -> tuple[float, float, float]:
    """Compute the tokens of a turn, and tokens/s with and without the page."""
    shown, alone = pair
    return shown.tokens, shown.tokens_per_s, alone.tokens_per_s


def _medians(pairs: Sequence[tuple[Written, Written]]) -> list[float]:
    return [median(values) for values in zip(*map(_figures, pairs), strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.apps.page_benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="an exported folder")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=2048, help="at most, of a turn; default: %(default)s")
    options = parser.parse_args()
    folder = options.folder.resolve()
    model = load_model(folder)
    settings = Settings(temperature=0.0, max_new_tokens=min(options.tokens, model.chat_model.max_length))
    with tempfile.TemporaryDirectory() as data:
        SavedSettings(Path(data)).write(settings.panel_values())
        with (
            served(model, Path(data)) as door,
            sync_playwright() as driver,
            Progress("page, rounds", options.rounds + 1) as progress,
        ):
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(PATIENCE_S * 1000)
            page.goto(door)
            page.wait_for_selector("#question textarea")
            rounds = []
            for number in range(options.rounds + 1):
                rounds.append(measure(page, model, settings, number))
                progress.advance()
            browser.close()
    text = table(rounds[1:])  # the first has its buffers to make
    print(text)
    fill_file(DOCUMENT, "page", text)


if __name__ == "__main__":
    main()
