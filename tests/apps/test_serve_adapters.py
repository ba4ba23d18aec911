"""One server answers with its model and with several adapters, each under its own name and as it would alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from apps.access.address import listen
from apps.chat.run_chat import open_model
from apps.model import CHAT_DECODER, chat_format_of
from apps.server.run_server import build_application
from apps.server.service import Service
from export.runtime.decoder import OnnxDecoder
from tests.apps.conftest import SUM
from tests.apps.in_thread import serving
from tests.lora_adapter import write_adapter
from toolkit.errors import InputError
from toolkit.formats.chat_format import TOKENIZER, ChatFormat
from toolkit.generation.generate import GREEDY, complete

SAID = "How many times does the letter r appear in the text?"


@pytest.fixture(scope="module")
def adapters(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: write_adapter(tiny_student, folder / name, seed=seed, lora_alpha=200)
        for seed, name in enumerate(("first", "second"))
    }


@pytest.fixture(scope="module")
def client(learned: Path, adapters: dict[str, Path]) -> Iterator[openai.OpenAI]:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        service = Service(learned, parallel=6, queue=6, api_key="", adapters=adapters)
        with closing(service.scheduler), serving(build_application(service, "127.0.0.1", port), listener):
            yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)


def completion(client: openai.OpenAI, model: str) -> str:
    answer: Any = client.completions.create(model=model, prompt=SAID, max_tokens=24, temperature=0)
    assert answer.model == model
    return str(answer.choices[0].text)


def test_each_name_answers_as_its_adapter_does_alone_whatever_else_runs(
    client: openai.OpenAI, learned: Path, adapters: dict[str, Path]
) -> None:
    names = ["first", "tiny", "second"] * 4
    with ThreadPoolExecutor(len(names)) as pool:
        together = [*pool.map(lambda name: completion(client, name), names)]
    chat_format = ChatFormat.from_folder(learned)
    prompt = chat_format.encode(SAID)
    said = {}
    for name in ("tiny", *adapters):
        decoder = OnnxDecoder(learned, adapter=adapters.get(name))
        [row] = complete(decoder, [prompt], replace(GREEDY, max_new_tokens=24), chat_format.stop_ids)
        ids = row.ids[:-1] if row.finish_reason == "stop" else row.ids
        said[name] = chat_format.decode(ids)
    assert len(set(said.values())) == 3
    assert together == [said[name] for name in names]


def test_the_names_are_listed_and_others_refused(client: openai.OpenAI) -> None:
    listed = {model.id: model.model_dump() for model in client.models.list()}
    assert [*listed] == ["tiny", "first", "second"]
    assert listed["second"]["parent"] == "tiny" and "parent" not in listed["tiny"]
    assert client.models.retrieve("first").id == "first"
    with pytest.raises(openai.NotFoundError, match="this server has only 'tiny', 'first', 'second'"):
        completion(client, "third")


def test_the_chat_names_its_adapter_and_speaks_its_format(
    learned: Path, adapters: dict[str, Path], tiny_student: Path, tmp_path: Path
) -> None:
    def opening(folder: Path, /, *, adapter: Path | None = None) -> OnnxDecoder:
        return CHAT_DECODER(folder, adapter=adapter or adapters["first"])

    model = open_model(learned, opening)
    assert model.name == "tiny + first"
    assert model.chat_model.count([{"role": "user", "content": SUM[0]}]) > 0
    assert chat_format_of(learned, adapters["first"]).stop_ids == ChatFormat.from_folder(learned).stop_ids
    own = write_adapter(tiny_student, tmp_path / "own")
    for path in tiny_student.iterdir():
        if "token" in path.name or path.suffix == ".jinja":
            (own / path.name).write_bytes(path.read_bytes())
    (own / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}<think>\n")
    assert chat_format_of(learned, own).render([{"role": "user", "content": "hi"}]).startswith("[hi]")
    tokenizer = json.loads((own / TOKENIZER).read_text())
    ids = tokenizer["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (own / TOKENIZER).write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match=r"is number \d+ in the tokenizer of .* give the exported folder of"):
        chat_format_of(learned, own)


def test_an_adapter_changes_what_the_model_says(learned: Path, adapters: dict[str, Path]) -> None:
    prompt = ChatFormat.from_folder(learned).encode(SAID)
    plain_V, changed_V = (OnnxDecoder(learned, adapter=given).start([prompt])[0] for given in (None, adapters["first"]))
    assert np.abs(plain_V - changed_V).max() > 0.1
