"""Texts on which tokenizers differ; a tokenizer encodes them when it is exported, and again on the user's machine.

Invariant: the same seed gives the same texts. They are stored with their ids, so a later change here harms no folder.
"""

from __future__ import annotations

import random
import unicodedata

SPECIAL_LOOK_ALIKES = (
    "<|im_end|>",
    "<|im_start|>",
    "<|im_start|>system\n",
    "<|im_end",
    "|im_end|>",
    "< |im_end|>",
    "<|IM_END|>",
    "<|endoftext|>",
    "<think>",
    "</think>",
    "<think",
    "</ think>",
    "<s>",
    "</s>",
    "[INST]",
    "<|eot_id|>",
    "<｜end▁of▁sentence｜>",
    "<pad>",
    "<0x0A>",
    "Ġ",
    "▁",
)
DIGITS = (
    "0",
    "7",
    "42",
    "1234567890",
    "3.14159",
    "1,000,000",
    "1e-9",
    "0x1F",
    "٣٤٥",
    "१२३",
    "²³",
    "½",
    "Ⅷ",
    "2026-01-31",
)
CODE = (
    "def f(x):\n    return x ** 2\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i]; }",
    "\tif err != nil {\n\t\treturn err\n\t}",
    "SELECT * FROM t WHERE a <> 'it''s';",
    '{"key": [1, 2.5, null], "text": "a\\nb"}',
    "https://example.org/a?b=c&d=%20#e",
    "camelCaseName snake_case_name SCREAMING_CASE",
    "\\frac{a}{b} \\( x_1^2 \\)",
    "<div class='x'>&nbsp;</div>",
    "#!/bin/sh\r\necho $HOME\r\n",
)
SPACES = (" ", "  ", "   ", " " * 17, "\t", "\t\t", "\n", "\n\n", "\n \n", "\r\n", "\r", "\v", "\f", "\x85", "\xa0", "\u2003", "\u200b", "\u2028", "\u3000")  # fmt: skip
EMOJI = ("🙂", "👩‍👩‍👧‍👦", "👍🏽", "🇩🇪", "🏳️‍🌈", "❤️", "1️⃣", "🫠")
COMBINING = (
    "e\u0301",
    "é",
    "n\u0303o",
    "Z\u0351\u036b\u0343a\u0325lgo",
    "ﬁ",
    "Å",
    "A\u030a",
    "한국어",
    "\u1112\u1161\u11ab",
    "İ",
    "ẞ",
)
RIGHT_TO_LEFT = ("שלום עולם", "مرحبا بالعالم", "\u202eabc\u202c", "\u200fא1ב2", "السَّلَامُ", "ایران")
CHINESE = ("你好,世界。", "請問現在幾點?", "東京都へ行きます", "カタカナ", "𠮷野家", "混合 mixed 文字 123", "「引用」")
WORDS = ("the", "The", " answer", "don't", "I'LL", "naïve", "straße", "Привет", "Ελλάδα", "हिन्दी", "ไทย", "supercalifragilistic", "aaaaaaaa")  # fmt: skip
BYTES_LIKE = (
    "\x00",
    "\x01\x02\x1b[0m",
    "\x7f",
    "\ufeff",
    "\ufffd",
    "\ufffe",
    "\ue000",
    "\U0010ffff",
    "\\x80\\xff",
    "b'\\xf0\\x9f'",
    "Ã©",
    "â€™",
    "".join(map(chr, range(0x80, 0x100))),
    "".join(map(chr, range(0x20))),
)
KINDS = (SPECIAL_LOOK_ALIKES, DIGITS, CODE, SPACES, EMOJI, COMBINING, RIGHT_TO_LEFT, CHINESE, WORDS, BYTES_LIKE)


def fuzz_texts(seed: int, count: int) -> list[str]:
    """Return every piece alone, then `count` texts that join pieces of all kinds, some with characters from anywhere in
    Unicode."""
    chooser = random.Random(seed)
    pieces = ["", *(piece for kind in KINDS for piece in kind)]
    return pieces + [_joined(chooser) for _ in range(count)]


def _joined(chooser: random.Random) -> str:
    parts = []
    for _ in range(chooser.randrange(2, 9)):
        kind = chooser.choice((*KINDS, ()))
        parts.append(chooser.choice(kind) if kind else _any_character(chooser))
        if chooser.random() < 0.3:
            parts.append(chooser.choice(SPACES))
    return "".join(parts)


def _any_character(chooser: random.Random) -> str:
    """Choose any character but half a surrogate pair, which the tokenizers library refuses."""
    while True:
        character = chr(chooser.randrange(0x110000))
        if unicodedata.category(character) != "Cs":
            return character
