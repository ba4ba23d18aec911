"""Problems out of conversations, as ShareGPT (`from`, `value`) and chat data sets (`role`, `content`) write them.

The last question of the user is the problem's, what stands before it is its history, and the assistant's turn behind it
is the reference, without its thought.
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
"""Names of speakers → our roles. Others, such as a tool's, cannot be asked again here."""

_THOUGHT = re.compile(
    r"^.*?</think>|<think>.*?</think>|<think>.*$|^.*?<\|end_of_thought\|>|<\|(?:begin|end)_of_solution\|>", re.DOTALL
)


class LeftOut(Exception):
    """Why a row holds no problem whose answer could be verified: a phrase that a count follows."""


def without_thought(text: str) -> str:
    """An assistant's turn without what it thought before it."""
    return _THOUGHT.sub("", text).strip()


def from_messages(messages: Any, system: Any = None) -> dict[str, Any]:
    """`question`, `answer` and `history` of a conversation.

    Raises `InputError` where it is none, `LeftOut` where its last question has no answer, or where others than a
    system, a user and an assistant speak.
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
    """A message's text; of a list of chunks their texts together."""
    if isinstance(content, list) and all(isinstance(chunk, dict) for chunk in content):
        if any(chunk.get("type", "text") != "text" for chunk in content):
            raise LeftOut("images or sound")
        return "".join(str(chunk.get("text", "")) for chunk in content)
    if content is None:
        return ""
    if not isinstance(content, str):
        raise InputError(f"message's content ({content!r:.80}) must be a text")
    return content


def last_answer(messages: Any) -> str:
    """What the assistant says last, without its thought; empty where it says nothing."""
    return next((said["content"] for said in reversed(_said(messages)) if said["role"] == "assistant"), "")
