"""Figures come into a text from a run, between its marks and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.errors import InputError
from toolkit.figures.readme import fill, fill_file


def test_fill_replaces_only_its_own_block() -> None:
    text = "a\n<!-- ledger:demo -->\nold\n<!-- /ledger:demo -->\nb\n<!-- ledger:full -->\nkept\n<!-- /ledger:full -->\n"
    filled = fill(text, "ledger:demo", r"new \1 |x|")
    assert filled == text.replace("old", r"new \1 |x|")
    assert filled is not None
    assert fill(filled, "ledger:demo", r"new \1 |x|") == filled


def test_a_text_without_the_block_is_left_alone() -> None:
    assert fill("nothing here\n", "ledger:demo", "x") is None


def test_a_file_s_block_is_replaced_and_must_be_there(tmp_path: Path) -> None:
    text = "# A\n\n<!-- speed -->\nold\n<!-- /speed -->\n\nrest\n"
    (tmp_path / "a.md").write_text(text)
    fill_file(tmp_path / "a.md", "speed", "new")
    assert (tmp_path / "a.md").read_text() == text.replace("old", "new")
    (tmp_path / "b.md").write_text("# B\n")
    with pytest.raises(InputError, match=r"b\.md lacks the marks <!-- speed -->"):
        fill_file(tmp_path / "b.md", "speed", "new")
    with pytest.raises(InputError, match=r"c\.md is missing; create it with the marks"):
        fill_file(tmp_path / "c.md", "speed", "new")
