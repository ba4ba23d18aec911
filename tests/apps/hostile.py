"""Scripts of `tests.apps.scripted`: texts that would harm the reader or the page."""

from __future__ import annotations

from toolkit.formats.chat_format import completion_text

LINKS = (
    "[good](http://a.invalid:81/x) [script](javascript:alert(1)) [entity](java&#115;cript:alert(1)) "
    "[data](data:text/html,x) [basic](vbscript:x) [twice](http://a.invalid@b.invalid/) "
    "[ref]\n\n[ref]: javascript:alert(1)"
)
IMAGES = (
    "![cat](http://a.invalid/cat.png) <img src=http://b.invalid/dog.png "
    "onerror=alert(1)> ![dot](data:image/png;base64,AA)"
    "\n\n| table | ![bird](https://c.invalid/bird.png) |\n|---|---|\n| a | `![x](y)` |"
)
HTML = (
    "<script>alert(1)</script> <b>bold</b> <iframe src=http://a.invalid></iframe> <svg onload=alert(1)>\n\n"
    "    <img src=http://a.invalid/indented.png>\n\n> ```\n<img src=http://a.invalid/quote.png>\n\n"
    "- ~~~\n<img src=http://a.invalid/list.png>\n\n$$ ` $$ <img src=http://a.invalid/math.png> `\n\n"
    "`\n# <img src=http://a.invalid/heading.png>\n`\n\n```mermaid\ngraph TD; a[\"<img src='http://a.invalid/m.png'>\"]\n```\n"
)
SIGNS = "safe \u202efdp.exe\u202c and \x1b[31mred\x1b[0m, `code \u2066x\u2069` and \x07."

WIDE = "w" * 10_000
LINES = "".join(f"line {i} of *many*\n" for i in range(200))
ENORMOUS = (WIDE, LINES)
"""Tokens of their own, so that a short script writes a long text."""

HOSTILE = {
    "hostile links": completion_text("Links.", LINKS),
    "hostile images": completion_text("Images.", IMAGES),
    "hostile HTML": completion_text("HTML.", HTML),
    "hostile signs": completion_text("Signs.", SIGNS),
    "a megabyte": completion_text("Long.", WIDE * 100),
    "many lines": completion_text("Long.", LINES * 50),
}
