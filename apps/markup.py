"""Model text → Markdown that the page can show: formatting works, and nothing in it is HTML or loads anything.

Outside code, `<` and the `!` of an image become character references, which the Markdown renderer and KaTeX show as
the characters themselves. Code stays as it is, because the renderer escapes it. The page's sanitizer and its content
security policy stand behind this. `COPY_SCRIPT` turns the two references back where text is copied.
"""

from __future__ import annotations

import re

LESS_THAN = "&#x3c;"
EXCLAMATION = "&#x21;"

_CODE = re.compile(
    r"^[ \t>]*(?P<fence>`{3,}|~{3,})[^\n]*\n(?:.*?^[ \t>]*(?P=fence)[`~]*[ \t]*$|.*\Z)"  # a fenced block, closed or still open
    r"|(?<![`\\])(?P<ticks>`+)(?!`)(?:(?!\n[ \t]*\n).)*?(?<!`)(?P=ticks)(?!`)",  # a code span
    re.DOTALL | re.MULTILINE,
)

_MARK = re.compile(
    r"(?<!\\)(?P<pairs>(?:\\\\)*)\\?(?P<mark><|!(?=\[))"
)  # a backslash before the mark escapes it: it goes

COPY_SCRIPT = f"""<script>
if (navigator.clipboard) {{
  const write = navigator.clipboard.writeText.bind(navigator.clipboard);
  navigator.clipboard.writeText = (text) =>
    write(text.replaceAll("{LESS_THAN}", "<").replaceAll("{EXCLAMATION}[", "!["));
}}
</script>"""


def harmless(text: str) -> str:
    """Markdown of the same look in which no tag and no image is left."""
    shown, position = [], 0
    for code in _CODE.finditer(text):
        shown += [_escape(text[position : code.start()]), code.group()]
        position = code.end()
    return "".join(shown) + _escape(text[position:])


def _escape(text: str) -> str:
    return _MARK.sub(lambda found: found["pairs"] + (LESS_THAN if found["mark"] == "<" else EXCLAMATION), text)
