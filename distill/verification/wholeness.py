"""Finds faults of a trace that do not depend on whether its answer is right.

    incomplete   the turn did not end by itself, or has no answer: it counts as wrong
    unfit        complete and gradable, but not what a student may learn to write: one thought, then one answer, as text

The faults are reasons of verdicts (`incomplete`) and of curation (both). A cut answer must never be trained on: the
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
"""Least characters of a thought or question that an answer may not begin with; shorter ones may well be repeated."""

_TOOL_CALL = re.compile(
    r"<tool_call>|<\|tool_call|\[TOOL_CALLS\]|<function_calls>|<function=|<\|python_tag\|>|<\|tool▁|<｜tool▁|"
    r"<\|START_ACTION\|>|<tool_response>|<invoke name=|^```tool_code$",
    re.MULTILINE,
)
_CONTROL = re.compile(
    r"<\|[A-Za-z_][\w/.-]*\|>|<｜[^<>｜\n]{1,40}｜>|</?(?:start|end)_of_turn>|<turn\|>|<\|turn>|\[/?INST\]|<</?SYS>>|"
    r"<(?:bos|eos|pad|unk|unused\d+|extra_id_\d+)>|</s>\s*\Z|\A\s*<s>|</s>\s*<s>"
)
"""Tokens that begin or end a turn or a text in ChatML, Llama, Gemma, Mistral, DeepSeek, Phi, Command …"""
_NEXT_TURN = re.compile(
    r"^(?:Human|User|### ?(?:Instruction|Human|User)):.*?^(?:Assistant|AI|### ?(?:Response|Assistant)):|"
    r"(?<=\n)\n(?:Human|User|### ?(?:Instruction|Human|User)): [^\n]*\Z",
    re.DOTALL | re.MULTILINE,
)
"""A turn in plain words, as a model writes it that was prompted without its template."""
_NO_THOUGHTS = ("none", "null", "nan", "n/a", "undefined", "redacted", "encrypted")
"""Words that programs write for an absent thought."""
_BROKEN = re.compile(
    r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ufffe\uffff\ud800-\udfff]|<0x[0-9A-F]{2}>|(?:[Ġ▁][A-Za-z0-9]+[^A-Za-z0-9Ġ▁]*){3}"
)
"""Characters that no text has: control codes, surrogates, and marks of undecoded bytes or of a tokenizer's spaces."""


def incomplete(trace: Trace) -> Incomplete | None:
    """Return why a trace is not a complete answer; None if it is one."""
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
    """Return why a complete trace is not an example of a thought and its answer; None if it is one.

    Only a person may want an answer without a thought. Control tokens are also sought in the question, where a chat
    template could not tell them from its own.
    """
    thought, answer = trace.reasoning, trace.answer
    if _TOOL_CALL.search(answer):
        return "tool_call"
    if has_thought_tags(thought) or has_thought_tags(answer):
        return "thought_tags"
    words = thought.strip().strip(" \n.[]()<>")  # all white space, then punctuation around such a word
    has_thought = any(map(str.isalnum, thought)) and words.casefold() not in _NO_THOUGHTS
    if not has_thought and not trace.teacher.startswith(BY_A_PERSON):
        return "no_thought"
    if any(map(_has_control, (thought, answer, asked.transcript))) or _NEXT_TURN.search(answer):
        return "control_tokens"
    if _is_broken(thought) or _is_broken(answer):
        return "broken_text"
    if _is_copied(thought, answer, asked.question):
        return "copied"
    return "looping" if is_looping(thought) or is_looping(answer) else None


def _is_broken(text: str) -> bool:
    """Return whether `_BROKEN` matches; most texts are cleared by faster tests."""
    is_clear = text.replace("\n", "").replace("\t", "").isprintable()
    return (not is_clear or any(sign in text for sign in ("\ufffd", "<0x", "Ġ", "▁"))) and bool(_BROKEN.search(text))


def _has_control(text: str) -> bool:
    return ("<" in text or "INST]" in text) and bool(_CONTROL.search(text))


def _is_copied(thought: str, answer: str, question: str) -> bool:
    """Return whether two of the three are equal, or the answer begins with the whole of another."""
    asked, thought, answer = (" ".join(text.split()).casefold() for text in (question, thought, answer))
    begins = any(len(text) >= LEAST_COPIED and answer.startswith(text) for text in (asked, thought))
    return begins or len({asked, thought, answer}) < 3


def _has_text(text: str) -> bool:
    """Return whether a text has any visible character."""
    return any(character.isprintable() and not character.isspace() for character in text)
