"""A conversation → what the page shows: messages of the chatbot component and one status line. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.turn import Turn
from apps.chat.view.markup import as_typed, harmless
from apps.chat.view.turn_links import link
from toolkit.errors import InputError
from toolkit.progress import duration
from toolkit.terminal import counted


def page_messages(conversation: Conversation, now: float) -> list[dict[str, Any]]:
    """Write the conversation as the chatbot component takes it; each reasoning is a block of its own, with a title."""
    places = conversation.places()
    return [message for turn in conversation.turns for message in turn_messages(turn, places[turn.parent], now)]


def turn_messages(turn: Turn, versions: Sequence[Turn], now: float) -> list[dict[str, Any]]:
    """Write one turn's messages; `versions`: all versions of the turn, including itself."""
    shown = [_message("user", as_typed(turn.question))]
    if len(versions) > 1:
        shown.append(_message("assistant", _versions(versions, turn)))
    if turn.reasoning or turn.state == "thinking":
        shown.append(_message("assistant", harmless(turn.reasoning)) | {"metadata": _thought(turn, now)})
    if turn.answer:
        shown.append(_message("assistant", harmless(turn.answer)))
    if note := _note(turn):
        shown.append(_message("assistant", f"*{note}*{'' if turn.running else _ways_on(turn)}"))
    return shown


def turn_of_message(conversation: Conversation, index: int) -> Turn:
    """Find the turn to which a message of the page belongs."""
    messages, places = 0, conversation.places()
    for turn in conversation.turns:
        messages += len(turn_messages(turn, places[turn.parent], 0.0))
        if index < messages:
            return turn
    raise InputError(f"there is no message {index + 1}: the conversation has {messages}; open the chat again")


def status_line(turn: Turn) -> str:
    """Describe the tokens and speed of a turn in a few words."""
    if not turn.tokens:
        return "Reading the question" if turn.running else ""
    counts = ((turn.reasoning_tokens, "reasoning"), (turn.answer_tokens, "answer"))
    text = " + ".join(f"{count:,} {kind}" for count, kind in counts if count)
    text += " token" if turn.tokens == 1 else " tokens"
    if turn.tokens_per_s is not None:
        text += f" · {turn.tokens_per_s:.1f} tokens/s"
    return text if turn.first_token_s is None else f"{text} · first token after {turn.first_token_s:.2f} s"


def seconds(duration_s: float) -> str:
    """Write a duration as 2.1 s, and a longer one as 1 min 12 s."""
    return f"{duration_s:.1f} s" if duration_s < 59.95 else duration(duration_s)


def _message(role: str, markdown: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": markdown}]}


def _versions(versions: Sequence[Turn], turn: Turn) -> str:
    """Say which version of a turn is shown, with links to its neighbours."""
    place = versions.index(turn)
    parts = [f"version {place + 1} of {len(versions)}"]
    if place > 0:
        parts.insert(0, link("‹ previous", "show", versions[place - 1].id))
    if place + 1 < len(versions):
        parts.append(link("next ›", "show", versions[place + 1].id))
    return " ".join(parts)


def _ways_on(turn: Turn) -> str:
    """Write the links under a turn that the model did not end itself."""
    if not turn.can_go_on:
        return ""
    go_on = " " + link("Continue", "go-on", turn.id)
    return f"{go_on} {link('Answer now', 'answer', turn.id)}" if turn.is_thinking else go_on


def _thought(turn: Turn, now: float) -> dict[str, str]:
    """Return the title and status of a reasoning block; without a status, a stopped thought stays open and visible."""
    thinking_time = seconds(turn.thinking_s(now))
    if turn.state == "thinking":
        return {"title": f"Thinking… {thinking_time}", "status": "pending"}
    if not turn.tokens:  # read from a text
        return {"title": "Thought", "status": "done"}
    tokens = counted(turn.reasoning_tokens, "token")
    if turn.tokens_before_answer is None and (turn.state == "stopped" or turn.cut):
        return {"title": f"Stopped thinking after {thinking_time} · {tokens}"}
    return {"title": f"Thought for {thinking_time} · {tokens}", "status": "done"}


def _note(turn: Turn) -> str | None:
    """Say how a turn ended; None if the model finished it."""
    if turn.state == "stopped":
        is_empty = not (turn.reasoning or turn.answer)
        return "Stopped before anything was written." if is_empty else "Stopped. What was written so far is kept."
    if turn.cut == "limit":
        return f"Cut at {counted(turn.tokens, 'token')}, the maximum in the settings."
    if turn.cut == "context":
        return "Cut: the model's context is full."
    if turn.state == "done" and not turn.answer:
        return "The model ended its turn without an answer."
    return None
