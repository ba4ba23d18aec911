"""A teacher behind our own server says what the same model says here; other servers are refused before training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
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
from distill.endpoints.remote_teacher import connect
from distill.local.causal_model import open_causal_model
from distill.logits.grading.local_teacher import LocalTeacher
from distill.logits.grading.server_teacher import ServerTeacher
from distill.logits.grading.teacher_events import CandidateEvents
from distill.logits.grading.turns import Aligner, Grader
from distill.logits.logits_config import USUAL
from distill.logits.logits_stage import LogitsStage
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
        named = replace(USUAL["on_policy"], tokenizer=str(teacher))
        grader = LogitsStage(named, connect(f"{url}#tiny"), aligner.student, None, None)._grader()
        assert isinstance(grader, ServerTeacher) and grader._longest == 512, "longer turns would be refused"
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
