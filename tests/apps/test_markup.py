"""Whatever a model writes is shown as text: no tag, no image; code and copies stay as written."""

from __future__ import annotations

import pytest

from apps.markup import EXCLAMATION, LESS_THAN, harmless


def copied(shown: str) -> str:
    """What COPY_SCRIPT does."""
    return shown.replace(LESS_THAN, "<").replace(EXCLAMATION + "[", "![")


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "a<b and c>d",
        "![x](http://example.invalid/a.png)",
        "<img src=http://example.invalid/a.png>",
        "unfinished <im",
        "`open code span <b>bold</b>",
        "``two <b>bold</b>` ticks",
        "text\n\n`one\n\n<b>two` paragraphs",
    ],
)
def test_no_tag_and_no_image_is_left_outside_code(text: str) -> None:
    shown = harmless(text)
    assert "<" not in shown and "![" not in shown
    assert copied(shown) == text


@pytest.mark.parametrize(
    "code",
    [
        "```html\n<p>![x](y)</p>\n```",
        "~~~\n<b>\n~~~",
        "```cpp\n#include <vector>",
        "- item\n\n  ```\n  a<b>c\n  ```",
        "`a<b>c`",
        "``a`<b>``",
    ],
)
def test_code_stays_as_written(code: str) -> None:
    assert harmless(code) == code
    assert harmless(f"{code}") + harmless("\n\n<b>") == f"{code}\n\n{LESS_THAN}b>"


def test_text_after_a_closed_fence_is_no_code() -> None:
    assert harmless("```\n<i>\n```\n<b>\n```\n<u>\n```") == f"```\n<i>\n```\n{LESS_THAN}b>\n```\n<u>\n```"


def test_a_backslash_before_a_mark_is_not_taken_for_one_before_the_reference() -> None:
    assert harmless(r"\<b>") == f"{LESS_THAN}b>"
    assert harmless(r"\\<b>") == rf"\\{LESS_THAN}b>"
    assert harmless(r"\![x](y)") == f"{EXCLAMATION}[x](y)"


def test_a_mark_that_starts_nothing_is_untouched() -> None:
    assert harmless("Done! 2 > 1, [x](y), n! + 1") == "Done! 2 > 1, [x](y), n! + 1"
