"""The stage of `toolkit distill` in which a student learns from a teacher's distribution (`--logits`).

    stored, teacher    replaces supervised training: divergence and cross entropy on the same traces
    on_policy          follows it: the student writes, the teacher says of each token how likely it was

What would fail is found before the teacher answers anything: a vocabulary that cannot be bridged, traces without
log-probabilities, a server that gives none of prompts.

An on-policy stage works in the folder `logits` of the run, whose checkpoints let it resume; its weights take the place
of the supervised student's, and its losses are in `logits.jsonl`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from distill.curation.chosen import is_chosen
from distill.endpoints.remote_teacher import Endpoint
from distill.local.causal_model import check_causal, open_causal_model
from distill.logits.grading.local_teacher import LocalTeacher
from distill.logits.grading.server_teacher import ServerTeacher
from distill.logits.grading.stored_grades import StoredGrades
from distill.logits.grading.turns import Aligner, Grader
from distill.logits.logits_config import LogitsConfig
from distill.logits.logits_trainer import LogitsTrainer
from distill.logits.vocabularies.bridge import build_bridge
from distill.teachers.respondent import ModelFolder, Respondent
from distill.teachers.trace_store import store_of
from distill.training.journal import LOSS
from distill.training.train import train
from distill.training.train_config import TrainConfig
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.records import Example, Trace
from toolkit.sources.model_names import is_exported
from toolkit.terminal import say

ROOM = "logits"
"""The folder of a run in which an on-policy stage works."""
LOGITS_LOSS = "logits.jsonl"
ASKED_OF_SERVERS = 20
"""Candidates of each token that are asked of a server if the recipe names no number: OpenAI's limit."""


class LogitsStage:
    """What was checked before the run, and what it needs."""

    def __init__(
        self,
        config: LogitsConfig,
        teacher: Respondent,
        student: ChatFormat,
        traces: Path | None,
        read: Sequence[Trace] | None,
    ) -> None:
        """`traces`: the file of existing traces and `read` what it holds, if the teacher is not asked.

        Raises `InputError` if the student cannot learn so.
        """
        self.config, self._student, self._teacher = config, student, teacher
        self._stored: StoredGrades | None = None
        self._aligner: Aligner | None = None
        if config.source == "stored":
            self._stored = _stored(student, traces, read)
        elif isinstance(teacher, ModelFolder):
            if config.tokenizer:
                raise InputError(
                    f"logits.tokenizer ({config.tokenizer}) is for teachers behind a server, and {teacher.folder} has "
                    "a tokenizer of its own; leave it out"
                )
            self._aligner = self._beside(teacher.folder, teacher.folder.name)
            if is_exported(teacher.folder):
                raise InputError(
                    f"the teacher {teacher.folder} is an exported model, which gives no distributions of whole texts; "
                    "choose the model that it was made from, or serve it (toolkit serve)"
                )
            check_causal(teacher.folder)
        elif isinstance(teacher, Endpoint):
            if not config.tokenizer:
                raise InputError(
                    f"the server {teacher.url} does not tell its tokenizer; name a folder with it and the chat "
                    "template: --set logits.tokenizer=FOLDER"
                )
            if config.temperature != 1:
                raise InputError(
                    f"logits.temperature ({config.temperature}) must be 1 for a teacher behind a server, whose tail "
                    "has no logits; leave it out"
                )
            self._aligner = self._beside(Path(config.tokenizer), config.tokenizer)
            self._of_server(teacher, self._aligner).check()

    @property
    def replaces_supervised(self) -> bool:
        """Whether the student learns from the traces in this stage, and not before it."""
        return self.config.source != "on_policy"

    def run(
        self,
        student: Path,
        examples: Sequence[Example],
        hashes: Mapping[tuple[str, int], str],
        training: TrainConfig,
        folder: Path,
        validation: Sequence[Example],
    ) -> dict[str, Any]:
        """Train the student; an on-policy stage goes on from the weights in `folder`.

        `hashes`: the request of each trace, by problem and sample. Returns what `distill.training.train.train` does.
        """
        work = folder if self.replaces_supervised else folder / ROOM
        work.mkdir(exist_ok=True)
        make_trainer = partial(
            LogitsTrainer,
            logits=self.config,
            grader=self._grader(),
            examples=examples,
            sources=[hashes.get((example.problem_id, example.sample), "") for example in examples],
            chat_format=self._student,
        )
        rate = training.learning_rate * self.config.learning_rate_share
        say(f"logits: learning from the teacher's distribution ({self.config.source})")
        training = replace(training, learning_rate=rate)
        if self.replaces_supervised:
            return train(student, examples, training, work, validation, make_trainer=make_trainer)
        measured = train(folder, examples, training, work, make_trainer=make_trainer)
        measured["chosen_by"] = "the last of the on-policy updates"
        shutil.copyfile(work / LOSS, folder / LOGITS_LOSS)
        for path in work.glob("*.safetensors*"):
            shutil.copyfile(path, folder / path.name)
        return measured

    def _beside(self, folder: Path, name: str) -> Aligner:
        teacher = ChatFormat.from_folder(folder)
        bridge = build_bridge(
            self._student.tokenizer, teacher.tokenizer, self._student.stop_ids, teacher.stop_ids, name
        )
        return Aligner(self._student, teacher, bridge)

    def _of_server(self, teacher: Endpoint, aligner: Aligner) -> ServerTeacher:
        key = teacher.all_servers[0].key
        return ServerTeacher(teacher.url, teacher.model, aligner, top_k=self.config.top_k or ASKED_OF_SERVERS, key=key)

    def _grader(self) -> Grader:
        if self._stored:
            return self._stored
        assert self._aligner
        if isinstance(self._teacher, Endpoint):
            return self._of_server(self._teacher, self._aligner)
        assert isinstance(self._teacher, ModelFolder)
        model = open_causal_model(self._teacher.folder).model
        return LocalTeacher(model, self._aligner, temperature=self.config.temperature, top_k=self.config.top_k)


def _stored(student: ChatFormat, traces: Path | None, read: Sequence[Trace] | None) -> StoredGrades:
    if traces is None or read is None:
        raise InputError(
            "--logits stored learns from candidates that were kept with traces; collect them with toolkit traces "
            "--top-logprobs, and name the run's traces.jsonl with --traces"
        )
    if is_chosen(traces):
        raise InputError(
            f"{traces} is a chosen training set, whose lines do not name their requests; name the traces.jsonl of the "
            "run with --traces"
        )
    store = store_of(traces.parent, traces.parent)
    return StoredGrades(store, [trace.request_hash for trace in read], student)
