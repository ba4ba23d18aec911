"""A chat server over a scripted decoder: real tokenizer, template, page and network; only the logits are written ahead.

Run as `python -m tests.apps.scripted FOLDER DATA`, FOLDER holding a tokenizer and a template, DATA the chats. The
script of a turn is chosen by words of the question, so that a browser test can ask for exact cases.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.apps.formatted import AT_ONCE, FORMATTED
from tests.apps.hostile import ENORMOUS, HOSTILE
from toolkit.formats.chat_format import TURN_END, TURN_START, ChatFormat, completion_text
from toolkit.generation.chat_model import LocalChatModel
from toolkit.generation.generate import Floats, Ints

LONG = " ".join(f"Step {i}: take {i} and keep it." for i in range(1, 400))

EXAMPLES = (
    "Find the Greatest Common Divisor (GCD) of these numbers: 84, 36. Give only the GCD as your final answer.",
    "State the final answer to the following arithmetic problem: 57 + 87 + 70 =",
    'How many times does the letter "e" appear in the text: "free the witness"?',
    "Spell this word backward (example: sun -> nus): reason",
)
"""What the model has learned from, as far as the page knows."""
SCRIPTS = {
    "long thought": completion_text(LONG, "never reached"),
    "twenty steps": completion_text(" ".join(f"Step {i}." for i in range(1, 21)), "All **twenty** are done."),
    "round in circles": completion_text("Wait, I must look at this number once more. " * 200, "It was **7**."),
    "long answer": completion_text("Short.", LONG),
    "markup": completion_text(
        "Is <b>bold</b> text?",
        "<img src=http://example.invalid/a.png> ![x](http://example.invalid/b.png) <script>alert(1)</script> "
        "1 < 2, `a<b>c`, \\(x<y\\) and $$\\frac{a<b}{2}$$\n\n```html\n<p>code</p>\n```",
    ),
    **HOSTILE,
    **FORMATTED,
    "": completion_text(
        "84 = 2 * 36 + 12\n36 = 3 * 12 + 0\nThe last remainder that is not zero is 12.", "The answer is **12**."
    ),
}
"""Words of a question → the model's answer; the last entry answers everything else."""


class ScriptedDecoder:
    """Plays the ids of a script, one at a time, whatever is sampled."""

    def __init__(self, chat_format: ChatFormat, *, max_length: int, step_s: float) -> None:
        self.max_length = max_length
        self.step_s = step_s
        self._chat_format = chat_format
        self._ids: list[int] = []

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        (prompt,) = prompts
        text = self._chat_format.tokenizer.decode(list(prompt), skip_special_tokens=False).rsplit("user\n", 1)[1]
        question, _, written = text.partition(TURN_START + "assistant\n<think>\n")
        script = next(text for words, text in SCRIPTS.items() if words in question)
        self._ids = self._rest(script, self._chat_format.encode(written))
        return self._next()

    def _rest(self, script: str, written: list[int]) -> list[int]:
        """Return the ids with which the script continues: the next ones after its own, the answer's after a closed
        thought."""
        ids = self._chat_format.encode(script + TURN_END)
        if ids[: len(written)] == written:
            return ids[len(written) :]
        return self._chat_format.encode(script.partition("</think>\n\n")[2] + TURN_END)

    def step(self, tokens_B: Ints) -> Floats:
        assert len(tokens_B) == 1
        time.sleep(self.step_s)
        return self._next()

    def replace(self, rows: Ints, prompts: Sequence[Sequence[int]]) -> Floats:
        raise AssertionError("a chat has one row")

    def keep(self, rows: Ints) -> None:
        raise AssertionError("a chat has one row")

    def _next(self) -> Floats:
        logits_BV = np.full((1, self._chat_format.tokenizer.get_vocab_size()), -100.0, dtype=np.float32)
        logits_BV[0, self._ids.pop(0)] = 0.0
        return logits_BV


def main(folder: Path, data: Path) -> None:
    from apps.chat.conversation.store import Store
    from apps.chat.run_chat import serve
    from apps.model import Model

    chat_format = ChatFormat.from_folder(folder)
    chat_format.tokenizer.add_tokens([*ENORMOUS, *AT_ONCE])
    decoder = ScriptedDecoder(chat_format, max_length=4096, step_s=0.03)
    model = Model(
        name="scripted",
        size_bytes=86_000_000,
        chat_model=LocalChatModel(decoder, chat_format),
        questions=EXAMPLES,
    )
    serve([model], Store(data, time.time), host="127.0.0.1", port=0, window="none")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
