"""Formats tables for a terminal and as Markdown, and the shares, differences and intervals in their cells.

All rows have the same number of cells. Cells for a terminal are escaped, because names of models and files are written
by others.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from toolkit.terminal import visible

Rows = Sequence[Sequence[str]]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def interval_text(interval: Sequence[float]) -> str:
    """Write two shares in percent without the sign, as after a percentage: `70.1–79.9`."""
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"


def points(difference: float) -> str:
    """Write a difference of two shares in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def columns(rows: Rows, *, right: Collection[int] = ()) -> str:
    """Format rows without a head for a terminal, each column as wide as its widest cell.

    The columns numbered in `right` are aligned right. A last column that is aligned left is not padded.
    """
    lines = [list(map(visible, row)) for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    last = len(widths) - 1

    def padded(cell: str, column: int) -> str:
        if column in right:
            return cell.rjust(widths[column])
        return cell if column == last else cell.ljust(widths[column])

    return "\n".join("  ".join(padded(cell, column) for column, cell in enumerate(line)) for line in lines)


def aligned_table(rows: Rows) -> str:
    """Format rows for a terminal, the first of them as the head; all columns but the first are aligned right."""
    head, *lines = columns(rows, right=range(1, len(rows[0]))).split("\n")
    return "\n".join([head, "─" * len(head), *lines])


def markdown_table(rows: Rows) -> str:
    """Format rows as Markdown; all columns but the first and those of words are aligned right."""
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    below = [cells[1:] for cells in zip(*rows, strict=True)][1:]
    rules = ["---:" if any(map(_is_figure, cells)) else "---" for cells in below]
    return "\n".join([lines[0], "|".join(["", "---", *rules, ""]), *lines[1:]])


def _is_figure(cell: str) -> bool:
    return any(character.isdigit() for character in cell[:3])  # after a sign, or marks of bold
