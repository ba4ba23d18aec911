"""A model folder answered by vLLM, in the processor of `ray.data.llm`: one engine for each worker.

    requests ── preprocess: prompt ids, sampling ── vLLM engines ── token ids ── traces, into the store

vLLM is no dependency: it is used where it is installed. The prompts are ours, token by token, and so is the reading of
the answer. vLLM draws other tokens from the same seed than our decoders do, so its traces have a store of their own.
This process claims the requests and writes the traces.

Source: ray.data.llm of Ray 2.60 (vLLMEngineProcessorConfig, build_processor; columns as in its
`batch/stages/vllm_engine_stage.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from itertools import islice
from typing import Any

from distill.collecting.job import Job, Request
from distill.collecting.outcomes import Refusal
from distill.collecting.trace_log import TraceLog
from distill.collecting.traces import collect, count_reasoning
from distill.engines.ray_cluster import ray_cluster
from distill.teachers.respondent import ModelFolder, Respondent
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.formats.thought_forms import read_text
from toolkit.generation.generate import Sampling
from toolkit.records import Trace

WINDOW = 2**16
"""Requests of one pipeline; they are claimed from other processes meanwhile."""
SEED_BITS = 63
"""vLLM seeds torch's generator, which takes signed numbers."""
ERROR = "__inference_error__"
PromptRequest = Request[list[int]]


def check_vllm() -> None:
    """Raise `InputError` if vLLM is not installed here."""
    if find_spec("vllm") is None:
        raise InputError(
            "--engine ray-vllm needs vLLM, which is not installed; install it as its own documents say, or start it as "
            "a server and name that: --teacher http://HOST:PORT/v1"
        )


def vllm_teacher(teacher: Respondent, *, workers: int | None, gpus: int, address: str) -> VllmFolder:
    """Return a model folder that vLLM answers for; raises `InputError` if the teacher is none."""
    if not isinstance(teacher, ModelFolder):
        raise InputError(f"--engine ray-vllm is for a model folder, not for {teacher.name}; use --engine ray")
    return VllmFolder(teacher, workers=workers, gpus=gpus, address=address)


class VllmFolder(ModelFolder):
    """A model folder whose jobs vLLM answers."""

    def __init__(self, teacher: ModelFolder, *, workers: int | None, gpus: int, address: str) -> None:
        """`workers`: None: as many as there are GPUs for; `gpus`: of each worker, which hold the model together."""
        super().__init__(teacher.folder, teacher.open_decoder, teacher.name)
        self._weights, self._workers, self._gpus, self._address = teacher.digest, workers, gpus, address

    @cached_property
    def digest(self) -> str:
        return f"{self._weights} (engine: vllm)"

    def answer(self, job: Job) -> Sequence[Trace]:
        """Let the engines answer what the store lacks; raises `InputError` if log-probabilities are wanted."""
        if job.asking.top_logprobs:
            raise InputError(
                "--top-logprobs is not kept by --engine ray-vllm; start vLLM as a server, or leave the option out"
            )
        teacher = f"{self.name}@{self.digest}"

        def draw(missing: Iterator[PromptRequest], log: TraceLog) -> None:
            with ray_cluster(self._address, self._workers or 1) as ray:
                process = self._processor(ray, job)
                while window := {request.hash: request for request in islice(missing, WINDOW)}:
                    rows = [row_of(request, job.sampling, self._chat_format.stop_ids) for request in window.values()]
                    for row in process(ray.data.from_items(rows)).iter_rows():
                        request = window[row["request"]]
                        if trouble := row.get(ERROR):
                            log.failed(request, _refusal(str(trouble)))
                        else:
                            log.answered(trace_of(request, row, self._chat_format, teacher, job.sampling))

        return collect(self.plan(job), draw, job)

    def _processor(self, ray: Any, job: Job) -> Any:
        """Build the processor, which loads the model on each worker."""
        try:
            from ray.data.llm import build_processor, vLLMEngineProcessorConfig
        except ModuleNotFoundError as error:
            raise InputError(
                f"--engine ray-vllm needs the module {error.name!r} beside vLLM; install what Ray's processor needs: "
                "pip install 'ray[llm]'"
            ) from error
        gpus = int(ray.cluster_resources().get("GPU", 0))
        workers = self._workers or gpus // self._gpus
        if not 0 < workers * self._gpus <= gpus:
            raise InputError(
                f"--engine ray-vllm needs {max(1, workers) * self._gpus} GPUs, and the cluster has {gpus}; lower "
                "--workers or --gpus-per-worker, or add machines"
            )
        config = vLLMEngineProcessorConfig(
            model_source=str(self.folder.resolve()),
            engine_kwargs={"tensor_parallel_size": self._gpus, "enable_prefix_caching": True},
            concurrency=(workers, workers),
            batch_size=job.batch_size,
            should_continue_on_error=True,
            log_engine_metrics=False,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
        )
        logging.disable(logging.WARNING)  # it says that Ray runs already
        try:
            return build_processor(config, preprocess=dict)
        finally:
            logging.disable(logging.NOTSET)


def row_of(request: PromptRequest, sampling: Sampling, stop_ids: Iterable[int]) -> dict[str, Any]:
    """Return a request as a row of the processor."""
    return {
        "request": request.hash,
        "tokenized_prompt": request.prompt,
        "sampling_params": {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "max_tokens": sampling.max_new_tokens,
            "seed": request.seed % 2**SEED_BITS,
            "stop_token_ids": sorted(stop_ids),
            "detokenize": False,
        },
    }


def trace_of(
    request: PromptRequest, row: Mapping[str, Any], chat_format: ChatFormat, teacher: str, sampling: Sampling
) -> Trace:
    """Read a row that comes out of the processor; it has the sampled ids, and not why they ended."""
    ids = [int(id) for id in row["generated_tokens"]]
    is_cut = len(ids) >= sampling.max_new_tokens and ids[-1] not in chat_format.stop_ids
    return request.trace(
        read_text(chat_format.decode(ids), opened=chat_format.opens_reasoning),
        "length" if is_cut else "stop",
        teacher,
        prompt_tokens=len(request.prompt),
        reasoning_tokens=count_reasoning(chat_format, ids),
        completion_tokens=len(ids),
    )


def _refusal(trouble: str) -> Refusal:
    return Refusal(f"vLLM refused a request: {trouble}", reason="vLLM", cause="request", said=trouble)
