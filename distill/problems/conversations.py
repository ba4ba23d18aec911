"""Reads problems from conversations as ShareGPT (`from`, `value`) and chat data sets (`role`, `content`) write them.

The user's last question is the problem's, the turns before it are its history, and the assistant's turn after it,
without its thought, is the reference.
"""

from __future__ import annotations

import re
from typing import Any

from toolkit.errors import InputError
from toolkit.records import Message

ROLE_OF = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
}
"""Our role for each name of a speaker. Other speakers, such as tools, cannot be asked again here."""

_THOUGHT = re.compile(
    r"^.*?</think>|<think>.*?</think>|<think>.*$|^.*?<\|end_of_thought\|>|<\|(?:begin|end)_of_solution\|>", re.DOTALL
)


class LeftOut(Exception):
    """A row without a verifiable answer; the message is a phrase that is counted."""


def without_thought(text: str) -> str:
    """Strip the thought from an assistant's turn."""
    return _THOUGHT.sub("", text).strip()


def from_messages(messages: Any, system: Any = None) -> dict[str, Any]:
    """Return a conversation's `question`, `answer` and `history`.

    Raises `InputError` if it is not a conversation, `LeftOut` if its last question has no answer or if anybody but a
    system, a user and an assistant speaks.
    """
    said = _said(messages)
    if isinstance(system, str) and system.strip() and (not said or said[0]["role"] != "system"):
        said = [{"role": "system", "content": system}, *said]
    last = max((place for place, message in enumerate(said) if message["role"] == "user"), default=None)
    if last is None or not said[last]["content"].strip():
        raise LeftOut("no question")
    answers = [message["content"] for message in said[last + 1 :] if message["content"]]
    if not answers:
        raise LeftOut("no answer to the last question")
    return {"question": said[last]["content"], "answer": answers[-1], "history": said[:last]}


def _said(messages: Any) -> list[Message]:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise InputError(f"messages ({messages!r:.80}) must be a list of objects with 'role' and 'content'")
    said = []
    for message in messages:
        speaker, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if ROLE_OF.get(str(speaker).lower()) is None or message.get("tool_calls"):
            raise LeftOut(f"{speaker!r} speaks or calls tools")
        role = ROLE_OF[str(speaker).lower()]
        text = _content(content)
        said.append({"role": role, "content": without_thought(text) if role == "assistant" else text})
    return said


def _content(content: Any) -> str:
    """Return a message's text, joining a list of chunks."""
    if isinstance(content, list) and all(isinstance(chunk, dict) for chunk in content):
        if any(chunk.get("type", "text") != "text" for chunk in content):
            raise LeftOut("images or sound")
        return "".join(str(chunk.get("text", "")) for chunk in content)
    if content is None:
        return ""
    if not isinstance(content, str):
        raise InputError(f"message content ({content!r:.80}) must be a text")
    return content


def last_answer(messages: Any) -> str:
    """Return the assistant's last turn without its thought; empty if there is none."""
    return next((said["content"] for said in reversed(_said(messages)) if said["role"] == "assistant"), "")
