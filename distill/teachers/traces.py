"""From problems to traces: each problem answered n times, in batches, into a file that survives `kill -9`.

    traces.jsonl    one line a finished sample, in the order they finish; written the moment a row ends

A sample's seed comes from its problem and its number, and its prompt and limits from itself alone, so what it says does
not depend on the rows beside it, on the batch size, or on how often the run was broken off (as far as the decoder's
own arithmetic gives a row the same logits in any batch: in bf16 a near tie may fall otherwise). Opening the file again
skips what it holds and samples the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from distill.teachers.outcomes import FAILED, Failure, Outcomes, Refusal
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat, ReasoningParser
from toolkit.formats.text_reader import TextReader
from toolkit.formats.thought_forms import read_text
from toolkit.generation.generate import Decoder, Sampling, decode
from toolkit.progress import Progress
from toolkit.records import AppendLog, FinishReason, Message, Problem, Trace, read_records
from toolkit.terminal import say

P = TypeVar("P", list[int], list[Message])


@dataclass(frozen=True, kw_only=True)
class Request(Generic[P]):
    """One sample to draw: everything that shapes it. A decoder is prompted by ids, an endpoint by messages."""

    problem_id: str
    sample: int
    prompt: P
    seed: int
    hash: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """Problems to be answered, how, and the file that keeps the traces."""

    problems: Sequence[Problem]
    sampling: Sampling
    samples: int
    batch_size: int
    """Rows at once, or requests; changes no trace."""
    path: Path
    label: str = "traces"
    """Stands before the progress."""
    shared: bool = False
    """The file keeps what other jobs asked too, and requests without an answer are recorded beside it; else the first
    one ends the job, and a trace of another job is an error."""
    retry_failed: bool = False
    """Whether recorded failures are asked again."""
    before: Path | None = None
    """The traces of this very job by an earlier version, which kept them in the run folder."""


Done = Callable[[Trace], None]
Failed = Callable[["Request[P]", Refusal], bool]
"""Takes a request that was not answered; whether it must be asked later on. Raises where the job ends by it."""


def row_seed(seed: int, problem_id: str, sample: int) -> int:
    """The seed of one sample of one problem, independent of all others."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{problem_id}:{sample}".encode()).digest()[:8])


def check_samples(samples: int, temperature: float) -> None:
    """Raises `InputError` where several samples are asked of a problem that would all be the same one."""
    if samples > 1 and temperature == 0.0:
        raise InputError(
            f"samples ({samples}) must be 1 where temperature is 0, since all would be equal; raise temperature"
        )


def plan(prompt_of: Callable[[list[Message]], P], job: Job, teacher: str) -> dict[tuple[str, int], Request[P]]:
    """All requests by (problem id, sample), problems in their order.

    `teacher`: name@digest. A request's hash is of what is asked, so of the digest alone: the same model may move.
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

    `open_decoder` is called where something is missing; `teacher` names the model and its digest: name@digest.
    Raises `InputError` where a prompt and the limit do not fit into the context, or where the file holds a trace of
    another model, prompt, setting or seed.
    """
    requests = plan(chat_format.prompt_ids, job, teacher)

    def draw(missing: list[Request[list[int]]], done: Done, _: Failed[list[int]]) -> None:
        decoder = open_decoder()
        _check_room(requests.values(), job.sampling, decoder.max_length)
        missing.sort(key=lambda request: -len(request.prompt))  # like lengths together: little padding
        for start in range(0, len(missing), job.batch_size):
            batch = missing[start : start + job.batch_size]
            for trace in _sample_batch(decoder, chat_format, batch, job.sampling, teacher):
                done(trace)

    return collect(requests, draw, job)


def collect(
    requests: Mapping[tuple[str, int], Request[P]],
    draw: Callable[[list[Request[P]], Done, Failed[P]], None],
    job: Job,
) -> list[Trace]:
    """Let `draw` answer the requests that the job's file does not hold yet, and return the traces, in their order.

    `draw` hands over each trace, or failure, as soon as it has it. A request that failed has no trace. Raises
    `InputError` where the file holds a trace of another request, unless it is shared.
    """
    with ExitStack() as stack:
        log = stack.enter_context(AppendLog(job.path))  # opening it mends a torn line, so it comes before reading
        traces = _held(requests, job)
        for trace in _from_before(requests, job):
            if (trace.problem_id, trace.sample) not in traces:
                log.append(trace)
                traces[trace.problem_id, trace.sample] = trace
        missing = [request for key, request in requests.items() if key not in traces]
        outcomes = None
        if job.shared:
            failures = stack.enter_context(AppendLog(job.path.with_name(FAILED)))
            outcomes = Outcomes(failures, proven=bool(traces))
            if not job.retry_failed:
                known = {failure.request_hash for failure in read_records(job.path.with_name(FAILED), Failure)}
                missing = [request for request in missing if request.hash not in known]
        if job.shared:
            failed_before = len(requests) - len(traces) - len(missing)
            unasked = f", {failed_before} failed before" if failed_before else ""
            asked = f"; {len(missing)} must be asked" if missing else ""
            say(f"{job.label}: {len(traces)} of {len(requests)} are in {job.path} already{unasked}{asked}")
        progress = stack.enter_context(Progress(job.label, len(requests), done=len(requests) - len(missing)))

        def done(trace: Trace) -> None:
            log.append(trace)
            traces[trace.problem_id, trace.sample] = trace
            if outcomes:
                outcomes.answered()
            progress.advance()

        def failed(request: Request[P], refusal: Refusal) -> bool:
            if not outcomes:
                raise InputError(f"{refusal}; problem {request.problem_id} was asked") from refusal
            again = outcomes.failed(_failure(request, refusal), refusal)
            progress.advance(0 if again else 1)
            return again

        if missing:
            draw(missing, done, failed)
        if outcomes:
            outcomes.end()
    return [traces[key] for key in requests if key in traces]


def _check_room(requests: Iterable[Request[list[int]]], sampling: Sampling, max_length: int) -> None:
    """The decode loop cuts a batch at its longest row's room; where all rows have room, none is cut by another."""
    longest = max(requests, key=lambda request: len(request.prompt))
    if len(longest.prompt) + sampling.max_new_tokens > max_length:
        raise InputError(
            f"the longest prompt ({len(longest.prompt)} tokens, problem {longest.problem_id}) plus max_new_tokens "
            f"({sampling.max_new_tokens}) must be at most the model's context ({max_length}); lower max_new_tokens"
        )


def _held(requests: Mapping[tuple[str, int], Request[P]], job: Job) -> dict[tuple[str, int], Trace]:
    """The traces of these requests that the file holds already."""
    held = {}
    for trace in read_records(job.path, Trace):
        key = (trace.problem_id, trace.sample)
        if key not in requests or (job.shared and trace.request_hash != requests[key].hash):
            continue
        if trace.request_hash != requests[key].hash:
            raise InputError(
                f"{job.path} holds a trace of another request ({trace.request_hash}, by {trace.teacher}) where problem "
                f"{trace.problem_id} sample {trace.sample} must be of this one ({requests[key].hash}); "
                "choose another folder"
            )
        held[key] = trace
    return held


def _from_before(requests: Mapping[tuple[str, int], Request[P]], job: Job) -> Iterator[Trace]:
    if job.before is None or not job.before.exists():
        return
    for trace in read_records(job.before, Trace, torn_end=True):
        if request := requests.get((trace.problem_id, trace.sample)):
            yield replace(trace, request_hash=request.hash)


def _failure(request: Request[P], refusal: Refusal) -> Failure:
    return Failure(
        problem_id=request.problem_id,
        sample=request.sample,
        reason=refusal.reason,
        message=refusal.said,
        request_hash=request.hash,
    )


def _sample_batch(
    decoder: Decoder, chat_format: ChatFormat, batch: Sequence[Request[list[int]]], sampling: Sampling, teacher: str
) -> Iterator[Trace]:
    """Yield each row as soon as it ends."""
    prompts, seeds = [request.prompt for request in batch], [request.seed for request in batch]
    ids: list[list[int]] = [[] for _ in batch]
    for token in decode(decoder, prompts, sampling, chat_format.stop_ids, seeds):
        ids[token.row].append(token.id)
        if token.finish_reason:
            yield _trace(chat_format, batch[token.row], ids[token.row], token.finish_reason, teacher)


def _trace(
    chat_format: ChatFormat, request: Request[list[int]], ids: Sequence[int], finish_reason: FinishReason, teacher: str
) -> Trace:
    completion = read_text(chat_format.decode(ids), opened=chat_format.opens_reasoning)
    return Trace(
        problem_id=request.problem_id,
        sample=request.sample,
        reasoning=completion.reasoning,
        answer=completion.answer,
        finish_reason=finish_reason,
        closed=completion.closed,
        prompt_tokens=len(request.prompt),
        reasoning_tokens=count_reasoning(chat_format, ids),
        completion_tokens=len(ids),
        teacher=teacher,
        request_hash=request.hash,
    )


def count_reasoning(chat_format: ChatFormat, ids: Sequence[int]) -> int:
    """How many tokens were sampled while the thinking was open, its closing tag included."""
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
