"""What a server's message holds, or a piece of one: what the model thought, and what it says.

    reasoning_content, reasoning, thinking     the thought, as a text, a list of parts, or an object
    reasoning_details                          OpenRouter's list of parts
    content                                    the answer, as a text or a list of parts, some of which may be thoughts

A part is an object like `{"type": "text", "text": …}` or `{"type": "thinking", "thinking": …}` (Mistral, Anthropic),
and its value may be a list of parts again. Parts without a text (encrypted thoughts, calls of tools, images) have none
here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Of a message or a delta: DeepSeek and llama.cpp, vLLM, Ollama."""
REASONING_DETAILS = "reasoning_details"
"""OpenRouter's: https://openrouter.ai/docs/use-cases/reasoning-tokens."""
THOUGHT_TYPES = ("thinking", "reasoning", "thought")
"""What the type of a part that is a thought begins with: `thinking`, `reasoning.text`, `reasoning_content` …"""
BLOCK_TYPES = (*THOUGHT_TYPES, "summary")
"""Parts that are paragraphs of their own; others go on where the last one ended."""
TEXT_KEYS = ("text", "thinking", "reasoning", "content", "summary", "refusal")
"""Where a part has its text, or its own parts; the first that holds one counts."""


def reasoning_of(message: Mapping[str, Any]) -> str:
    """The thought that stands in a field of its own; white space where no field holds more."""
    return _fullest(_text(message.get(name)) for name in (*REASONING_FIELDS, REASONING_DETAILS))


def content_parts(message: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """The content as (whether it is a thought, text), part by part; raises `TypeError` where it is no content."""
    content = message.get("content")
    if content is None:
        return []
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, str | dict) for part in parts):
        raise TypeError(f"content must be a text or a list of parts, not {type(content).__name__}")
    return [(_is_thought(part), text) for part in parts if (text := _text(part))]


def whole(text: str) -> str:
    """A text that UTF-8 and every tokenizer can hold: U+FFFD stands for each half of a surrogate pair."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _is_thought(part: str | dict[str, Any]) -> bool:
    if isinstance(part, str):
        return False
    return str(part.get("type", "")).startswith(THOUGHT_TYPES) or part.get("thought") is True  # Gemini's mark


def _text(value: Any) -> str:
    """All text of a value; paragraphs of a summary, or blocks of details, stand apart."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        blocks = any(isinstance(part, dict) and str(part.get("type", "")).startswith(BLOCK_TYPES) for part in value)
        return ("\n\n" if blocks else "").join(text for part in value if (text := _text(part)))
    if isinstance(value, dict):
        return _fullest(_text(value.get(key)) for key in TEXT_KEYS)
    return ""


def _fullest(texts: Iterable[str]) -> str:
    """The first text with something in it, else the first that is not empty: a streamed piece may be a space."""
    found = list(filter(None, texts))
    return next((text for text in found if text.strip()), found[0] if found else "")
