"""The stream beside the renderings sends changes at a browser's positions, and ends with the turn."""

from __future__ import annotations

import asyncio
import json

from apps.chat.conversation.feed import Feed
from apps.chat.conversation.turn import Turn
from apps.chat.view.live import _change, _events, marked


def grown(old: str, new: str) -> str:
    """Apply a change as a browser does, whose positions count UTF-16 units."""
    at, text = _change(old, new)
    units = old.encode("utf-16-le")[: 2 * at] + text.encode("utf-16-le")
    return units.decode("utf-16-le")


def test_a_change_makes_the_new_text_of_the_old_one_in_any_alphabet() -> None:
    for old, new in (("", "a"), ("a 🙂", "a 🙂 b"), ("🙂🙂", "🙂🙂é"), ("so <", "so"), ("a", "b")):
        assert grown(old, new) == new


def test_a_mark_says_how_far_a_turn_is_rendered() -> None:
    turn = Turn(question="?", context_room=9, id=7, reasoning="🙂a", answer="b")
    assert marked("2 tokens", turn) == '2 tokens <span class="live" title="7/3/1"></span>'


def test_a_stream_tells_what_is_published_and_ends_with_the_turn() -> None:
    turn = Turn(question="?", context_room=9, state="thinking", reasoning="So")
    feed = Feed(turn)
    feeds = {7: feed}

    async def told() -> list[str]:
        events = _events(feeds, 7)
        first = await anext(events)
        turn.reasoning += " far"
        turn.state, turn.answer = "answering", "5"
        assert feed.newest.turn.reasoning == "So", "what is not published is not told"
        feed.publish(turn)
        second = await anext(events)
        del feeds[7]
        return [first, second, *[event async for event in events]]

    *texts, last = asyncio.run(told())
    assert [json.loads(text.removeprefix("data: ")) for text in texts] == [
        [[0, "So"], [0, ""]],
        [[2, " far"], [0, "5"]],
    ]
    assert last.startswith("event: end")
