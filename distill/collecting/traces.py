"""Turns problems into traces: answers each problem n times, many at once, into a file that survives `kill -9`.

A sample's seed, prompt and limits come from its problem and its number alone. So its text does not depend on the other
rows of a batch, on the batch size, or on how often the run was interrupted (as far as the decoder's arithmetic gives a
row the same logits in any batch: in bf16 a near tie may break differently). A resumed run samples only what the file
lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from distill.collecting.job import Job, P, Plan, Request
from distill.collecting.trace_log import Collected, OwnFile, TraceLog
from distill.local.continuous import complete_each
from distill.local.room import rows_that_fit
from distill.store.sharded_store import HeldTraces, TraceStore
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat, ReasoningParser
from toolkit.formats.text_reader import TextReader
from toolkit.formats.thought_forms import read_text
from toolkit.generation.generate import Decoder, Sampled, Sampling
from toolkit.records import Trace

WINDOW_BATCHES = 64
"""Requests of so many batches are sorted by length together, and claimed from other processes meanwhile."""


def sample_traces(
    open_decoder: Callable[[], Decoder], chat_format: ChatFormat, job: Job, *, teacher: str
) -> Sequence[Trace]:
    """Sample what the job's file or store lacks, and return all traces: problem by problem, sample by sample.

    `open_decoder` is called only if a trace is missing; `teacher`: name@digest. Raises `InputError` if a prompt and the
    limit exceed the context, or if the file holds a trace of another model, prompt, setting or seed.
    """
    plan = plan_of(chat_format, job, teacher)

    def draw(missing: Iterator[Request[list[int]]], log: TraceLog) -> None:
        decoder = open_decoder()
        _check_room(plan, job.sampling, decoder.max_length)
        rows = rows_that_fit(decoder, job.batch_size, plan.longest[0] + job.sampling.max_new_tokens)
        waiting = _longest_first(missing, WINDOW_BATCHES * job.batch_size if job.shared else None)
        for request, sampled in complete_each(decoder, waiting, job.sampling, chat_format.stop_ids, rows=rows):
            log.answered(_trace(request, sampled, chat_format, teacher))

    return collect(plan, draw, job)


def plan_of(chat_format: ChatFormat, job: Job, teacher: str) -> Plan[list[int]]:
    """Return the requests of a job to a model folder."""
    return Plan(chat_format.prompt_ids, job, teacher)


def collect(plan: Plan[P], draw: Callable[[Iterator[Request[P]], TraceLog], None], job: Job) -> Sequence[Trace]:
    """Let `draw` answer the requests that the job's file or store lacks, and return all traces in the plan's order.

    `draw` takes requests when it can send them, and hands each trace or failure to the log at once. A request that it
    leaves is asked by a later run. With a store, `draw` may be called several times: again for requests that other
    processes have left; and the traces that are returned are read from the store whenever they are looked at. A failed
    request has no trace. Raises `InputError` if the file holds a trace of another request, unless the job is shared.
    """
    if job.shared:
        store = TraceStore(job.path)
        with Collected(job, plan, store) as collected:
            for requests in collected.rounds():
                draw(requests, collected)
        return HeldTraces(store, plan.chosen)
    with OwnFile(job, plan) as file:
        if file.missing:
            draw(map(plan.request, file.missing), file)
    return [trace for _, trace in sorted(file.traces.items())]


def _check_room(plan: Plan[list[int]], sampling: Sampling, max_length: int) -> None:
    """Raise `InputError` if the longest prompt leaves no room for the limit.

    Then no row ends because the context is full, and the limit alone decides how long an answer may be.
    """
    longest, problem_id = plan.longest
    if longest + sampling.max_new_tokens > max_length:
        raise InputError(
            f"the longest prompt ({longest} tokens, problem {problem_id}) plus max_new_tokens "
            f"({sampling.max_new_tokens}) must be at most the model's context ({max_length}); lower max_new_tokens"
        )


def _longest_first(missing: Iterator[Request[list[int]]], window: int | None) -> Iterator[Request[list[int]]]:
    """Yield requests by the lengths of their prompts within each window, the longest first: prompts that are read
    together need little padding, and the cache is as wide as it gets at once."""
    while requests := list(islice(missing, window)):
        yield from sorted(requests, key=lambda request: -len(request.prompt))


def _trace(request: Request[list[int]], sampled: Sampled, chat_format: ChatFormat, teacher: str) -> Trace:
    return request.trace(
        read_text(chat_format.decode(sampled.ids), opened=chat_format.opens_reasoning),
        sampled.finish_reason,
        teacher,
        prompt_tokens=len(request.prompt),
        reasoning_tokens=count_reasoning(chat_format, sampled.ids),
        completion_tokens=len(sampled.ids),
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
