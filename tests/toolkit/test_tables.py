"""Tables of text: for a terminal and as Markdown."""

from __future__ import annotations

from toolkit.figures.tables import aligned_table, columns, interval_text, markdown_table, percent, points


def test_columns_are_as_wide_as_their_widest_cell_and_the_last_is_not_padded() -> None:
    rows = [("one", "1", "short"), ("three", "100", "longer than that")]
    assert columns(rows) == "one    1    short\nthree  100  longer than that"
    assert columns(rows, right=[1]) == "one      1  short\nthree  100  longer than that"
    assert columns([]) == ""


def test_a_table_for_a_terminal_has_a_line_below_its_head() -> None:
    assert aligned_table([["stage", "share"], ["student", "3.0 %"]]) == (
        "stage    share\n──────────────\nstudent  3.0 %"
    )


def test_shares_intervals_and_differences_are_written_in_percent() -> None:
    assert percent(0.75) == "75.0 %"
    assert interval_text([0.701, 0.799]) == "70.1–79.9"
    assert (points(0.05), points(-0.05)) == ("+5.0", "−5.0")


def test_a_column_of_words_stands_to_the_left_and_one_of_figures_to_the_right() -> None:
    table = markdown_table([["what", "share", "why"], ["a|b", "3 %", "short"], ["c", "–", "long"]])
    assert table.splitlines() == [
        "| what | share | why |",
        "|---|---:|---|",
        r"| a\|b | 3 % | short |",
        "| c | – | long |",
    ]
    assert markdown_table([["a", "b"]]).splitlines() == ["| a | b |", "|---|---|"]
