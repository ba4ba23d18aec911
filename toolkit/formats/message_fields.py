"""Reads a server's message, or a piece of one: what the model thought, and what it says.

    reasoning_content, reasoning, thinking     the thought, as a text, a list of parts, or an object
    reasoning_details                          OpenRouter's list of parts
    content                                    the answer, as a text or a list of parts, some of which may be thoughts

A part is an object like `{"type": "text", "text": …}` or `{"type": "thinking", "thinking": …}` (Mistral, Anthropic),
and its value may again be a list of parts. Parts without a text (encrypted thoughts, tool calls, images) give none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Fields of a message or a delta in which DeepSeek and llama.cpp, vLLM, and Ollama put the thought."""
REASONING_DETAILS = "reasoning_details"
"""OpenRouter's field: https://openrouter.ai/docs/use-cases/reasoning-tokens."""
THOUGHT_TYPES = ("thinking", "reasoning", "thought")
"""How the type of a part that is a thought begins: `thinking`, `reasoning.text`, `reasoning_content` …"""
BLOCK_TYPES = (*THOUGHT_TYPES, "summary")
"""Types of parts that are paragraphs of their own; other parts continue the one before."""
TEXT_KEYS = ("text", "thinking", "reasoning", "content", "summary", "refusal")
"""Keys under which a part has its text or its own parts; the first that holds one counts."""


def reasoning_of(message: Mapping[str, Any]) -> str:
    """Return the thought from a field of its own; white space if no field holds more."""
    return _fullest(_text(message.get(name)) for name in (*REASONING_FIELDS, REASONING_DETAILS))


def content_parts(message: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """Return the content part by part as (whether it is a thought, text); raises `TypeError` if it is malformed."""
    content = message.get("content")
    if content is None:
        return []
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, str | dict) for part in parts):
        raise TypeError(f"content must be a text or a list of parts, not {type(content).__name__}")
    return [(_is_thought(part), text) for part in parts if (text := _text(part))]


def whole(text: str) -> str:
    """Replace each half of a surrogate pair by U+FFFD, so that UTF-8 and every tokenizer can hold the text."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _is_thought(part: str | dict[str, Any]) -> bool:
    if isinstance(part, str):
        return False
    return str(part.get("type", "")).startswith(THOUGHT_TYPES) or part.get("thought") is True  # Gemini's mark


def _text(value: Any) -> str:
    """Return all text of a value; paragraphs of a summary and blocks of details are separated by a blank line."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        blocks = any(isinstance(part, dict) and str(part.get("type", "")).startswith(BLOCK_TYPES) for part in value)
        return ("\n\n" if blocks else "").join(text for part in value if (text := _text(part)))
    if isinstance(value, dict):
        return _fullest(_text(value.get(key)) for key in TEXT_KEYS)
    return ""


def _fullest(texts: Iterable[str]) -> str:
    """Return the first text that is not blank, else the first that is not empty: a streamed piece may be a space."""
    found = list(filter(None, texts))
    return next((text for text in found if text.strip()), found[0] if found else "")
