"""A model behind an OpenAI-compatible server: POST {url}/chat/completions, one request a sample.

The server renders its own template, so a question goes there as messages. Where in a message the thought stands, and
whether it is whole, is read by `distill.teachers.messages`. A thought that ran into the limit where a server sends it
as content without any tag can't be told from an answer that did; neither is whole.

The server is asked for few samples at once. What may pass (too many requests, a server's error, a cut connection, a
timeout) is tried again after growing pauses. What becomes of a request that fails all the same is for
`distill.teachers.outcomes` to say. Redirects are not followed, so the key reaches nobody else.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from httpx2 import ConnectError, ConnectTimeout, ProxyError, ReadTimeout, RequestError, Response, UnsupportedProtocol

from distill.teachers.messages import read_message
from distill.teachers.outcomes import Cause, Refusal
from distill.teachers.server_fields import ServerFields
from distill.teachers.traces import Done, Failed, Job, Request, collect, plan
from toolkit.errors import InputError
from toolkit.formats.chat_format import Completion
from toolkit.generation.bounded_response import TIMEOUT_VARIABLE, TooLarge
from toolkit.generation.endpoint import (
    ask_listing,
    chat_sender,
    count_of,
    excerpt,
    first_line,
    locate,
    open_client,
    status,
)
from toolkit.records import Message, Problem, Trace

MOST_IN_FLIGHT = 8
TRIES = 7
SILENT_TRIES = 2
"""Of a server that sends nothing in time: each costs minutes, and what it may have written meanwhile."""
FIRST_PAUSE_S = 0.5
"""Doubles with each try: half a minute in all."""
LONGEST_PAUSE_S = 60.0
"""Most that a server's Retry-After is obeyed."""
SEED_BITS = 31
"""llama.cpp takes 32 bits, most others a signed 64."""
Send = Callable[[bytes], Coroutine[Any, Any, Response]]
NO_ACCESS = (401, 402, 403, 404, 405, 407)
"""What a wrong address, key or account gets, whatever it asks; so does a redirect."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One model of one server."""

    url: str
    model: str
    weight_bytes: int = 0
    """They are elsewhere."""

    @property
    def name(self) -> str:
        return f"{self.url}#{self.model}"

    @cached_property
    def digest(self) -> str:
        """Of the address: what is behind it can't be known."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:16]

    @cached_property
    def fields(self) -> ServerFields:
        """What the server takes of a request, as far as it is known."""
        return ServerFields(self.url)

    @property
    def left_out(self) -> list[str]:
        """Fields that were asked for and that the server has refused."""
        return self.fields.left_out

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def load(self) -> None:
        """Nothing is here to load; raises `Unreachable` where nobody answers."""
        ask_listing(self.url)

    def answer(self, job: Job) -> list[Trace]:
        """As `distill.teachers.traces.sample_traces`; of `batch_size` requests at most `MOST_IN_FLIGHT` are open at
        once.

        Nobody is asked before something is missing. Raises `InputError` where the server is away, refuses, or answers
        something else than a chat completion; where the job is shared, only if that is no single request's failure.
        """
        sampling = job.sampling
        for name, value, default in (
            ("top_k", sampling.top_k, 0),
            ("min_p", sampling.min_p, 0.0),
            ("repetition_penalty", sampling.repetition_penalty, 1.0),
        ):
            if value != default:
                raise InputError(f"{name} ({value}) must be {default} for {self.url}: an endpoint knows no {name}")

        def draw(missing: list[Request[list[Message]]], done: Done, failed: Failed[list[Message]]) -> None:
            if job.shared:
                self.load()
                missing.sort(key=lambda request: request.hash)  # so that what is refused, as long ones, is spread
            try:
                asyncio.run(self._draw(missing, done, failed, job))
            except ExceptionGroup as group:  # of the workers that failed together, the first one's
                raise group.exceptions[0] from group

        return collect(plan(list, job, f"{self.name}@{self.digest}"), draw, job)

    def tokens_per_s(self, problems: Sequence[Problem]) -> None:
        """Another machine's speed, its queue and the network's belong into no ledger of this one."""

    async def _draw(
        self,
        requests: Sequence[Request[list[Message]]],
        done: Done,
        failed: Failed[list[Message]],
        job: Job,
    ) -> None:
        waiting = deque(requests)  # the workers share it: each takes the next one

        async def work(send: Send) -> None:
            while waiting:
                request = waiting.popleft()
                body = {
                    "model": self.model,
                    "messages": request.prompt,
                    "max_tokens": job.sampling.max_new_tokens,
                    "temperature": job.sampling.temperature,
                    "top_p": job.sampling.top_p,
                    "seed": request.seed % 2**SEED_BITS,
                    "stream": False,
                }
                try:
                    trace = self._trace(request, await self._post(send, self.fields, body), job.sampling.max_new_tokens)
                except Refusal as refusal:
                    if failed(request, refusal):
                        waiting.append(request)
                else:
                    done(trace)

        async with open_client(self.url) as client, asyncio.TaskGroup() as group:
            for _ in range(min(job.batch_size, MOST_IN_FLIGHT)):
                group.create_task(work(chat_sender(client, self.url)))

    async def _post(self, send: Send, fields: ServerFields, body: Mapping[str, Any]) -> Response:
        """The server's answer, after as many tries as it takes and is worth."""
        tries = 0
        while True:
            sent = fields.taken(body)
            pause_s, most = FIRST_PAUSE_S * 2**tries, TRIES
            try:
                response = await send(json.dumps(sent).encode())
            except TooLarge as error:
                raise Refusal(str(error), reason="answer too large", cause="request", said=str(error)) from error
            except RequestError as error:
                away = isinstance(error, ConnectError | ConnectTimeout | ProxyError | UnsupportedProtocol)
                reason, trouble = "no connection" if away else "connection lost", first_line(error)
                cause: Cause = "connection" if away else "server"
                if isinstance(error, ReadTimeout):
                    reason, most = "no answer in time", SILENT_TRIES
                    trouble += f" (more time: {TIMEOUT_VARIABLE})"
            else:
                if response.status_code == 200:
                    return response
                if fields.refused(sent, response):
                    continue
                reason, trouble, cause = f"HTTP {response.status_code}", status(response), "server"
                if response.status_code not in (408, 429) and response.status_code < 500:
                    no_access = response.status_code in NO_ACCESS or 300 <= response.status_code < 400
                    message = f"{self.url} must accept a chat completion of {self.model!r}; it says {trouble}"
                    if response.status_code in (401, 403):
                        message += "; the key is taken from TOOLKIT_API_KEY"
                    raise Refusal(message, reason=reason, cause="access" if no_access else "request", said=trouble)
                with suppress(ValueError):  # a date, which nobody sends here
                    pause_s = max(pause_s, min(float(response.headers.get("Retry-After", "0")), LONGEST_PAUSE_S))
            tries += 1
            if tries >= most:
                message = (
                    f"{self.url} must answer; {tries} tries ended with: {trouble}; "
                    "when it is back, the same command goes on"
                )
                raise Refusal(message, reason=reason, cause=cause, said=trouble)
            await asyncio.sleep(pause_s)

    def _trace(self, request: Request[list[Message]], response: Response, max_new_tokens: int) -> Trace:
        try:
            answer = response.json()
            choice = answer["choices"][0]
            usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
            tokens = count_of(usage.get("completion_tokens"))
            reached_limit = tokens is not None and tokens >= max_new_tokens
            read = read_message(choice["message"], choice.get("finish_reason"), reached_limit=reached_limit)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise Refusal(
                f"{self.url} must answer with a chat completion; it says {excerpt(response)}",
                reason="no chat completion",
                cause="request",
                said=excerpt(response),
            ) from error
        details = usage.get("completion_tokens_details")
        thought = count_of(details.get("reasoning_tokens")) if isinstance(details, dict) else None
        return Trace(
            problem_id=request.problem_id,
            sample=request.sample,
            reasoning=read.reasoning,
            answer=read.answer,
            finish_reason=read.finish_reason,
            closed=read.closed,
            prompt_tokens=count_of(usage.get("prompt_tokens")),
            reasoning_tokens=thought or (None if tokens is None else _share_of_tokens(read, tokens)),
            completion_tokens=tokens,
            teacher=f"{self.name}@{self.digest}",
            request_hash=request.hash,
        )


def connect(argument: str) -> Endpoint:
    """The endpoint of a model argument; raises `InputError` as `toolkit.generation.endpoint.locate` does."""
    place = locate(argument)
    return Endpoint(url=place.url, model=place.model)


def _share_of_tokens(completion: Completion, tokens: int) -> int:
    """An estimate by characters, for servers that don't count the thought's tokens apart."""
    characters = len(completion.reasoning) + len(completion.answer)
    return round(tokens * len(completion.reasoning) / characters) if characters else 0
