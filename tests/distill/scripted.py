"""A model that recites a script: the n-th time it meets a prompt, it says the prompt's n-th line.

This holds at any temperature, since a line's next token is all but certain. Lines are text; end of turn follows each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from toolkit.formats.chat_format import TURN_END, ChatFormat
from toolkit.generation.generate import Floats, Ints


class ScriptedDecoder:
    max_length = 4096

    def __init__(self, folder: Path, lines: Mapping[str, Sequence[str]]) -> None:
        """`lines`: the answers to each question, repeated from the first after the last."""
        chat_format = ChatFormat.from_folder(folder)
        self._vocab_size = chat_format.tokenizer.get_vocab_size()
        self._lines = {
            tuple(chat_format.question_ids(question)): [chat_format.encode(line + TURN_END) for line in said]
            for question, said in lines.items()
        }
        self._met: Counter[tuple[int, ...]] = Counter()

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        self._rows = [self.next_line(prompt) for prompt in prompts]
        return self._logits(self._rows)

    def step(self, tokens_B: Ints) -> Floats:
        self._rows = [ids[1:] or ids for ids in self._rows]
        return self._logits(self._rows)

    def keep(self, rows: Ints) -> None:
        self._rows = [self._rows[row] for row in rows]

    def replace(self, rows: Ints, prompts: Sequence[Sequence[int]]) -> Floats:
        said = [self.next_line(prompt) for prompt in prompts]
        for row, ids in zip(rows, said, strict=True):
            self._rows[row] = ids
        return self._logits(said)

    def next_line(self, prompt: Sequence[int]) -> list[int]:
        said = self._lines[tuple(prompt)]
        self._met[tuple(prompt)] += 1
        return said[(self._met[tuple(prompt)] - 1) % len(said)]

    def _logits(self, rows: Sequence[Sequence[int]]) -> Floats:
        logits_BV = np.zeros((len(rows), self._vocab_size), dtype=np.float32)
        for row, ids in enumerate(rows):
            logits_BV[row, ids[0]] = 1000.0
        return logits_BV
