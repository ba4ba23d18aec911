"""Claims about report.html: one file that asks nothing of the network, holds the figures and shows foreign text
harmlessly."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.toolkit.test_ledger import write_evaluation
from toolkit.errors import InputError
from toolkit.figures.html_page import POLICY
from toolkit.figures.report import report_run
from toolkit.records import read_object

HOSTILE = (
    "<script>alert(1)</script><img src=https://evil.example/x.png onerror=alert(2)></pre></details>"
    '<a href="javascript:alert(3)">x</a> &amp; \u202egnp.exe\u202c \x1b[31mred\x00 ]]> --> ' + "long " * 400
)


class Page(HTMLParser):
    """Collects what a browser would make of a page: tags, attributes, and the text between them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    for name, right in (("base", 4), ("teacher", 40), ("student", 30), ("int4", 29)):
        write_evaluation(run / "eval" / name, right, text=HOSTILE)
    (run / "student").mkdir()
    steps = [{"step": step, "loss": 2 / step, "tokens": 100 * step} for step in range(1, 40)]
    (run / "student" / "loss.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    counts = {"traces": 100, "kept": 70, "drops": {"wrong": 20, "duplicate": 10}}
    (run / "student" / "drops.json").write_text(json.dumps(counts))
    report_run(run)
    return run


def test_a_run_gets_its_ledger_and_its_report_in_the_order_of_the_story(run: Path) -> None:
    assert list(read_object(run / "ledger.json")["rows"]) == ["teacher", "base", "student", "int4"]
    assert sorted(path.name for path in run.iterdir()) == ["eval", "ledger.json", "report.html", "student"]


def test_scores_of_several_samples_are_rows_of_the_page(tmp_path: Path) -> None:
    for name, right in (("student", 30), ("rl", 34)):
        write_evaluation(tmp_path / "eval" / name, right)
        path = tmp_path / "eval" / name / "manifest.json"
        value = json.loads(path.read_text())
        value["measured"]["protocol"]["samples"] = 4
        value["measured"]["at_k"] = {"pass@4": {"accuracy": 0.875, "interval": [0.8, 0.95], "problems": 40}}
        path.write_text(json.dumps(value))
    report_run(tmp_path)
    texts = Page((tmp_path / "report.html").read_text()).texts
    assert {"Avg@4", "pass@4", "87.5 %", "Reinforced student"} <= set(texts)
    assert "The reinforced student solves " in "".join(texts)


def test_the_page_refers_to_nothing_outside_itself(run: Path) -> None:
    source = (run / "report.html").read_text()
    page = Page(source)
    assert not {"script", "link", "img", "iframe", "object", "base", "a", "image"} & set(page.tags)
    for name, value in page.attributes:
        assert name not in ("src", "srcset", "action", "data") and not name.startswith("on")
        assert name != "href" or (value or "").startswith("#"), value
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "url(" not in re.sub(r"url\(#[\w.-]+\)", "", " ".join(value or "" for _, value in page.attributes))
    assert ("content", POLICY) in page.attributes


def test_every_reference_inside_the_page_has_its_target(run: Path) -> None:
    page = Page((run / "report.html").read_text())
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)), "figures do not share ids"
    text = " ".join(f"{name}={value}" for name, value in page.attributes)
    assert set(re.findall(r"url\(#([^)]+)\)|href=#(\S+)", text))
    for pair in re.findall(r"url\(#([^)]+)\)|href=#(\S+)", text):
        assert "".join(pair) in ids


def test_hostile_text_is_shown_and_not_obeyed(run: Path) -> None:
    source = (run / "report.html").read_text()
    page = Page(source)
    shown = "".join(page.texts)
    assert "<script>alert(1)</script><img src=https://evil.example/x.png onerror=alert(2)>" in shown
    assert '<a href="javascript:alert(3)">x</a> &amp;' in shown
    assert not any(character in source for character in "\u202e\u202c\x1b\x00")
    assert "U+202E" in shown and "U+001B" in shown and "U+0000" in shown
    assert source.count("<details") == source.count("</details>")


def test_the_page_holds_the_figures_the_plots_and_the_thinking(run: Path) -> None:
    source = (run / "report.html").read_text()
    shown = "".join(Page(source).texts)
    for expected in ("75.0 %", "72.5 %", "10.0 %", "100.0 %", "269 MB", "12.3", "70 (70.0 %)", "optimizer step"):
        assert expected in shown, expected
    assert "The distilled student solves 75.0 % of the problems, where its base solved 10.0 %." in shown
    assert "keeps 96.7 % of that accuracy" in shown
    assert source.count("<svg") == 5 and source.count('role="img"') == 5
    assert source.count("<details") == 2 * 4, "one problem of each family, one answer of each row"
    assert not re.search(r"#0\d0\d0\d", source), "every stand-in colour was renamed"


def test_a_run_without_training_has_a_page_without_that_part(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "eval" / "mine", 3)
    report_run(tmp_path)
    source = (tmp_path / "report.html").read_text()
    assert "Training" not in source and "mine" in source
    assert list(read_object(tmp_path / "ledger.json")["rows"]) == ["mine"]


def test_a_run_without_evaluations_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"eval holds no evaluation"):
        report_run(tmp_path)
    with pytest.raises(InputError, match=r"nothing is not a folder; give the run folder"):
        report_run(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_the_same_run_gives_the_same_bytes(run: Path) -> None:
    before = (run / "report.html").read_bytes()
    report_run(run)
    assert (run / "report.html").read_bytes() == before


def test_importing_the_report_imports_no_matplotlib() -> None:
    code = "import sys, toolkit.figures.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
