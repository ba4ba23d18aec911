"""The pages carry each style sheet and script once, with the settings that it needs, and the README lists what works
around Gradio."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tinycss2

from apps.chat.look import look
from apps.chat.look.frames import SCRIPT
from apps.chat.look.page_files import ASSETS, script
from tests.apps import test_chat_page
from tests.house.modules import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser

browser = test_chat_page.browser
CHAT = ROOT / "apps" / "chat"
README = (CHAT / "look" / "README.md").read_text()
ELEMENT = re.compile(r"<script>\{\nconst settings = (?P<settings>[^\n]*);\n(?P<text>.*?)\}</script>", re.DOTALL)
SHEETS = sorted({*look.CHAT_SHEETS, *look.COMPARE_SHEETS})
SUPPORTS = "(claims) => claims.filter((claim) => !CSS.supports(...claim)).map((claim) => claim.join(' '))"


def scripts(head: str) -> list[re.Match[str]]:
    found = list(ELEMENT.finditer(head))
    assert len(found) == head.count("<script") == head.count("</script")
    return found


def test_every_file_is_on_a_page_and_none_twice() -> None:
    for head, sheets in ((look.CHAT_HEAD, look.CHAT_SHEETS), (look.COMPARE_HEAD, look.COMPARE_SHEETS)):
        texts = [found["text"] for found in scripts(head)]
        assert len(texts) == len(set(texts)) and len(sheets) == len(set(sheets))
    loaded = {found["text"] for head in (look.CHAT_HEAD, look.COMPARE_HEAD, SCRIPT.decode()) for found in scripts(head)}
    assert loaded == {path.read_text() for path in ASSETS.glob("*.js")}
    assert sorted(ASSETS.glob("*.css")) == SHEETS


def test_a_script_is_told_what_it_asks_for_and_no_more() -> None:
    for found in scripts(look.CHAT_HEAD + look.COMPARE_HEAD):
        asked = set(re.findall(r"\bsettings\.(\w+)", found["text"]))
        assert json.loads(found["settings"]).keys() == asked, found["text"][:80]


def test_what_a_script_is_told_cannot_end_it() -> None:
    told = "</script><!-- <script>\u2028"
    (found,) = scripts(script("badge", route=told))
    assert "<" not in found["settings"] and json.loads(found["settings"]) == {"route": told}


def test_every_id_that_a_file_names_is_on_a_page() -> None:
    python = "".join(path.read_text() for path in CHAT.rglob("*.py"))
    written = "".join(path.read_text() for path in ASSETS.glob("*.js"))
    given = set(re.findall(r"""\bid=["']([\w-]+)["']""", python)) | set(re.findall(r'\belem_id="([\w-]+)"', python))
    given |= set(re.findall(r'\.id = "([\w-]+)"', written))
    for path in sorted(ASSETS.iterdir()):
        text = re.sub(r"#(?=[0-9a-f]+\b[;\s])", "", path.read_text())  # a colour is no id
        assert set(re.findall(r"#([a-z][\w-]+)", text)) <= given, path.name


@pytest.mark.parametrize("path", SHEETS, ids=lambda path: path.name)
def test_gradio_keeps_every_rule(path: Path) -> None:
    """Gradio drops all at-rules but `@media`, and within that the rules about its own container."""
    for rule in tinycss2.parse_stylesheet(path.read_text(), skip_comments=True, skip_whitespace=True):
        if rule.type == "at-rule":
            assert rule.at_keyword == "media"
            assert ".gradio-container" not in tinycss2.serialize(rule.content)


def one_by_one(prelude: list[Any]) -> list[str]:
    """Split a rule's prelude into its selectors."""
    parts: list[list[Any]] = [[]]
    for token in prelude:
        if token == ",":
            parts.append([])
        else:
            parts[-1].append(token)
    return [tinycss2.serialize(part).strip() for part in parts]


@test_chat_page.pytestmark
def test_a_browser_knows_every_selector_and_every_value(browser: Browser) -> None:
    claims: list[list[str]] = []

    def collect(nodes: list[Any]) -> None:
        for node in nodes:
            if node.type == "declaration" and not node.name.startswith("--"):
                claims.append([node.name, tinycss2.serialize(node.value).strip()])
            elif node.type == "qualified-rule":
                claims.extend([f"selector({one})"] for one in one_by_one(node.prelude) if "-webkit-" not in one)
            if node.type in ("qualified-rule", "at-rule"):
                collect(tinycss2.parse_blocks_contents(node.content, skip_comments=True, skip_whitespace=True))

    for path in [*SHEETS, ROOT / "toolkit" / "figures" / "assets" / "report.css"]:
        collect(tinycss2.parse_stylesheet(path.read_text(), skip_comments=True, skip_whitespace=True))
    page = browser.new_page()
    assert len(claims) > 500
    assert page.evaluate(SUPPORTS, claims) == []
    assert page.evaluate(SUPPORTS, [["color", "rad"], ["selector(p:has(]"]]) == ["color rad", "selector(p:has(]"]
    page.close()


def test_what_works_around_gradio_is_listed_for_the_version_that_runs() -> None:
    (version,) = re.findall(r"^gradio==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert f"Reviewed for Gradio {version}." in README
    rows = [[cell.strip() for cell in row.split(" | ")] for row in README.splitlines() if re.match(r"\| \d+ \|", row)]
    assert [row[0] for row in rows] == [f"| {number}" for number in range(1, len(rows) + 1)]
    for _, file, line, *_ in rows:
        assert line.strip("`") in (CHAT / file.strip("`")).read_text(), f"{file} has no {line}: take it off the list"
