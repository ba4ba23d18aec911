"""The models that answer problems: a model folder through a decoder, or an endpoint.

A model argument is always a folder, a known name, a hub id, or an `http(s)://…/v1` endpoint.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, Protocol, Self

from distill.collecting.job import Job, Plan
from distill.collecting.traces import plan_of, sample_traces
from distill.endpoints.remote_teacher import connect
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.generation.generate import GREEDY, Decoder, decode
from toolkit.records import Problem, Trace
from toolkit.runs import folder_digest
from toolkit.sources.model_names import is_endpoint, resolve

SPEED_PROMPTS = 6
"""The first is a warm-up and does not count."""
SPEED_TOKENS = 48
WEIGHT_SUFFIXES = (".safetensors", ".onnx", ".data", ".bin", ".gguf")


class Respondent(Protocol):
    """A model that answers while it is open (`with respondent:`); its name, digest and size are known before."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def weight_bytes(self) -> int:
        """0 if the weights are on another machine."""

    @property
    def left_out(self) -> list[str]:
        """Sampling fields that had no effect because the server refuses them."""

    @property
    def stopped_by(self) -> str:
        """The limit that ended the last job before all was asked; empty if none did."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def load(self) -> None:
        """Load now what the first answer would load, so that it does not count as time of answering."""

    def answer(self, job: Job) -> Sequence[Trace]:
        """Collect the traces that the job's file lacks, and return all: problem by problem, sample by sample."""

    def plan(self, job: Job) -> Plan[Any]:
        """Return the requests of a job; asks no server and loads no model."""

    def tokens_per_s(self, problems: Sequence[Problem]) -> float | None:
        """Measure the decode speed of one stream over the first few problems; None if another machine decodes."""


class ModelFolder:
    """A model folder; while it is open, it holds the decoder.

    `opened` says how it is opened if not as it is ("cache: int8"); it is part of the digest, since it changes answers.
    """

    def __init__(self, folder: Path, open_decoder: Callable[[Path], Decoder], name: str, opened: str = "") -> None:
        self.folder, self.name = folder, name
        self.open_decoder, self._how = open_decoder, opened

    @cached_property
    def digest(self) -> str:
        digest = folder_digest(self.folder)
        return f"{digest} ({self._how})" if self._how else digest

    @property
    def weight_bytes(self) -> int:
        return weight_bytes(self.folder)

    left_out: ClassVar[list[str]] = []
    stopped_by: ClassVar[str] = ""

    def __enter__(self) -> Self:
        self._chat_format = ChatFormat.from_folder(self.folder)
        self._opened: Decoder | None = None
        return self

    def __exit__(self, *error: object) -> None:
        self._opened = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is open: another process opens it for itself."""
        return {name: value for name, value in vars(self).items() if name not in ("_chat_format", "_opened")}

    def load(self) -> None:
        self._decoder()

    def answer(self, job: Job) -> Sequence[Trace]:
        """Sample the traces that the job's file lacks; see `distill.collecting.traces.sample_traces`."""
        return sample_traces(self._decoder, self._chat_format, job, teacher=f"{self.name}@{self.digest}")

    def plan(self, job: Job) -> Plan[list[int]]:
        return plan_of(self._chat_format, job, f"{self.name}@{self.digest}")

    def tokens_per_s(self, problems: Sequence[Problem]) -> float:
        prompts = [self._chat_format.prompt_ids(problem.messages) for problem in problems[:SPEED_PROMPTS]]
        return decode_speed(self._decoder(), prompts)

    def _decoder(self) -> Decoder:
        """Open the decoder when it is first needed: a complete file needs none."""
        self._opened = self._opened or self.open_decoder(self.folder)
        return self._opened


def find_respondent(argument: str, open_decoder: Callable[[Path], Decoder], opened: str = "") -> Respondent:
    """Return the respondent that a model argument names; downloads a known name or hub id that is not here yet.

    `opened` as for `ModelFolder`. Raises `InputError` if the argument names no model, or an endpoint has such a value.
    """
    if is_endpoint(argument) and opened:
        option, _, value = opened.partition(": ")
        raise InputError(f"--{option} ({value}) does not apply to the endpoint {argument}; leave it out")
    if is_endpoint(argument):
        return connect(argument)
    folder = resolve(argument)
    return ModelFolder(folder, open_decoder, folder.resolve().name, opened)


def folder_name(name: str) -> str:
    """Turn a respondent's name into a folder's."""
    return re.sub(r"[^\w.-]+", "-", name).lstrip(".-")


def decode_speed(decoder: Decoder, prompts: Sequence[Sequence[int]]) -> float:
    """Measure tokens/s of one greedy stream after its first token, ignoring end-of-text; see
    `distill.evaluation.evaluate`."""
    rates = []
    for prompt in prompts:
        sampling = replace(GREEDY, max_new_tokens=SPEED_TOKENS)
        stamps = [time.perf_counter() for _ in decode(decoder, [prompt], sampling, frozenset())]
        rates.append((len(stamps) - 1) / (stamps[-1] - stamps[0]))
    return median(rates[1:] or rates)


def weight_bytes(folder: Path) -> int:
    """Return the size of the files that hold a model's weights."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.name.endswith(WEIGHT_SUFFIXES))
