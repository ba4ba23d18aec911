"""Unmodified clients of OpenAI's API against a tiny served model, each in an environment of its own; writes their
table.

Those in JavaScript need Node.js and npm, and are left out in words where these are missing.

python -m tests.apps.clients [--environments runs/environments] [--page docs/reference/server.md]

Tokenizer, template, server and network are real, and so is the decoder, but for its logits: they say what a script
says, so that what each client must read is known.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.access.address import listen
from apps.server.run_server import build_application
from apps.server.service import Service
from export.runtime.rows.row_pool import Row, RowPool
from tests.apps.in_thread import serving
from toolkit.figures.readme import fill_file
from toolkit.figures.tables import markdown_table
from toolkit.formats.chat_format import CLOSE, OPEN, TURN_END, ChatFormat
from toolkit.generation.generate import Floats
from toolkit.machine.environment import interpreter

KEY = "a key"
QUESTION, ANSWER = "What is 2 and 3?", "It is **5**."
JSON_QUESTION, OBJECT = "What is 2 and 3? Say it as an object.", {"sum": 5, "sure": True}
SCRIPTS = {
    "schema": f"```json\n{json.dumps(OBJECT)}\n```",  # a client's own words for what it wants
    "as an object": json.dumps(OBJECT),
    "": ANSWER,
}
"""Words of the prompt → the answer; the first that occurs counts."""
CLIENTS: dict[str, tuple[str, ...]] = {
    "openai": ("openai",),
    "litellm": ("litellm",),
    "langchain-openai": ("langchain-openai",),
    "instructor": ("instructor",),
    "pydantic-ai-slim": ("pydantic-ai-slim[openai]",),
    "llm": ("llm",),
}
"""What the environment of each client in Python holds, the client first."""
JAVASCRIPT_CLIENTS = ("openai",)


def follow_scripts(pool: RowPool, chat_format: ChatFormat) -> None:
    """Let its rows read and step as the model does, and then say the script of their prompts."""
    read, step, opening = pool.read, pool.step, chat_format.encode(f"{OPEN}\n")

    def scripted(row: Row, logits_V: Floats) -> Floats:
        tokens, size = row.prefix.tokens, len(opening)
        begins = (i for i in range(len(tokens), 0, -1) if tokens[max(0, i - size) : i] == opening)
        begin = next(begins, None)  # of the model's turn, behind the tag that opens its thought
        if begin is None:
            return logits_V
        prompt = chat_format.decode(tokens[:begin])
        answer = next(answer for words, answer in SCRIPTS.items() if words in prompt)
        ids = chat_format.encode(f"Simple.\n{CLOSE}") + chat_format.encode(answer + TURN_END)
        scripted_V = np.full_like(logits_V, -100.0)
        scripted_V[ids[len(tokens) - begin]] = 0.0
        return scripted_V

    def scripted_step(rows: Sequence[Row], tokens_B: Sequence[int]) -> list[Floats]:
        return [scripted(row, logits_V) for row, logits_V in zip(rows, step(rows, tokens_B), strict=True)]

    pool.read = lambda row, tokens_T: scripted(row, read(row, tokens_T))  # type: ignore[method-assign]
    pool.step = scripted_step  # type: ignore[method-assign]


@contextmanager
def served_scripts(folder: Path) -> Iterator[str]:
    """The address of a server that answers by script, over a tiny model that is made in the folder."""
    from export.pipeline import export_model
    from export.presets import int4_config
    from tests.conftest import write_tiny_student

    exported = folder / "tiny"
    export_model(replace(int4_config(write_tiny_student(folder / "student", context=4096), exported), bounds=None))
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        service = Service(exported, parallel=2, queue=8, api_key=KEY)
        follow_scripts(service.scheduler.pool, ChatFormat.from_folder(exported))
        with closing(service.scheduler), serving(build_application(service, "127.0.0.1", port), listener):
            yield f"http://127.0.0.1:{port}/v1"


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A client in an environment of its own."""

    name: str
    version: str
    program: list[str | Path]
    """The command that asks as this client's user would; the address and what is asked follow."""


def installed(environments: Path) -> Iterator[Installed]:
    """All clients, each as soon as it is installed."""
    program = Path(__file__).with_name("client_programs.py")
    for client, requirements in CLIENTS.items():
        python = interpreter(environments / client, requirements)
        version = f"import importlib.metadata; print(importlib.metadata.version({client!r}))"
        yield Installed(name=client, version=_printed(python, "-c", version), program=[python, program, client])
    if not (shutil.which("node") and shutil.which("npm")):
        print("clients in JavaScript are left out: they need node and npm on the PATH")
        return
    for client in JAVASCRIPT_CLIENTS:
        home = environments / f"{client}-javascript"
        home.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--silent", "--no-fund", "--no-audit", client], cwd=home, check=True)
        copy = shutil.copy(program.with_suffix(".mjs"), home)
        facts = json.loads((home / "node_modules" / client / "package.json").read_text(encoding="utf-8"))
        yield Installed(name=f"{client} (JavaScript)", version=facts["version"], program=["node", copy, client])


def _printed(*command: str | Path) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def ask(client: Installed, url: str) -> dict[str, Any]:
    """What a client's program got, by the ways in which it asked; raises `CalledProcessError` where it failed."""
    said: dict[str, Any] = json.loads(
        _printed(*client.program, url, KEY, "tiny", QUESTION, JSON_QUESTION).splitlines()[-1]
    )
    return said


def wrong(said: dict[str, Any]) -> dict[str, Any]:
    """The ways of asking that got something else than the script says."""
    expected: dict[str, Any] = {
        "whole": ANSWER,
        "streamed": ANSWER,
        "collected": ANSWER,
        "parsed": OBJECT,
        "model": "tiny",
    }
    expected |= {"tokens of a text": 3}
    return {way: got for way, got in said.items() if got != expected[way]}


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--environments", type=Path, default=Path("runs/environments"), help="where clients are installed"
    )
    parser.add_argument(
        "--page", type=Path, default=Path("docs/reference/server.md"), help="the page to write the table into"
    )
    options = parser.parse_args()
    table, failed = [["client", "version", "what it read as the script says"]], False
    with tempfile.TemporaryDirectory() as folder, served_scripts(Path(folder)) as url:
        for client in installed(options.environments):
            try:
                said = ask(client, url)
                trouble = wrong(said)
            except subprocess.CalledProcessError as error:
                said, trouble = {}, {"exit code": error.returncode}
            failed |= bool(trouble)
            table.append([client.name, client.version, f"**failed**: {trouble}" if trouble else ", ".join(said)])
            print(*table[-1], sep=": ", flush=True)
    fill_file(options.page, "clients", markdown_table(table) + "\n")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
