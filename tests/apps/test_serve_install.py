"""All of `toolkit serve` runs on what `pip install '.[serve]'` brings, and that is as large as the README says.

The libraries that this extra does not bring cannot be imported in the server's process, whatever is installed here; a
second server has not even those that a box without downloads may uninstall.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.apps.conftest import SUM
from tests.processes import started

ROOT = Path(__file__).parents[2]
RUN = """
import json, sys
barred = set(json.loads(sys.argv[1]))

class Absent:
    def find_spec(self, name, path, target=None):
        if name in barred:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from toolkit.cli.main import main
sys.exit(main(sys.argv[2:]))
"""
SCHEMA = {"type": "object", "properties": {"sum": {"enum": [4, 5]}}, "required": ["sum"], "additionalProperties": False}


def is_wanted(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


@pytest.fixture(scope="module")
def brought() -> frozenset[str]:
    """Return the distributions that the extra installs, with all that these need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["serve"]]
    found: set[str] = set()
    for needed in waiting:
        if canonicalize_name(needed.name) not in found:
            found.add(canonicalize_name(needed.name))
            inner = [Requirement(text) for text in metadata.requires(needed.name) or ()]
            waiting += [one for one in inner if is_wanted(one, needed.extras)]
    return frozenset(found)


@pytest.fixture(scope="module")
def downloading() -> frozenset[str]:
    """The distributions that the documentation uninstalls where nothing is downloaded."""
    said = re.search(r"^pip uninstall -y (.+)$", (ROOT / "docs/explanation/serving.md").read_text(), re.MULTILINE)
    assert said
    return frozenset(map(canonicalize_name, said[1].split()))


@pytest.fixture(scope="module", params=["all that the extra brings", "without what downloads"])
def address(
    request: pytest.FixtureRequest, learned: Path, brought: frozenset[str], downloading: frozenset[str]
) -> Iterator[str]:
    installed = brought - downloading if request.param == "without what downloads" else brought
    barred = [
        name
        for name, owners in metadata.packages_distributions().items()
        if installed.isdisjoint(map(canonicalize_name, owners)) and "reasoning-edge" not in owners
    ]
    assert {"torch", "gradio", "setuptools", "openai"} & set(barred), (
        "something must be barred for this to say anything"
    )
    with serving(json.dumps(barred), "serve", str(learned), "--port", "0") as address:
        yield address


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    with started(r"http://127\.0\.0\.1:\d+", "-c", RUN, *arguments) as (process, found):
        yield found.group()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def ask(address: str, path: str, **body: Any) -> str:
    content = json.dumps(body).encode() if body else None
    request = urllib.request.Request(address + path, content, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        text: str = answer.read().decode()
        return text


def test_each_route_and_what_it_can_answers_without_the_libraries_of_other_extras(address: str) -> None:
    question: dict[str, Any] = {"messages": [{"role": "user", "content": SUM[0]}], "temperature": 0}
    (choice,) = json.loads(ask(address, "/v1/chat/completions", **question, logprobs=True, top_logprobs=2))["choices"]
    assert (choice["message"]["reasoning"], choice["message"]["content"]) == SUM[1:]
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA}}
    (choice,) = json.loads(ask(address, "/v1/chat/completions", **question, response_format=form))["choices"]
    assert json.loads(choice["message"]["content"])["sum"] in (4, 5)
    begun = [*question["messages"], {"role": "assistant", "content": "The", "prefix": True}]
    (choice,) = json.loads(ask(address, "/v1/chat/completions", messages=begun, temperature=0))["choices"]
    assert choice["message"]["content"]
    events = ask(address, "/v1/chat/completions", **question, stream=True, stream_options={"include_usage": True})
    assert events.endswith("data: [DONE]\n\n")
    (choice,) = json.loads(ask(address, "/v1/completions", prompt="2 and", logprobs=1, repetition_penalty=1.1))[
        "choices"
    ]
    assert choice["logprobs"]["text_offset"][0] == 0
    assert json.loads(ask(address, "/health"))["status"] == "ok"
    (model,) = json.loads(ask(address, "/v1/models"))["data"]
    assert json.loads(ask(address, f"/v1/models/{model['id']}")) == model
    assert "toolkit_generated_tokens_total" in ask(address, "/metrics")


@pytest.mark.skipif(sys.platform != "linux", reason="libraries have another size for each system")
def test_it_is_as_large_as_the_readme_says(brought: frozenset[str], downloading: frozenset[str]) -> None:
    said = re.search(r"\[serve\].*some (\d+) MB, (\d+) without", (ROOT / "README.md").read_text())
    assert said
    assert downloading < brought
    assert [round(size_mb(names), -1) for names in (brought, brought - downloading)] == [int(said[1]), int(said[2])]
    assert size_mb(brought - downloading) <= 161


def size_mb(names: frozenset[str]) -> float:
    """What these distributions and this project take, without bytecode."""
    installed = [file.locate() for name in names for file in metadata.files(name) or ()]
    packages = [ROOT / name for name in ("apps", "distill", "export", "toolkit")]
    paths = [Path(str(file)) for file in installed] + [path for package in packages for path in package.rglob("*")]
    return sum(path.stat().st_size for path in paths if path.suffix != ".pyc" and path.is_file()) / 1e6
