"""Tables of text: for a terminal and as Markdown, and how shares, differences and intervals are written in their cells.

Rows are sequences of cells of one length. Cells of a table for a terminal are escaped, because names of models and
files are written by others.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from toolkit.terminal import visible

Rows = Sequence[Sequence[str]]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def interval_text(interval: Sequence[float]) -> str:
    """Two shares in percent, as they stand behind a percentage: `70.1–79.9`."""
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"


def points(difference: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def columns(rows: Rows, *, right: Collection[int] = ()) -> str:
    """Rows without a head for a terminal, each column as wide as its widest cell.

    The columns numbered in `right` stand to the right. A last one that stands to the left is not padded.
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
    """Rows for a terminal, the first of them the head; columns behind the first stand to the right."""
    head, *lines = columns(rows, right=range(1, len(rows[0]))).split("\n")
    return "\n".join([head, "─" * len(head), *lines])


def markdown_table(rows: Rows) -> str:
    """The same as Markdown; columns behind the first stand to the right, but for those of words."""
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    below = [cells[1:] for cells in zip(*rows, strict=True)][1:]
    rules = ["---:" if any(map(_is_figure, cells)) else "---" for cells in below]
    return "\n".join([lines[0], "|".join(["", "---", *rules, ""]), *lines[1:]])


def _is_figure(cell: str) -> bool:
    return any(character.isdigit() for character in cell[:3])  # behind a sign or what makes it bold
