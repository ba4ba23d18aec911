"""Proves, before anything is trained, that a student is trained on what inference renders, byte by byte.

    conversation ─┬─ our runner                 prompt_ids + begun_ids      the ids that are trained on
                  ├─ transformers               apply_chat_template         the same text, the same ids
                  └─ llama.cpp's form           the template's text, tokenized at once with its control tokens

and that the template is the student's own but for R1's form: with tools, switches and without a turn to be written it
writes what the student's own template writes. A content that names control tokens stays text in our runner alone, so
there texts are compared, and the control tokens of the ids.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.utils.logging import get_verbosity, set_verbosity, set_verbosity_error

from distill.students.proof_texts import ANSWER, CONVERSATIONS, EARLIER, THOUGHT, naming
from toolkit.errors import InputError
from toolkit.formats.chat_format import CLOSE, OPEN, ChatFormat, completion_text, split_completion
from toolkit.records import Message
from toolkit.terminal import say
from toolkit.voice.reasoning_template import OPENING
from toolkit.voice.student_format import write_student_format
from toolkit.voice.student_voice import SWITCHES, TOOLS, difference, find_voice

NAMED = 12
"""How many of the first and of the last tokens a conversation names."""
NAMES, TURN = "names of control tokens", "a turn"


def prove_voice(student: Path) -> None:
    """Prove the chat files that a student gets; raises `InputError` with the first difference."""
    voice = find_voice(student)
    if voice.form == "base":
        say(f"distill: {student} has no chat template; its turns are written as ChatML's and end with its end of text")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        chat_format = write_student_format(student, folder, voice)
        shutil.copyfile(student / "config.json", folder / "config.json")  # by which transformers chooses a class
        theirs = _transformers_tokenizer(folder)
        if voice.form == "r1" and voice.own:
            _prove_template(voice.own, chat_format)
        _prove_prompts(theirs, chat_format)
        _prove_turns(theirs, chat_format)


def _transformers_tokenizer(folder: Path) -> Any:
    verbosity = get_verbosity()
    set_verbosity_error()
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise InputError(f"transformers cannot read the student's tokenizer: {error}; get it again") from error
    finally:
        set_verbosity(verbosity)


def _conversations(chat_format: ChatFormat) -> dict[str, list[Message]]:
    names = sorted(token.content for token in chat_format.tokenizer.get_added_tokens_decoder().values())
    chosen = list(dict.fromkeys([*names[:NAMED], *names[-NAMED:], OPEN, CLOSE]))
    return CONVERSATIONS | {NAMES: naming(chosen)}


def _prove_template(own: ChatFormat, chat_format: ChatFormat) -> None:
    """Prove that R1's form is all that was put around the student's own template."""
    alone: list[dict[str, Any]] = [{}, {"tools": TOOLS}, {"add_generation_prompt": False}]
    switched = [{switch: value} for switch in SWITCHES for value in (True, False)]
    for name, messages in _conversations(chat_format).items():
        for switches in [*alone, *switched]:
            expected = _rendered(own, [without_thought(message) for message in messages], switches)
            if expected is not None and switches.get("add_generation_prompt", True):
                expected += OPENING
            written = _rendered(chat_format, messages, switches)
            _compare(f"with R1's form around it and {switches or 'no switches'}", name, written, expected)


def _prove_prompts(theirs: Any, chat_format: ChatFormat) -> None:
    """Prove that transformers and llama.cpp's form have the prompts of our runner."""
    for name, messages in _conversations(chat_format).items():
        for switches in ({"tools": TOOLS}, {}):
            try:
                text = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **switches)
            except Exception:  # noqa: BLE001 – whatever a template does
                text = None
            _compare("in transformers", name, text, _rendered(chat_format, messages, switches))
        if text is None:
            continue
        ids = chat_format.prompt_ids(messages)
        if name == NAMES or EARLIER in text:  # our runner keeps the names of control tokens as text
            special = _special_ids(chat_format)
            plain = chat_format.prompt_ids([message | {"content": "so"} for message in messages])
            steering = ([id for id in ids if id in special], [id for id in plain if id in special])
            _compare_ids("where contents name none", name, chat_format, *steering)
        else:
            called = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            _compare_ids("in transformers", name, chat_format, called, ids)
            _compare_ids("in llama.cpp's form", name, chat_format, chat_format.encode(text), ids)


def _prove_turns(theirs: Any, chat_format: ChatFormat) -> None:
    """Prove that a turn is trained on as it is served, decoded and read."""
    opened = chat_format.opens_reasoning
    for messages in CONVERSATIONS.values():
        if _rendered(chat_format, messages, {}) is None:
            continue
        ids, mask = chat_format.training_ids(messages, THOUGHT, ANSWER)
        begun = [*chat_format.prompt_ids(messages), *chat_format.begun_ids(THOUGHT, ANSWER)]
        _compare_ids("in our runner", TURN, chat_format, [*begun, chat_format.end_id], ids)
    turn = [id for id, is_trained in zip(ids, mask, strict=True) if is_trained][:-1]
    expected = ("" if opened else OPENING) + completion_text(THOUGHT, ANSWER)
    _compare("decoded by our runner", TURN, chat_format.decode(turn), expected)
    _compare("decoded by transformers", TURN, theirs.decode(turn), expected)
    read = split_completion(expected, opened=opened)
    _compare("read as thought and answer", TURN, read.reasoning + read.answer, THOUGHT + ANSWER)


def without_thought(message: Message) -> Message:
    """Return a message without the thought that an answer begins with."""
    content = message["content"]
    if message["role"] != "assistant" or not content.startswith(OPEN):
        return message
    return message | {"content": content.partition(CLOSE)[2].lstrip()}


def _special_ids(chat_format: ChatFormat) -> set[int]:
    return {id for id, token in chat_format.tokenizer.get_added_tokens_decoder().items() if token.special}


def _rendered(chat_format: ChatFormat, messages: Sequence[Message], switches: Mapping[str, Any]) -> str | None:
    """Render messages; None if the template refuses them, as some refuse a system message."""
    try:
        return chat_format.render(messages, **switches)
    except InputError:
        return None


def _compare(where: str, name: str, written: str | None, expected: str | None) -> None:
    if written != expected:
        raise _unproven(where, name, difference(written or "(refused)", expected or "(refused)"))


def _compare_ids(where: str, name: str, chat_format: ChatFormat, found: Sequence[int], expected: Sequence[int]) -> None:
    if list(found) != list(expected):
        texts = [[chat_format.tokenizer.id_to_token(id) or "" for id in ids] for ids in (found, expected)]
        place = next((n for n, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), None)
        at = min(len(found), len(expected)) if place is None else place
        written, wanted = (" ".join(text[at : at + 5]) for text in texts)
        raise _unproven(where, name, f"token {at} is {written!r} in place of {wanted!r}")


def _unproven(where: str, name: str, told: str) -> InputError:
    return InputError(
        f"what a student is trained on must be what inference reads, but its template writes {name!r} differently "
        f"{where}: {told}; choose another student, or get its tokenizer and its template again"
    )
