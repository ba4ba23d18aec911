"""Figures come into a text from a run, between its marks and nowhere else."""

from __future__ import annotations

from toolkit.readme import fill


def test_fill_replaces_only_its_own_block() -> None:
    text = "a\n<!-- ledger:demo -->\nold\n<!-- /ledger:demo -->\nb\n<!-- ledger:full -->\nkept\n<!-- /ledger:full -->\n"
    filled = fill(text, "ledger:demo", r"new \1 |x|")
    assert filled == text.replace("old", r"new \1 |x|")
    assert filled is not None
    assert fill(filled, "ledger:demo", r"new \1 |x|") == filled


def test_a_text_without_the_block_is_left_alone() -> None:
    assert fill("nothing here\n", "ledger:demo", "x") is None
