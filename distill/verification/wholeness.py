"""What is wrong with a trace as it stands, whether its answer is right or not.

    incomplete   the turn did not end by itself, or has no answer: it is wrong, whoever grades it
    unfit        whole, and gradable, but not what a student may learn to write: one thought, then one answer, both text

The names are reasons of verdicts (`incomplete`) and of curation (both). A cut answer must never be trained on: the
student would learn to end its turn there.
"""

from __future__ import annotations

import re
from typing import Literal

from distill.verification.loops import is_looping
from toolkit.formats.thought_forms import has_thought_tags
from toolkit.records import BY_A_PERSON, Asked, Trace

Incomplete = Literal["truncated", "filtered", "tool_call", "broken_off", "empty"]
Unfit = Literal["tool_call", "thought_tags", "no_thought", "control_tokens", "broken_text", "copied", "looping"]

LEAST_COPIED = 80
"""Characters of a thought or question that an answer begins with; less may be said twice for good reason."""

_TOOL_CALL = re.compile(
    r"<tool_call>|<\|tool_call|\[TOOL_CALLS\]|<function_calls>|<function=|<\|python_tag\|>|<\|tool▁|<｜tool▁|<\|START_ACTION\|>|"
    r"<tool_response>|<invoke name=|^```tool_code$",
    re.MULTILINE,
)
_CONTROL = re.compile(
    r"<\|[A-Za-z_][\w/.-]*\|>|<｜[^<>｜\n]{1,40}｜>|</?(?:start|end)_of_turn>|<turn\|>|<\|turn>|\[/?INST\]|<</?SYS>>|"
    r"<(?:bos|eos|pad|unk|unused\d+|extra_id_\d+)>|</s>\s*\Z|\A\s*<s>|</s>\s*<s>"
)
"""Tokens that end or begin a turn or a text: of ChatML, Llama, Gemma, Mistral, DeepSeek, Phi, Command …"""
_NEXT_TURN = re.compile(
    r"^(?:Human|User|### ?(?:Instruction|Human|User)):.*?^(?:Assistant|AI|### ?(?:Response|Assistant)):"
    r"|(?<=\n)\n(?:Human|User|### ?(?:Instruction|Human|User)): [^\n]*\Z",
    re.DOTALL | re.MULTILINE,
)
"""A turn in plain words: what a model writes that was prompted without its template."""
_NO_THOUGHTS = ("none", "null", "nan", "n/a", "undefined", "redacted", "encrypted")
"""What programs write where there is nothing."""
_BROKEN = re.compile(
    r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ufffe\uffff\ud800-\udfff]|<0x[0-9A-F]{2}>|(?:[Ġ▁][A-Za-z0-9]+[^A-Za-z0-9Ġ▁]*){3}"
)
"""Characters that no text has: control codes, halves of characters, and what stands for bytes that were no text, or for
the spaces of a tokenizer."""


def incomplete(trace: Trace) -> Incomplete | None:
    """What keeps a trace from being an answer, or None."""
    match trace.finish_reason:
        case "stop":
            pass
        case "content_filter":
            return "filtered"
        case "tool_calls":
            return "tool_call"
        case "error":
            return "broken_off"
        case _:
            return "truncated"
    if not trace.closed:
        return "truncated"
    return None if _has_text(trace.answer) else "empty"


def unfit(trace: Trace, asked: Asked) -> Unfit | None:
    """What keeps a complete trace from being an example of a thought and its answer, or None.

    Only a person may want an answer without a thought. Control tokens are looked for in what was asked too, where a
    chat template would not tell them from its own.
    """
    thought, answer = trace.reasoning, trace.answer
    if _TOOL_CALL.search(answer):
        return "tool_call"
    if has_thought_tags(thought) or has_thought_tags(answer):
        return "thought_tags"
    words = thought.strip().strip(" \n.[]()<>")  # white space of every kind, then what stands around such a word
    has_thought = any(map(str.isalnum, thought)) and words.casefold() not in _NO_THOUGHTS
    if not has_thought and not trace.teacher.startswith(BY_A_PERSON):
        return "no_thought"
    if any(map(_CONTROL.search, (thought, answer, asked.transcript))) or _NEXT_TURN.search(answer):
        return "control_tokens"
    if _BROKEN.search(thought) or _BROKEN.search(answer):
        return "broken_text"
    if _is_copied(thought, answer, asked.question):
        return "copied"
    return "looping" if is_looping(thought) or is_looping(answer) else None


def _is_copied(thought: str, answer: str, question: str) -> bool:
    """Whether two of the three are one text, or the answer begins with one of the others as a whole."""
    asked, thought, answer = (" ".join(text.split()).casefold() for text in (question, thought, answer))
    begins = any(len(text) >= LEAST_COPIED and answer.startswith(text) for text in (asked, thought))
    return begins or len({asked, thought, answer}) < 3


def _has_text(text: str) -> bool:
    """Whether anything of a text can be seen."""
    return any(character.isprintable() and not character.isspace() for character in text)
