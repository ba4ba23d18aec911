"""Two scripted models side by side; the second one is wrong about 84 and 36 and slower.

Run as `python -m tests.apps.scripted_comparison FOLDER`, FOLDER holding a tokenizer and a template.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.apps.scripted import EXAMPLES, ScriptedDecoder
from toolkit.formats.chat_format import TURN_END, ChatFormat, completion_text
from toolkit.generation.chat_model import LocalChatModel
from toolkit.generation.generate import Floats

WRONG = completion_text("84 - 36 = 48, which is all.", "The answer is **48**.")


class WrongDecoder(ScriptedDecoder):
    """Says the same to every question but a long one."""

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        logits_BV = super().start(prompts)
        if len(self._ids) < 1000:
            self._ids = self._chat_format.encode(WRONG + TURN_END)
            return self._next()
        return logits_BV


def main(folder: Path, data: Path) -> None:
    from apps.chat.conversation.store import Store
    from apps.chat.run_chat import serve
    from apps.model import Model

    chat_format = ChatFormat.from_folder(folder)
    models = [
        Model(name=name, size_bytes=size_bytes, chat_model=LocalChatModel(decoder, chat_format), questions=EXAMPLES)
        for name, size_bytes, decoder in (
            ("student", 270_000_000, ScriptedDecoder(chat_format, max_length=4096, step_s=0.01)),
            ("student-int4", 86_000_000, WrongDecoder(chat_format, max_length=4096, step_s=0.03)),
        )
    ]
    serve(models, Store(data, time.time), host="127.0.0.1", port=0, window="none")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
