"""Finds questions that an exported student learned from, for the start page of the chat.

    verify.json       the prompts of the folder's greedy answers, as ids; of a calibrated export they are examples
    trained_on.json   digests of what the student learned from

A prompt's question is offered if its digest is among those: the gate's own questions, and examples of another model,
are not. Nothing is kept in the folder for this.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from export.runtime.verify.record import RECORD_FILE, read_record
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.formats.tokenizer_bounds import decoded
from toolkit.records import TRAINED_ON, Asked, content_hash, read_object

LONGEST = 160
"""The most characters of a question that is offered."""
_ASKED = "What is asked?"


def learned_questions(folder: Path, chat_format: ChatFormat) -> tuple[str, ...]:
    """Return short questions of a folder's record that its student learned from; none if the folder carries none."""
    if not ((folder / RECORD_FILE).is_file() and (folder / TRAINED_ON).is_file()):
        return ()
    found: dict[str, None] = {}
    with suppress(InputError):  # a chat without them is as good
        learned = read_object(folder / TRAINED_ON).get("questions")
        digests = learned if isinstance(learned, list) else []
        for question in _recorded(folder, chat_format):
            is_plain = len(question) <= LONGEST and question.replace("\n", " ").isprintable()
            if is_plain and content_hash(Asked(question=question).transcript) in digests:
                found[question] = None
    return (*found,)


def _recorded(folder: Path, chat_format: ChatFormat) -> Iterator[str]:
    """Yield what stands in each recorded prompt where the template writes a conversation's first question."""
    before, is_there, behind = chat_format.render([{"role": "user", "content": _ASKED}]).partition(_ASKED)
    for greedy in read_record(folder).greedy if is_there else ():
        prompt = decoded(chat_format.tokenizer, greedy.prompt)
        if prompt.startswith(before) and prompt.endswith(behind):
            yield prompt[len(before) : len(prompt) - len(behind)].strip()
