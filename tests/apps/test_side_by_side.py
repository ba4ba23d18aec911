"""The comparison's handlers, called as the page calls them: scripted models, no browser."""

from __future__ import annotations

import time

from apps.chat.page.side_by_side import SideBySide, ask, stop
from apps.chat.page.updates import QUEUED
from apps.model import Model
from tests.apps.test_dialogue import model, slow  # noqa: F401 – fixtures

WAIT_S = 60.0


def test_two_models_answer_one_after_the_other(model: Model) -> None:  # noqa: F811
    comparison = SideBySide()
    *_, last = ask([model, model], "84 and 36?", comparison)
    assert [side.conversation.turns[0].answer for side in comparison.sides] == ["The answer is **12**."] * 2
    assert last[0]["submit_btn"] == "Send" and not comparison.busy


def test_the_turn_of_a_comparison_that_is_left_ends(slow: Model) -> None:  # noqa: F811
    comparison = SideBySide()
    asking = ask([slow, slow], "A long thought, please", comparison)
    for _ in range(2):
        next(asking)
    asking.close()
    first, second = (side.conversation for side in comparison.sides)
    deadline = time.monotonic() + WAIT_S
    while first.busy:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert first.turns[0].state == "stopped" and not second.turns and not comparison.busy


def test_a_side_waits_while_the_chat_has_its_model(model: Model) -> None:  # noqa: F811
    comparison = SideBySide()
    with model.lock:
        asking = ask([model, model], "84 and 36?", comparison)
        shown = ""
        while QUEUED not in shown:
            shown = str(next(asking))
        stop(comparison)
        updates = [*asking]
        assert updates[-1][0]["submit_btn"] == "Send" and "Not asked" in str(updates)
    assert not comparison.sides[1].conversation.turns


def test_a_question_that_does_not_fit_is_each_side_s_trouble(model: Model) -> None:  # noqa: F811
    comparison = SideBySide()
    *_, last = ask([model, model], "84 and 36? " * 200, comparison)
    assert str(last).count("ask a shorter question") == 2 and not comparison.busy
