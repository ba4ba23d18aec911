"""Finds out how a student is spoken to once it reasons, by rendering its own chat template.

    chatml   no template but ChatML's tokens, or ChatML and nothing else   REASONING_TEMPLATE
    base     neither                                                       the same, ended by its own end of text
    own      the template knows thoughts (R1, Qwen3, SmolLM3 …)            the template, byte for byte
    r1       any other                                                     the template, with R1's form around it

Invariant: what is said here of a template was seen in what it writes; nothing is read out of its source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from toolkit.errors import InputError
from toolkit.formats.chat_format import (
    CLOSE,
    MARK,
    REASONING_TEMPLATE,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TURN_END,
    TURN_START,
    ChatFormat,
    load_tokenizer,
)
from toolkit.formats.special_tokens import special_tokens
from toolkit.formats.templates import find_template
from toolkit.formats.thought_forms import tagged
from toolkit.records import Message, read_object
from toolkit.voice.reasoning_template import ending_with_eos, with_reasoning

SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates turn thoughts on and off: Qwen3, SmolLM3, GLM; Granite, DeepSeek-V3.1."""
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two numbers.",
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
        },
    }
]
"""A tool, by which a template shows whether it writes tools."""
SMOLLM2 = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""SmolLM2's default system message. It is the one that is left out, as R1's authors advise: a template of ChatML alone
keeps nothing else of its own."""

_QUESTION: Message = {"role": "user", "content": f" {MARK} question\n"}
_ANSWER: Message = {"role": "assistant", "content": f" {MARK} answer\n"}
_SYSTEM: Message = {"role": "system", "content": f" {MARK} system\n"}


@dataclass(frozen=True, kw_only=True)
class Voice:
    """The template of a student that reasons, and how it came about."""

    template: str
    form: Literal["chatml", "base", "own", "r1"]
    own: ChatFormat | None = None
    """The student's own chat format, if it has a template that was not replaced."""


def find_voice(student: Path) -> Voice:
    """Find how a student is spoken to; raises `InputError` if its template does not allow for thoughts."""
    config = read_object(student / TOKENIZER_CONFIG) if (student / TOKENIZER_CONFIG).exists() else {}
    template = find_template(student, config)
    if template is None:
        return _without_template(student, config)
    own = ChatFormat.from_folder(student)
    if _has_chatml(own.tokenizer) and _is_chatml(own):
        return Voice(template=REASONING_TEMPLATE, form="chatml")
    _check_end(student, own)
    if _thinks(student, own):
        return Voice(template=template, form="own", own=own)
    return Voice(template=with_reasoning(template), form="r1", own=own)


def _without_template(student: Path, config: Mapping[str, Any]) -> Voice:
    tokenizer = load_tokenizer(student / TOKENIZER)
    if _has_chatml(tokenizer):
        return Voice(template=REASONING_TEMPLATE, form="chatml")
    special = {name: token.content for name, token in special_tokens(student, config).items()}
    if tokenizer.token_to_id(special.get("eos_token", "")) is None:
        raise InputError(
            f"{student} has no chat template, and its {TOKENIZER_CONFIG} names no eos_token of its vocabulary to "
            "end turns with; copy both from the model's instruction-tuned version"
        )
    begins = tokenizer.encode("").ids[:1] == [tokenizer.token_to_id(special.get("bos_token", ""))]
    return Voice(template=ending_with_eos(begins=begins), form="base")


def _has_chatml(tokenizer: Tokenizer) -> bool:
    return all(tokenizer.token_to_id(token) is not None for token in (TURN_START, TURN_END))


def _is_chatml(own: ChatFormat) -> bool:
    """Whether a template writes ChatML and nothing else, whatever tools and switches it is given."""
    for messages in ([_QUESTION], [_SYSTEM, _QUESTION], [_QUESTION, _ANSWER, _QUESTION]):
        chatml = _chatml(messages)
        allowed = {chatml, f"{chatml}<think>\n"}
        if messages[0] is _QUESTION:
            allowed.add(_chatml([{"role": "system", "content": SMOLLM2}, *messages]))
        for switches in ({}, {"tools": TOOLS}, dict.fromkeys(SWITCHES, False)):
            try:
                written = own.render(messages, **switches)
            except InputError:
                return False
            if written not in allowed:
                return False
    return True


def _chatml(messages: Sequence[Message]) -> str:
    said = [f"{TURN_START}{message['role']}\n{message['content']}{TURN_END}\n" for message in messages]
    return "".join(said) + f"{TURN_START}assistant\n"


def _check_end(student: Path, own: ChatFormat) -> None:
    """Raise `InputError` unless a token ends an answer."""
    written, token = own.after_answer, end_token(own)
    if not token or not written.startswith(token):
        raise InputError(
            f"the chat template of {student} must end an answer with a token of its vocabulary, but writes "
            f"{written[:40]!r} after it; give the student a template that ends turns"
        )


def _thinks(student: Path, own: ChatFormat) -> bool:
    """Whether a template has a form of its own for thoughts that is R1's; raises `InputError` if it is another."""
    if own.opens_reasoning:
        return True
    if CLOSE in _prompt(own):
        raise InputError(
            f"the chat template of {student} closes the thought in its prompt, so that the model does not think unless "
            "a switch is set; make thinking the template's default"
        )
    if not any(CLOSE in _prompt(own, **{switch: False}) for switch in SWITCHES):
        return False
    prompt, said = own.render([_QUESTION]), tagged("so", f"{MARK} answer")
    expected = prompt + said + end_token(own)
    written = own.render([_QUESTION, {"role": "assistant", "content": said}], add_generation_prompt=False)
    if not written.startswith(expected):
        raise InputError(
            f"the chat template of {student} writes thoughts in another form than <think>: "
            f"{difference(written[: len(expected)], expected)}; give the student a template with R1's form"
        )
    return True


def end_token(own: ChatFormat) -> str:
    """Return the text of the token that ends turns."""
    return own.tokenizer.id_to_token(own.end_id) or ""


def _prompt(own: ChatFormat, **switches: Any) -> str:
    """Return what a template writes after the question."""
    return own.render([_QUESTION], **switches).rpartition(f"{MARK} question")[2]


def difference(written: str, expected: str) -> str:
    """Describe the first place in which two texts differ."""
    pairs = zip(written, expected, strict=False)
    place = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(written), len(expected)))
    begin = max(0, place - 20)
    return f"{written[begin : place + 30]!r} in place of {expected[begin : place + 30]!r} at character {place}"
