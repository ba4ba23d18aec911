"""What runs beside the renderings: changes of texts in the positions of a browser, and a stream that ends."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from apps.chat.conversation.store import Store
from apps.chat.conversation.turns import Conversation, Turn
from apps.chat.view.live import _change, _events, marked


def grown(old: str, new: str) -> str:
    """What a browser makes of a change: positions count UTF-16 units."""
    at, text = _change(old, new)
    units = old.encode("utf-16-le")[: 2 * at] + text.encode("utf-16-le")
    return units.decode("utf-16-le")


def test_a_change_makes_the_new_text_of_the_old_one_in_any_alphabet() -> None:
    for old, new in (("", "a"), ("a 🙂", "a 🙂 b"), ("🙂🙂", "🙂🙂é"), ("so <", "so"), ("a", "b")):
        assert grown(old, new) == new


def test_a_mark_says_how_far_a_turn_is_rendered() -> None:
    turn = Turn(question="?", context_room=9, id=7, reasoning="🙂a", answer="b")
    assert marked("2 tokens", turn) == '2 tokens <span class="live" title="7/3/1"></span>'


def test_a_stream_tells_what_is_stored_and_ends_with_the_turn(tmp_path: Path) -> None:
    store = Store(tmp_path, time.time)
    turn = Turn(question="?", context_room=9, state="thinking", reasoning="So")
    conversation = Conversation(turns=[turn], all_turns=[turn])
    store.write(conversation, turn)
    assert turn.id is not None

    async def told() -> list[str]:
        events = _events(store, turn.id or 0)
        first = await anext(events)
        turn.reasoning += " far"
        turn.state, turn.answer = "answering", "5"
        assert store.running_texts[turn.id or 0] == ("So", ""), "what is not stored is not told"
        store.write(conversation, turn)
        second = await anext(events)
        turn.state = "done"
        store.write(conversation, turn)
        return [first, second, *[event async for event in events]]

    *texts, last = asyncio.run(told())
    assert [json.loads(text.removeprefix("data: ")) for text in texts] == [
        [[0, "So"], [0, ""]],
        [[2, " far"], [0, "5"]],
    ]
    assert last.startswith("event: end")
    store.close()
