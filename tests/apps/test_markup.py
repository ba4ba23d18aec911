"""Whatever a model writes is shown as text, without tags or images, and links lead to http addresses only; copies are
as written."""

from __future__ import annotations

import re
import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.chat.view import markup
from apps.chat.view.markup import DOLLAR, JOINER, LESS_THAN, as_typed, harmless, plain

CHIP = re.compile(r'<span class="remote" title="([^"<>]*)">image · [^<>]*</span>')
LABEL = re.compile(r' <span class="host">[^<>]*</span>')

FRAGMENTS = [
    *(
        "<b>",
        "</b>",
        "<script>alert(1)</script>",
        "<img src=http://a.invalid/x>",
        "<img alt=x>",
        "unfinished <im",
        "<!-- ",
    ),
    *("![x](http://a.invalid/y.png)", "![x](data:image/png;base64,AA)", "![x][r]", "![", "!", "[r]: http://a.invalid"),
    *("[x](http://a.invalid/z)", "[x](javascript:alert(1))", "](", "]:", "[", "<http://a.invalid>", "http://a.invalid"),
    *(
        "http://a.invalid@b.invalid",
        "https://",
        "@",
        "`",
        "``",
        "```",
        "~~~",
        "```html",
        "\n",
        "\n\n",
        "    ",
        "> ",
        "- ",
        "1. ",
        "| ",
        "|---|",
        "# ",
        "---",
    ),
    *("$", "$x$", "5", "www.a.invalid@b.invalid", "ftp://a.invalid", "http://a.invalid&#64;b.invalid"),
    *("$$", "\\(", "\\)", "\\[", "\\]", "\\", "\\\\", "a", " ", "x < y", "é", "&lt;", '"', "'", ">", "="),
]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join)


def copied(shown: str) -> str:
    """Do what `clipboard.js` does."""
    shown = CHIP.sub(lambda chip: re.sub(r"&#(\d+);", lambda code: chr(int(code[1])), chip[1]), shown)
    shown = re.sub(rf"([<!\]`~ /.$]){JOINER}", r"\1", LABEL.sub("", shown))
    shown = re.sub(rf"{JOINER}(?=\$)", "", shown)
    shown = shown.replace(markup.LONG_FENCE, "")
    return shown.replace(markup.LESS_THAN, "<").replace(markup.EXCLAMATION, "!")


@given(texts)
def test_no_tag_and_no_image_is_left_anywhere_not_even_in_code(text: str) -> None:
    rest = re.sub(r"<https?://[^\s<>`]+>", "", LABEL.sub("", CHIP.sub("", harmless(text))))
    assert not re.search(r"<[A-Za-z/!?]|!\[", rest)


@given(texts)
def test_copying_gives_what_was_written(text: str) -> None:
    assert copied(harmless(text)) == text


@given(texts)
def test_every_link_leads_to_an_address_that_it_names(text: str) -> None:
    prose = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)|\\.", "", harmless(text), flags=re.DOTALL)
    for link in re.finditer(r"(.{0,40})\]\(([^)]*)", prose):
        if "$$" not in text and "\\" not in text and "`" not in text and "~" not in text:
            assert link[2].startswith("http://") and link[1].endswith("</span>")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("![a cat](http://a.invalid/cat.png)", "a.invalid"),
        ('![](https://u:p@a.invalid:81/cat.png "title")', "a.invalid:81"),
        ("![x](//a.invalid/cat.png)", "a.invalid"),
        ("![x](data:image/png;base64,AAAA)", "data:"),
        ("![x](local.png)", "this page"),
        ("<img src=http://a.invalid/a.png>", "a.invalid"),
        ('<IMG alt="x" src="http://a.invalid/a.png" />', "a.invalid"),
    ],
)
def test_an_image_becomes_a_chip_with_its_host_and_its_source(text: str, name: str) -> None:
    shown = harmless(text)
    assert CHIP.fullmatch(shown) and f">image · {name}<" in shown
    assert copied(shown) == text


@pytest.mark.parametrize(
    "target",
    [
        "javascript:alert(1)",
        "JavaScript:alert(1)",
        "java&#115;cript:alert(1)",
        "javascript&colon;alert(1)",
        " data:text/html,x",
        "vbscript:x",
        "//a.invalid",
        "/gradio_api/queue",
        "http://good.invalid@evil.invalid/",
        "HTTP://good.invalid\\@evil.invalid/",
        "file:///etc/passwd",
        "",
    ],
)
def test_a_link_to_anything_but_an_http_host_loses_its_target(target: str) -> None:
    cut = re.sub("(?i)(http://)", rf"\1{JOINER}", target)
    assert harmless(f"[here]({target})") == f"[here]{JOINER}({cut})"
    assert harmless(f"[here]: {target}") == f"[here]{JOINER}: {cut}"


def test_an_http_link_says_its_host() -> None:
    label = ' <span class="host">a.invalid:8080</span>'
    assert harmless("[docs](https://a.invalid:8080/x?y#z)") == f"[docs{label}](https://a.invalid:8080/x?y#z)"


@pytest.mark.parametrize(
    "code", ["```html\n<p>![x](y)</p>\n```", "~~~\n<b>\n~~~", "```cpp\n#include <vector>", "`a<b>c`", "``a`<b>``"]
)
def test_code_gets_nothing_but_joiners(code: str) -> None:
    assert harmless(code).replace(JOINER, "") == code
    assert "<span" not in harmless(f"{code}".replace("<p>", "[x](http://a.invalid/)"))


def test_text_after_a_closed_fence_is_no_code() -> None:
    image = "![x](http://a.invalid/y)"
    assert len(CHIP.findall(harmless(f"```\n{image}\n```\n{image}\n```\n{image}\n```"))) == 1
    assert len(CHIP.findall(harmless(f"```a``` {image}\n{image}"))) == 2  # a fence's language holds no backtick


def test_an_image_in_indented_code_is_no_chip_and_one_in_a_list_is() -> None:
    image = "![x](http://a.invalid/y)"
    assert not CHIP.search(harmless(f"Code:\n\n    {image}\n    {image}"))
    assert CHIP.search(harmless(f"- item\n\n    {image}"))
    assert CHIP.search(harmless(f"text\n    {image}"))


@pytest.mark.parametrize("fence", ["```", "~~~~ ", "> ```\n```", "- ~~~"])
def test_a_diagram_is_shown_as_code_and_not_drawn(fence: str) -> None:
    text = f"{fence}Mermaid\ngraph TD; a-->b"
    assert harmless(text) == f"{fence}{JOINER}Mermaid\ngraph TD; a-->b" and copied(harmless(text)) == text


def test_a_less_than_sign_in_mathematics_is_a_reference_and_elsewhere_untouched_before_a_space() -> None:
    assert harmless(r"\(x<y\) $$a<b$$ \[a<b\]") == rf"\(x{LESS_THAN}y\) $$a{LESS_THAN}b$$ \[a{LESS_THAN}b\]"
    assert harmless("1 < 2, a <= b") == "1 < 2, a <= b"


def test_a_mark_that_starts_nothing_is_untouched() -> None:
    assert harmless("Done! 2 > 1, n! + 1, a[0] (x), | a | b |\n|---|---|") == (
        "Done! 2 > 1, n! + 1, a[0] (x), | a | b |\n|---|---|"
    )


@pytest.mark.parametrize("around", ["{}", "`{}`", "```\n{}\n```", "\\({}\\)"])
def test_overrides_of_direction_and_control_characters_are_seen(around: str) -> None:
    overrides = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
    controls = [*range(0x09), *range(0x0B, 0x0D), *range(0x0E, 0x20), *range(0x7F, 0xA0)]
    shown = harmless(around.format("".join(map(chr, overrides + controls))))
    assert not set(shown) & {chr(code) for code in overrides + controls}
    assert "‹U+202E›" in shown and "‹U+009B›" in shown and "\N{SYMBOL FOR ESCAPE}" in shown


def test_text_of_the_right_to_left_scripts_and_line_breaks_are_untouched() -> None:
    assert harmless("שלום\tمرحبا\r\n👩‍👩‍👧") == "שלום\tمرحبا\r\n👩‍👩‍👧"


@pytest.mark.parametrize("text", ["<b> `x` ~~~~~~~ ![x](y) " * 50_000, "*line*\n" * 10_000])
def test_a_text_too_long_to_be_formatted_is_whole_and_only_grows(text: str) -> None:
    shown = harmless(text)
    assert copied(shown) == text and not re.search(r"<[a-z]|!\[|\n~~~", shown)
    assert harmless(text + "more").startswith(shown)


def test_the_longest_formatted_text_is_formatted() -> None:
    assert harmless("*a*" + "b" * (markup.LONGEST_FORMATTED - 3)).startswith("*a*")
    assert harmless("*a*" + "b" * (markup.LONGEST_FORMATTED - 2)).startswith(markup.LONG_FENCE)
    assert harmless("*a*" + "\n" * markup.MOST_LINES).startswith("*a*")
    assert harmless("*a*" + "\n" * (markup.MOST_LINES + 1)).startswith(markup.LONG_FENCE)


def steps(text: str) -> int:
    """Count the lines of apps/chat/view/markup.py that run for a text."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != markup.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        markup._formatted.__wrapped__(text)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "a",
            "<a",
            "<img ",
            "![",
            "![](a",
            "](",
            "]:",
            "`",
            "` ",
            "`` ` ",
            "$$ x ",
            "\\( ",
            "\\[ \\( ",
            "```\n",
            "~~~~\n",
        ),
        *("word <b>\n", "\n ", "<img src=", "[x](http://", "\\", "> - ", "`a\n\n"),
    ],
)
def test_work_grows_as_the_text_does(piece: str) -> None:
    assert steps(piece * 800) <= 2 * steps(piece * 400) + 20


def test_runs_of_backticks_of_every_length_are_paired_in_one_reading() -> None:
    def runs(longest: int) -> str:
        return " ".join("`" * length for length in range(1, longest))

    assert steps(runs(400)) <= 2 * steps(runs(200)) + 20


@pytest.mark.parametrize(
    "address",
    [
        "http://bank.invalid@evil.invalid/",
        "http://bank.invalid:80@evil.invalid/x",
        "https://bank.invalid&#64;evil.invalid/",
        "https://bank.invalid&commat;evil.invalid/",
        "https://bank.invalid\\@evil.invalid/",
        "https://bank.invalid%5C@evil.invalid/",
        "https://b\u0430nk.invalid/",
        "https://bank.invalid\u2044x.evil.invalid/",
        "https://bank.invalid\u200b.evil.invalid/",
    ],
)
def test_an_address_whose_host_is_not_plain_is_no_link_in_any_form(address: str) -> None:
    scheme, rest = address.split("://")
    cut = f"{scheme}://{JOINER}{rest}"
    assert harmless(f"see {address}") == f"see {cut}"
    assert harmless(f"<{address}>") == f"<{JOINER}{cut}>"
    assert harmless(f"[bank]({address})") == f"[bank]{JOINER}({cut})"
    assert copied(harmless(f"<{address}>")) == f"<{address}>"


def test_an_address_without_a_scheme_or_of_another_one_does_not_deceive_either() -> None:
    assert harmless("www.bank.invalid@evil.invalid") == f"www.{JOINER}bank.invalid@evil.invalid"
    assert harmless("ftp://bank.invalid/x") == f"ftp://{JOINER}bank.invalid/x"


@pytest.mark.parametrize(
    "text", ["<https://a.invalid:81/x?y@z#b&c>", "http://a.invalid/@x", "www.a.invalid", "a@b.invalid"]
)
def test_a_plain_address_stays_a_link(text: str) -> None:
    assert harmless(text) == text


@pytest.mark.parametrize(
    "inner", ["x", "x^2 + y_1", "\\frac{1}{2}", "5", "5 + 6", "2x", "\\$5", "a<b", "5 \\text{ apples}", "|x|"]
)
def test_what_stands_between_dollars_is_mathematics(inner: str) -> None:
    shown = inner.replace("<", LESS_THAN)
    assert harmless(f"so ${inner}$, then") == f"so {DOLLAR[0]}{shown}{DOLLAR[1]}, then"
    assert copied(harmless(f"${inner}$")) == f"${inner}$"


@pytest.mark.parametrize(
    "text",
    [
        "$5 and $10",
        "$5-$10, US$20 to US$30",
        "$5, or 6$ more",
        "$HOME:$PATH and $A$B",
        "a$b$c",
        "$ x$, $x $",
        "\\$x$",
        "`$x$`",
        "$a\n$b",
        "$`x`$",
        "    $x$",
        "```\n$x$",
    ],
)
def test_amounts_names_and_code_are_no_mathematics(text: str) -> None:
    assert harmless(text) == text


def test_no_link_hides_between_dollars() -> None:
    assert f"]{JOINER}(javascript" in harmless("$[x](javascript:alert(1))$")
    assert '<span class="host">a.invalid</span>' in harmless("$[x](http://a.invalid/)$")


@given(st.text() | texts)
def test_what_a_person_typed_means_nothing_but_itself(text: str) -> None:
    typed = as_typed(text).removeprefix('<div class="typed" dir="auto">').removesuffix("</div>")
    for shown in (typed, plain(text)):
        assert not re.search(r"[<>$\\\n\t]|&(?!#\d+;)", shown)
        assert re.sub(r"&#(\d+);", lambda code: chr(int(code[1])), shown) == text.translate(markup.SIGNS)
    assert not re.search(r"[*_\[\]`~]|://|www\.", plain(text))
