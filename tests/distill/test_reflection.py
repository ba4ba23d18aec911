"""Signs that a model examines its own thoughts."""

from __future__ import annotations

import pytest

from distill.reinforcement.reflection import corrects_itself, shares, signs


@pytest.mark.parametrize(
    ("thought", "found"),
    [
        ("Let me check the sum.", {"verification"}),
        ("Check: 9 + 1 = 10", {"verification"}),
        ("Wait, that is wrong.", {"reflection"}),
        ("I made a mistake. Let me redo it.", {"reflection", "correction"}),
        ("Hmm, try again.", {"reflection", "correction"}),
        ("14 + 78 = 92", set()),
        ("The waiter checked in.", set()),
        ("", set()),
    ],
)
def test_signs_are_told_by_their_words(thought: str, found: set[str]) -> None:
    assert signs(thought) == found


@pytest.mark.parametrize(
    ("thought", "corrects"),
    [
        ("7 + 8 = 14\nWait.\n7 + 8 = 15", True),
        ("7 + 8 = 14\n9 + 1 = 10\n7 + 8 = 10 + 5 = 15", True),
        ("7 + 8 = 15\n7 + 8 = 14", False),  # right first
        ("7 + 8 = 14\n7 + 8 = 16", False),  # wrong twice
        ("7 + 8 = 14\n9 + 6 = 15", False),  # another sum
        ("2 * (3 - 5) = 4\n2 * (3 - 5) = -4", True),
        ("-(4 + 5) = 9\n-(4 + 5) = -9", True),
        ("x = 4\nx = 5", False),
        ("1 + = 2\n(1 = 1\n1 + 1 = (", False),
        ("9" * 70 + " * " + "9" * 7 + " = 3", False),
        ("7 + 8\n=\n", False),
    ],
)
def test_a_correction_is_a_wrong_sum_and_then_the_same_one_right(thought: str, corrects: bool) -> None:
    assert corrects_itself(thought) == corrects


def test_shares_are_of_all_thoughts() -> None:
    found = shares(["Wait, no.", "1 + 1 = 3\nWait, that is wrong.\n1 + 1 = 2", "2", "Let me verify it."])
    assert found == {"verification": 0.25, "reflection": 0.5, "correction": 0.0, "corrected": 0.25}
