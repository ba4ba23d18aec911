"""Turns problems into traces: answers each problem n times, in batches, into a file that survives `kill -9`.

A sample's seed, prompt and limits come from its problem and its number alone. So its text does not depend on the other
rows of a batch, on the batch size, or on how often the run was interrupted (as far as the decoder's arithmetic gives a
row the same logits in any batch: in bf16 a near tie may break differently). A resumed run samples only what the file
lacks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict

from distill.collecting.job import Job, P, Request
from distill.collecting.trace_log import TraceLog
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat, ReasoningParser
from toolkit.formats.text_reader import TextReader
from toolkit.formats.thought_forms import read_text
from toolkit.generation.generate import Decoder, Sampling, decode
from toolkit.records import Message, Trace


def row_seed(seed: int, problem_id: str, sample: int) -> int:
    """Derive the seed of one sample of one problem, independent of all others."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{problem_id}:{sample}".encode()).digest()[:8])


def plan(prompt_of: Callable[[list[Message]], P], job: Job, teacher: str) -> dict[tuple[str, int], Request[P]]:
    """Make all requests by (problem id, sample), problems in their order.

    `teacher`: name@digest. A request's hash covers the digest but not the name: the same model may move.
    """
    settings = json.dumps(asdict(job.sampling) | {"teacher": teacher.rpartition("@")[2]}, sort_keys=True)
    requests = {}
    for problem in job.problems:
        prompt = prompt_of(problem.messages)
        for sample in range(job.samples):
            seed = row_seed(job.sampling.seed, problem.id, sample)
            digest = hashlib.sha256(f"{settings}\n{prompt}\n{seed}".encode()).hexdigest()[:16]
            requests[problem.id, sample] = Request(
                problem_id=problem.id, sample=sample, prompt=prompt, seed=seed, hash=digest
            )
    return requests


def sample_traces(
    open_decoder: Callable[[], Decoder], chat_format: ChatFormat, job: Job, *, teacher: str
) -> list[Trace]:
    """Sample what the job's file does not hold yet, and return all traces: problem by problem, sample by sample.

    `open_decoder` is called only if a trace is missing; `teacher`: name@digest. Raises `InputError` if a prompt and the
    limit exceed the context, or if the file holds a trace of another model, prompt, setting or seed.
    """
    requests = plan(chat_format.prompt_ids, job, teacher)

    def draw(missing: list[Request[list[int]]], log: TraceLog) -> None:
        decoder = open_decoder()
        _check_room(requests.values(), job.sampling, decoder.max_length)
        missing.sort(key=lambda request: -len(request.prompt))  # similar lengths together: little padding
        for start in range(0, len(missing), job.batch_size):
            batch = missing[start : start + job.batch_size]
            for trace in _sample_batch(decoder, chat_format, batch, job.sampling, teacher):
                log.answered(trace)

    return collect(requests, draw, job)


def collect(
    requests: Mapping[tuple[str, int], Request[P]],
    draw: Callable[[list[Request[P]], TraceLog], None],
    job: Job,
) -> list[Trace]:
    """Let `draw` answer the requests that the job's file lacks, and return all traces in the order of the requests.

    `draw` hands each trace or failure to the log at once. A failed request has no trace. Raises `InputError` if the
    file holds a trace of another request, unless the job is shared.
    """
    with TraceLog(job, {key: request.hash for key, request in requests.items()}) as log:
        if missing := [request for key, request in requests.items() if key in log.missing]:
            draw(missing, log)
        log.end()
    return [log.traces[key] for key in requests if key in log.traces]


def _check_room(requests: Iterable[Request[list[int]]], sampling: Sampling, max_length: int) -> None:
    """Raise `InputError` if the longest prompt leaves no room for the limit.

    The decode loop stops a batch when its longest row fills the context; with room for all, no row cuts another short.
    """
    longest = max(requests, key=lambda request: len(request.prompt))
    if len(longest.prompt) + sampling.max_new_tokens > max_length:
        raise InputError(
            f"the longest prompt ({len(longest.prompt)} tokens, problem {longest.problem_id}) plus max_new_tokens "
            f"({sampling.max_new_tokens}) must be at most the model's context ({max_length}); lower max_new_tokens"
        )


def _sample_batch(
    decoder: Decoder, chat_format: ChatFormat, batch: Sequence[Request[list[int]]], sampling: Sampling, teacher: str
) -> Iterator[Trace]:
    """Yield the trace of each row as soon as the row ends."""
    prompts, seeds = [request.prompt for request in batch], [request.seed for request in batch]
    ids: list[list[int]] = [[] for _ in batch]
    for token in decode(decoder, prompts, sampling, chat_format.stop_ids, seeds):
        ids[token.row].append(token.id)
        if token.finish_reason:
            sampled, request = ids[token.row], batch[token.row]
            yield request.trace(
                read_text(chat_format.decode(sampled), opened=chat_format.opens_reasoning),
                token.finish_reason,
                teacher,
                prompt_tokens=len(request.prompt),
                reasoning_tokens=count_reasoning(chat_format, sampled),
                completion_tokens=len(sampled),
            )


def count_reasoning(chat_format: ChatFormat, ids: Sequence[int]) -> int:
    """Count the tokens that were sampled before the thought closed, its closing tag included."""
    text = TextReader(chat_format.tokenizer)
    parser = ReasoningParser(opened=chat_format.opens_reasoning)
    count = 0
    for id in ids:
        if id in chat_format.stop_ids:
            break
        was_closed = parser.closed
        for _ in parser.feed(text.read(id)):
            pass
        count += not (was_closed and parser.closed)
    return count
