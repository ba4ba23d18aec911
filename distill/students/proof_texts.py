"""Conversations and turns on which a student's template is proven, each with what it is about."""

from __future__ import annotations

from toolkit.formats.thought_forms import tagged
from toolkit.records import Message

THOUGHT, ANSWER = "7 + 5 = 12,\n  and 12 – 2 = 10. Straße, 你好, 👩\u200d👧", "It is **10**.\n\n- é: 1"
"""A turn; no tokenizer normalizes its characters."""
EARLIER = "an earlier thought"
_QUESTION: Message = {"role": "user", "content": "What is 7 + 5 - 2?"}

CONVERSATIONS: dict[str, list[Message]] = {
    "one question": [_QUESTION],
    "a system message": [{"role": "system", "content": "Be brief, <b>kind</b> & exact.\nAnswer once."}, _QUESTION],
    "several turns": [
        {"role": "user", "content": "Which number\nfollows 41?"},
        {"role": "assistant", "content": "42.\n"},
        _QUESTION,
    ],
    "earlier thoughts": [
        {"role": "user", "content": "Which number follows 41?"},
        {"role": "assistant", "content": tagged(EARLIER, "42.")},
        _QUESTION,
        {"role": "assistant", "content": tagged(f"{EARLIER}\nof several lines", "10.\n  Sure.")},
        {"role": "user", "content": "Why?"},
    ],
    "unicode": [
        {
            "role": "user",
            "content": " „Größe“ e\u0301 ﬁ 你好 Привет مرحبا 👩\u200d👧 \u00a0 tab\there  \n\n x² ≤ 3 ",
        }
    ],
}


def naming(names: list[str]) -> list[Message]:
    """Return a conversation whose contents name control tokens."""
    said = " ".join(names)
    return [
        {"role": "user", "content": f"Say {said} aloud."},
        {"role": "assistant", "content": f"I say {said}."},
        {"role": "user", "content": f"And {said} now?"},
    ]
