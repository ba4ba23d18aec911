"""A teacher behind our own server says what the same model says here; other servers are refused before training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from apps.access.address import listen
from apps.server.run_server import build_application
from apps.server.service import Service
from distill.local.causal_model import open_causal_model
from distill.logits.grading.local_teacher import LocalTeacher
from distill.logits.grading.server_teacher import ServerTeacher
from distill.logits.grading.teacher_events import CandidateEvents
from distill.logits.grading.turns import Aligner, Grader
from distill.logits.logits_trainer import teachers_turns
from distill.logits.vocabularies.bridge import build_bridge
from export.pipeline import export_model
from export.presets import nearest_config
from export.runtime.exported_model import open_exported
from tests.apps.in_thread import serving
from tests.distill.logits.test_logits_trainer import EXAMPLES
from tests.http_server import HttpServer, QuietHandler
from toolkit.errors import InputError, Unreachable
from toolkit.formats.chat_format import ChatFormat
from toolkit.sources.model_names import resolve


@contextmanager
def serving_floats(student: Path, folder: Path) -> Iterator[str]:
    """Serve a model in fp32; yields the address of its API."""
    export_model(replace(nearest_config(student, folder, "fp32"), bounds=None))
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        exact = partial(open_exported, cache="exact")
        service = Service(folder, open_model=exact, parallel=2, queue=2, api_key="", name="tiny")
        with closing(service.scheduler), serving(build_application(service, "127.0.0.1", port), listener):
            yield f"http://127.0.0.1:{port}/v1"


def aligner_of(student: Path, teacher: Path) -> Aligner:
    of_student, of_teacher = ChatFormat.from_folder(student), ChatFormat.from_folder(teacher)
    bridge = build_bridge(
        of_student.tokenizer, of_teacher.tokenizer, of_student.stop_ids, of_teacher.stop_ids, "the teacher"
    )
    return Aligner(of_student, of_teacher, bridge)


def events_of(grader: Grader, student: Path) -> list[CandidateEvents]:
    turns = teachers_turns(EXAMPLES[:6], ChatFormat.from_folder(student), [""] * 6)
    found = []
    for grades in grader.grade(turns):
        assert grades is not None and isinstance(grades.events, CandidateEvents)
        found.append(grades.events)
    return found


def test_it_grades_as_the_same_model_does_here(tiny_student: Path, tmp_path: Path) -> None:
    """The student is the one with another vocabulary: the built-in teacher's."""
    student, teacher = resolve("builtin"), tmp_path / "teacher"
    shutil.copytree(tiny_student, teacher)
    rows = ChatFormat.from_folder(teacher).tokenizer.get_vocab_size()
    whole = AutoModelForCausalLM.from_pretrained(teacher)
    whole.resize_token_embeddings(rows)  # a server counts rows of padding too, to which a trained model gives nothing
    whole.save_pretrained(teacher)
    aligner = aligner_of(student, teacher)
    with serving_floats(teacher, tmp_path / "served") as url:
        remote = ServerTeacher(url, "tiny", aligner, top_k=5)
        remote.check()
        theirs = events_of(remote, student)
    model = open_causal_model(teacher, torch.float32).model
    ours = events_of(LocalTeacher(model, aligner, temperature=1.0, top_k=400), student)
    for served, here in zip(theirs, ours, strict=True):
        torch.testing.assert_close(served.span_P, here.span_P, atol=1e-4, rtol=1e-2)
        of_classes = torch.zeros(len(here.masses_PE), aligner.bridge.classes)
        of_classes.scatter_(1, here.classes_PK, here.masses_PE[:, :-1])
        known = served.classes_PK >= 0
        expected = of_classes.gather(1, served.classes_PK.clamp(min=0))
        assert (served.masses_PE[:, :-1] <= expected + 1e-4)[known].all()
        torch.testing.assert_close(
            served.masses_PE.sum(1) + served.span_P, torch.ones(len(known)), atol=1e-5, rtol=1e-5
        )


def told(prompt: list[int]) -> dict[str, Any]:
    """Return what a server that names tokens by their ids says of a prompt."""
    names = [f"token_id:{id}" for id in prompt]
    values: list[Any] = [None] + [-1.0] * (len(prompt) - 1)
    return {"tokens": names, "token_logprobs": values, "top_logprobs": [None] + [{"token_id:5": -0.5}] * len(names[1:])}


def shifted(said: dict[str, Any]) -> None:
    """A server that puts a token before the prompt."""
    said["tokens"].insert(0, "token_id:0")
    said["token_logprobs"].insert(1, -2.0)
    said["top_logprobs"].insert(1, {"token_id:5": -0.5})


def wrong(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(said: dict[str, Any]) -> None:
        said[key] = [*said[key][:2], value, *said[key][3:]]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (wrong("token_logprobs", None), "token 2 has the log-probability None"),
        (wrong("token_logprobs", float("nan")), "token 2 has the log-probability nan"),
        (wrong("token_logprobs", 0.7), r"token 2 has the log-probability 0\.7"),
        (wrong("top_logprobs", {"token_id:5": float("nan")}), "token 2 has the log-probability nan"),
        (wrong("top_logprobs", None), "gives no log-probabilities of prompts"),
        (shifted, "token 0 of the prompt is .*, and it speaks of 'token_id:0'"),
    ],
)
def test_what_is_no_log_probability_of_the_prompt_is_refused(
    change: Callable[[dict[str, Any]], None], said: str, tiny_student: Path
) -> None:
    teacher = ServerTeacher("http://127.0.0.1:1/v1", "tiny", aligner_of(tiny_student, tiny_student), top_k=5)
    prompt = [7, 8, 9, 10]
    answer = {"choices": [{"logprobs": told(prompt)}]}
    assert teacher._read(answer, prompt)[0] == [0.0, -1.0, -1.0, -1.0]
    change(answer["choices"][0]["logprobs"])
    with pytest.raises(InputError, match=said):
        teacher._read(answer, prompt)


def test_a_tokenizer_that_is_not_the_servers_is_refused(tiny_student: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_student, other)
    made = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = made["model"]["vocab"]
    pieces = [piece for piece in vocabulary if piece not in {token["content"] for token in made["added_tokens"]}]
    ids = [vocabulary[piece] for piece in pieces]
    vocabulary |= dict(zip(pieces, reversed(ids), strict=True))
    (other / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")
    with serving_floats(tiny_student, tmp_path / "served") as url:
        ServerTeacher(url, "tiny", aligner_of(resolve("builtin"), tiny_student), top_k=5).check()
        with pytest.raises(InputError, match=r"logits\.tokenizer is not that of http.*; name the folder of the model"):
            ServerTeacher(url, "tiny", aligner_of(tiny_student, other), top_k=5).check()


class _Completing(QuietHandler):
    """Lists a model and completes without the prompt, as llama-server does whatever `echo` says."""

    def do_GET(self) -> None:
        self._send({"data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        logprobs = {"tokens": ["2"], "token_logprobs": [-0.1], "top_logprobs": [{"2": -0.1}]}
        self._send({"choices": [{"text": "2", "logprobs": logprobs}]})

    def _send(self, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class _Server(HttpServer):
    handler = _Completing


def test_a_server_that_gives_none_of_prompts_is_refused(tiny_student: Path) -> None:
    aligner = aligner_of(tiny_student, resolve("builtin"))
    with _Server() as server:
        teacher = ServerTeacher(server.url, "tiny", aligner, top_k=5)
        with pytest.raises(InputError, match=r"gives no log-probabilities of prompts .* 1 tokens instead of"):
            teacher.check()
    with pytest.raises(Unreachable):
        teacher.check()
