"""Turns a server's chat completion into a trace: thought, answer, and whether both are whole.

    message ─ fields and parts (`toolkit.formats.message_fields`) ─ forms of thoughts in its text (`thought_forms`) ─> Reading

Finish reasons use the words of OpenAI, Anthropic, Google, Cohere, Mistral, DeepSeek, Zhipu, vLLM, SGLang and Hugging
Face. A missing one counts as the model's own stop if there is an answer and the limit was not reached; an unknown word
counts as an error, since nothing says that the answer is whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from distill.collecting.job import Request
from toolkit.formats.chat_format import Completion
from toolkit.formats.message_fields import content_parts, reasoning_of
from toolkit.formats.thought_forms import has_thought_tags, read_text, tagged, without_wrapping
from toolkit.generation.endpoint import count_of
from toolkit.records import FinishReason, Message, Trace

ENDS: Mapping[FinishReason, tuple[str, ...]] = {
    "stop": ("stop", "end_turn", "stop_sequence", "eos", "eos_token", "complete", "completed", "finished"),
    "length": (
        "length",
        "max_tokens",
        "model_length",
        "max_output_tokens",
        "max_length",
        "incomplete",
        "model_context_window_exceeded",
    ),
    "content_filter": (
        *("content_filter", "content_filtered", "safety", "recitation", "blocklist", "prohibited_content", "spii"),
        *("refusal", "sensitive", "error_toxic", "guardrail_intervened"),
    ),
    "tool_calls": ("tool_calls", "tool_call", "tool_use", "function_call"),
    "error": ("error", "abort", "cancelled", "insufficient_system_resource", "network_error", "error_limit", "timeout"),
}
"""Servers' words for each finish reason, in lower case."""


@dataclass(frozen=True, kw_only=True)
class ServerReply(Completion):
    """A message's thought and answer, and why it ended."""

    finish_reason: FinishReason


def read_message(message: Mapping[str, Any], finish_reason: Any, *, reached_limit: bool = False) -> ServerReply:
    """Read one message of a chat completion.

    `finish_reason`: as the server sent it, or None. `reached_limit`: whether the message has as many tokens as allowed.
    Raises `TypeError` if the message holds no text.
    """
    completion = _completion(message)
    return ServerReply(
        **vars(completion), finish_reason=_finish_reason(message, finish_reason, completion, reached_limit)
    )


def read_trace(answer: Mapping[str, Any], request: Request[list[Message]], teacher: str, max_new_tokens: int) -> Trace:
    """Read the trace of a server's chat completion; `teacher`: name@digest.

    Raises `ValueError`, `LookupError`, `TypeError`, `AttributeError` or `RecursionError` if it is none.
    """
    choice = answer["choices"][0]
    usage = answer["usage"] if isinstance(answer.get("usage"), dict) else {}
    tokens = count_of(usage.get("completion_tokens"))
    reached_limit = tokens is not None and tokens >= max_new_tokens
    read = read_message(choice["message"], choice.get("finish_reason"), reached_limit=reached_limit)
    if read.reasoning or read.answer:
        tokens = tokens or None  # a server that says 0 of a text does not count
    details = usage.get("completion_tokens_details")
    thought = count_of(details.get("reasoning_tokens")) if isinstance(details, dict) else None
    return request.trace(
        read,
        read.finish_reason,
        teacher,
        prompt_tokens=count_of(usage.get("prompt_tokens")) or None,
        reasoning_tokens=thought or (None if tokens is None else _share_of_tokens(read, tokens)),
        completion_tokens=tokens,
    )


def _share_of_tokens(completion: Completion, tokens: int) -> int:
    """Estimate the thought's tokens by its characters, for servers that do not count them separately."""
    characters = len(completion.reasoning) + len(completion.answer)
    return round(tokens * len(completion.reasoning) / characters) if characters else 0


def _completion(message: Mapping[str, Any]) -> Completion:
    field, parts = reasoning_of(message), content_parts(message)
    content = _one_text(parts) if parts else str(message.get("refusal") or "")
    if not field.strip():
        return read_text(content)
    if not content.strip():
        return _only_field(field)
    inline = read_text(content)
    thought = _without_tags(field)
    if not inline.reasoning.strip() and not has_thought_tags(inline.answer):
        return replace(inline, reasoning=thought, answer=without_wrapping(inline.answer))
    if inline.reasoning.split() == thought.split():
        return inline
    return Completion(reasoning=thought, answer=content, closed=True)  # two thoughts: the second keeps its tags


def _one_text(parts: list[tuple[bool, str]]) -> str:
    """Join a content's parts into one text, with thoughts in tags."""
    joined: list[tuple[bool, str]] = []
    for is_thought, text in parts:
        if joined and joined[-1][0] == is_thought:
            joined[-1] = (is_thought, joined[-1][1] + text)
        else:
            joined.append((is_thought, text))
    return "".join(tagged(text, "") if is_thought else text for is_thought, text in joined)


def _only_field(field: str) -> Completion:
    """Read a message without content: its thought was cut, or the server put everything into the thought's field."""
    read = read_text(field)
    if read.closed and read.reasoning and read.answer.strip():
        return read
    return Completion(reasoning=_without_tags(field), answer="", closed=False)


def _without_tags(field: str) -> str:
    """Strip the tags around a whole thought's field."""
    read = read_text(field)
    is_whole = read.reasoning and not (read.closed and read.answer.strip())
    return read.reasoning if is_whole else field.removeprefix("\n").removesuffix("\n")


def _finish_reason(message: Mapping[str, Any], given: Any, completion: Completion, reached_limit: bool) -> FinishReason:
    if message.get("tool_calls") or message.get("function_call"):
        return "tool_calls"
    if given is None or given == "":
        if reached_limit:
            return "length"
        return "stop" if completion.closed and completion.answer.strip() else "error"
    word = re.sub(r"[\W_]+", "_", str(given)).strip("_").lower()
    word = word.removeprefix("finishreason_").removeprefix("finish_reason_")
    return next((reason for reason, words in ENDS.items() if word in words), "error")
