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
        self._rows, self._position = [], 0
        for prompt in map(tuple, prompts):
            said = self._lines[prompt]
            self._rows.append(said[self._met[prompt] % len(said)])
            self._met[prompt] += 1
        return self._logits()

    def step(self, tokens_B: Ints) -> Floats:
        self._position += 1
        return self._logits()

    def keep(self, rows: Ints) -> None:
        self._rows = [self._rows[row] for row in rows]

    def _logits(self) -> Floats:
        logits_BV = np.zeros((len(self._rows), self._vocab_size), dtype=np.float32)
        for row, ids in enumerate(self._rows):
            logits_BV[row, ids[min(self._position, len(ids) - 1)]] = 1000.0
        return logits_BV
