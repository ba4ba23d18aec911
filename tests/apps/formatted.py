"""Scripts of `tests.apps.scripted`: everything that a model may format, and a text that grows fast."""

from __future__ import annotations

from toolkit.formats.chat_format import completion_text

TABLE = (
    "| Characteristics | Considerable quantity | Centre |\n|:---|---:|:---:|\n"
    "| Extraordinarily | 1,234 | yes |\n| b | 5 | no |\n\nAnd a wide one:\n\n"
    + "| "
    + " | ".join(f"Column number {i}" for i in range(12))
    + " |\n"
    + "|---" * 12
    + "|\n"
    + "| "
    + " | ".join(f"value{i}" for i in range(12))
    + " |\n"
)
TASKS = "- [x] done\n- [ ] open\n- [X] done too\n- none"
MATHEMATICS = (
    "Let $x^2 + y_1$ be $\\frac{a<b}{2}$ and \\(z\\). It costs $5 and $10, or US$20 to $30; $HOME is $PATH.\n\n"
    "`$code$` stays, as does \\$5 and \\$6. A sum: $5 + 6$; not $5, or 6$ though."
)
HEBREW, ARABIC = "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd, 12!", "\u0645\u0631\u062d\u0628\u0627"
DIRECTIONS = f"{HEBREW}\n\nEnglish {HEBREW}\n\n- {ARABIC}\n- {HEBREW}\n\n1. one\n2. {HEBREW}"

PARAGRAPH = "One more line that is here.\n\n"
"""Few enough of them that the text is formatted (`apps.chat.view.markup.MOST_LINES`)."""

FORMATTED = {
    "a table": completion_text("Table.", TABLE),
    "a task list": completion_text("Tasks.", TASKS),
    "dollars": completion_text("Dollars.", MATHEMATICS),
    "right to left": completion_text("Directions.", DIRECTIONS),
    "paragraphs": completion_text("Many.", PARAGRAPH * 950),
}
AT_ONCE = (TABLE, TASKS, MATHEMATICS, DIRECTIONS, PARAGRAPH)
"""Tokens of their own, so that no test waits for letters."""
