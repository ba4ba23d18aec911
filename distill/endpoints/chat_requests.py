"""Requests to chat completion servers: each sends a question as messages and logs a trace or a failure.

A server applies its own chat template, so a question is sent as messages: POST {url}/chat/completions, one request per
sample. `distill.endpoints.servers.pool` chooses the server, `answers` reads the answer, and `messages` finds the
thought in it and decides whether it is whole.

Transient failures (too many requests, server errors, lost connections, silence) are retried after growing pauses, by
another server if there is one. `distill.collecting.outcomes` decides what becomes of a request that still fails.
Redirects are not followed, so the key reaches no other server.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from httpx2 import ConnectError, ConnectTimeout, HTTPError, ProxyError, ReadTimeout, Response, UnsupportedProtocol

from distill.collecting.job import Job, Request
from distill.collecting.outcomes import Cause, Refusal
from distill.collecting.trace_log import TraceLog
from distill.endpoints.answers import AnswerReader, Patience, StreamedAnswer
from distill.endpoints.budget import Budget, Reservation
from distill.endpoints.messages import read_trace
from distill.endpoints.request_body import request_body
from distill.endpoints.servers.pool import ServerPool
from distill.endpoints.servers.server import LONGEST_PAUSE_S, Server, retry_after_s
from distill.endpoints.servers.server_fields import ServerFields
from distill.endpoints.token_logprobs import read_logprobs
from distill.store.logprobs import TokenLogprobs
from toolkit.generation.bounded_response import TIMEOUT_VARIABLE, TooLarge
from toolkit.generation.endpoint import first_line, open_client, printable, status
from toolkit.records import Message, Trace

TRIES = 7
MOST_REFUSED = 40
"""How often a request may be refused beside its tries by a server that has too many, but answers others meanwhile."""
SILENT_TRIES = 2
"""Tries if an answer does not begin in time: each costs minutes, and perhaps an answer that was written meanwhile."""
FIRST_PAUSE_S = 0.5
"""Doubles with each try and adds up to half a minute."""
NO_ANSWER = "no answer in time"
TOO_MANY = (429, 503, 529)
"""Statuses of a server that has too many requests; the last one is Anthropic's."""
PASSING = (408, 409, 425, 429)
"""Statuses below 500 that pass."""
ChatRequest = Request[list[Message]]
NO_ACCESS = (401, 402, 403, 404, 405, 407)
"""Statuses that a wrong address, key or account causes, whatever is asked; a redirect counts as one too."""
Answered = tuple[Trace, list[TokenLogprobs] | None]
"""A trace, and the log-probabilities of its tokens if they were asked for."""
NOT_AN_ANSWER = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


@dataclass(kw_only=True, eq=False)
class _Failed(Exception):
    """A try that failed."""

    reason: str
    trouble: str
    cause: Cause
    passes: bool = True
    """Whether another try may succeed."""
    too_many: bool = False
    """Whether the server has too many requests."""
    pause_s: float = 0.0
    """The pause that the server asks for."""


class ChatRequests:
    """Sends the requests of one job to the servers of a teacher."""

    def __init__(
        self,
        servers: list[Server],
        job: Job,
        *,
        digest: str,
        budget: Budget,
        patience: Patience,
        is_streamed: bool = True,
    ) -> None:
        """`digest`: the teacher's; a trace gives the server that answered, and this."""
        self._servers, self._job, self._digest, self._budget = servers, job, digest, budget
        self._patience, self._is_streamed = patience, is_streamed
        self._again: deque[ChatRequest] = deque()
        """Requests that reached no server, to be sent again."""
        self._requests: Iterator[ChatRequest] = iter(())
        self._readers: dict[str, AnswerReader] = {}

    def ask(self, requests: Iterator[ChatRequest], log: TraceLog) -> None:
        """Send all requests, or as many as the budget allows, and log each answer or failure as soon as it arrives.

        A request is taken when it can be sent. Raises `InputError` as the log does.
        """
        self._requests = requests
        try:
            asyncio.run(self._ask_all(log))
        except ExceptionGroup as group:  # workers that failed together: the first one's error speaks for all
            raise group.exceptions[0] from group

    async def _ask_all(self, log: TraceLog) -> None:
        pool = ServerPool(self._servers, lambda: log.left)
        async with AsyncExitStack() as clients, asyncio.TaskGroup() as group:
            for server in self._servers:
                url, key = server.settings.url, server.settings.key
                client = await clients.enter_async_context(open_client(url, connections=server.most, key=key))
                self._readers[server.settings.name] = AnswerReader(client, url, self._patience)
            for _ in range(min(pool.most, log.left)):
                group.create_task(self._work(pool, log))

    async def _work(self, pool: ServerPool, log: TraceLog) -> None:
        """Send one request after the other."""
        while not self._budget.stopped_by:
            server = await pool.acquire()
            if server is None:
                return
            request = self._next()
            if request is None:
                pool.release(server)
                pool.dismiss()
                return
            try:
                answered = await self._ask(request, server, pool)
            except Refusal as refusal:
                if log.failed(request, refusal):
                    self._again.append(request)
            else:
                if answered is None:
                    return
                log.answered(*answered)

    def _next(self) -> ChatRequest | None:
        return self._again.popleft() if self._again else next(self._requests, None)

    async def _reserve(self, server: Server, request: ChatRequest) -> Reservation | None:
        if not self._budget.is_limited:
            return _NOTHING
        return await self._budget.reserve(server.settings, request.prompt, self._job.sampling.max_new_tokens)

    async def _ask(self, request: ChatRequest, server: Server, pool: ServerPool) -> Answered | None:
        """Send one request until it is answered; None if a limit is reached before. Each try is reserved for itself,
        since a broken answer is paid for as well.

        Raises `Refusal` if the request is refused or has been tried often enough.
        """
        tries = refused = 0
        while True:
            reserved = await self._reserve(server, request)
            if reserved is None:
                pool.release(server)
                return None
            epoch, answers = server.limit.epoch, pool.answers
            try:
                answered = await self._try(request, server, epoch, pool)
            except _Failed as error:
                failed = error
            else:
                pool.release(server)
                return answered
            finally:
                self._budget.settle(reserved)
            others = pool.others(server)
            if failed.too_many and pool.answers > answers and refused < MOST_REFUSED:
                refused += 1  # it is only busy: it answered others meanwhile
            else:
                tries += 1
            if failed.cause == "access" and others:
                server.close(failed.trouble)
            elif not failed.passes or tries >= (SILENT_TRIES if failed.reason == NO_ANSWER else TRIES):
                pool.release(server)
                raise self._refusal(server, failed, tries) from failed
            else:
                _note(server, failed, epoch, others=others)
            server = await pool.pause(server, FIRST_PAUSE_S * 2 ** max(0, tries - 1))

    async def _try(self, request: ChatRequest, server: Server, epoch: int, pool: ServerPool) -> Answered:
        """Send one request once, or again at once where only a field was refused; raises `_Failed`."""
        sampling, begun = self._job.sampling, time.monotonic()
        expected = server.tokens if server.answers else sampling.max_new_tokens
        server.pace.sent(expected, server.now())
        body = request_body(server.settings.model, request, sampling, self._job.asking, is_streamed=self._is_streamed)
        reader = self._readers[server.settings.name]

        def began(waited_s: float) -> None:
            server.limit.began(waited_s, epoch)
            pool.hand_out()  # it may take more now

        while True:
            sent, pieces = server.fields.taken(body), StreamedAnswer()
            try:
                answer = await reader.post(sent, pieces, began)
            except (TooLarge, HTTPError, *NOT_AN_ANSWER) as error:
                self._budget.take_broken(server.settings, request.prompt, pieces.count, pieces.size_bytes)
                raise _lost(error, has_begun=pieces.count > 0) from error
            if not isinstance(answer, Response) or answer.status_code == 200:
                break
            if not server.fields.refused(sent, answer):
                raise _refused(answer)
        trace, logprobs = self._read(answer, request, server)
        tokens = None if trace.completion_tokens is None else trace.completion_tokens + (trace.prompt_tokens or 0)
        server.answered(tokens, time.monotonic() - begun)
        server.pace.correct(expected, expected if tokens is None else tokens)
        self._budget.take_answer(server.settings, trace, request.prompt, sampling.max_new_tokens)
        return trace, logprobs

    def _read(self, answer: Response | dict[str, Any], request: ChatRequest, server: Server) -> Answered:
        teacher = f"{server.settings.name}@{self._digest}"
        try:
            completion = answer.json() if isinstance(answer, Response) else answer
            return read_answer(completion, request, teacher, self._job, server.fields)
        except NOT_AN_ANSWER as error:
            said = answer.text if isinstance(answer, Response) else json.dumps(answer, ensure_ascii=False)
            raise _no_completion(printable(said)) from error

    def _refusal(self, server: Server, failed: _Failed, tries: int) -> Refusal:
        url, model = server.settings.url, server.settings.model
        if failed.passes:
            message = (
                f"{url} did not answer in {tries} tries; the last one ended with: {failed.trouble}; when the server "
                "is back, run the same command to resume"
            )
        elif failed.reason == "no chat completion":
            message = f"{url} sent no chat completion but {failed.trouble}; check that it is a chat server's /v1"
        elif failed.reason == "answer too large":
            message = failed.trouble
        else:
            message = f"{url} refused a chat completion by {model!r}: {failed.trouble}"
            if failed.reason in ("HTTP 401", "HTTP 403"):
                message += f"; the key is read from {server.settings.key}"
            elif failed.reason.startswith("HTTP 3"):
                message += "; redirects are not followed: give the address that it leads to"
            elif failed.reason == "HTTP 404":
                message += "; check the address, or name another model after #"
        return Refusal(message, reason=failed.reason, cause=failed.cause, said=failed.trouble)


def read_answer(
    completion: Mapping[str, Any], request: ChatRequest, teacher: str, job: Job, fields: ServerFields
) -> Answered:
    """Read a chat completion; `teacher`: name@digest, `fields`: its server's. Raises one of `NOT_AN_ANSWER` if it is
    none."""
    trace = read_trace(completion, request, teacher, job.sampling.max_new_tokens)
    if not job.asking.top_logprobs:
        return trace, None
    logprobs = read_logprobs(completion)
    if not logprobs and (trace.answer or trace.reasoning):
        fields.lack_logprobs()
    return trace, logprobs


_NOTHING = Reservation(tokens=0.0, cost=0.0)


def _note(server: Server, failed: _Failed, epoch: int, *, others: bool) -> None:
    """Let a server have fewer requests, or none for a while."""
    if failed.too_many:
        server.limit.refused(epoch)
        server.pause(failed.pause_s)
    else:
        server.limit.failed(epoch)
    if not (failed.too_many and server.answers):
        server.failed(failed.trouble, others=others)


def _lost(error: Exception, *, has_begun: bool) -> _Failed:
    """Describe an answer that did not come, or not to its end."""
    if isinstance(error, TooLarge):
        return _Failed(reason="answer too large", trouble=str(error), cause="request", passes=False)
    if not isinstance(error, HTTPError):
        return _no_completion(printable(str(error)))
    if isinstance(error, ConnectError | ConnectTimeout | ProxyError | UnsupportedProtocol):
        return _Failed(reason="no connection", trouble=first_line(error), cause="connection")
    if isinstance(error, ReadTimeout) and has_begun:
        return _Failed(reason="stalled", trouble="the server stopped within an answer", cause="server")
    if isinstance(error, ReadTimeout):
        trouble = f"{first_line(error)} (more time: {TIMEOUT_VARIABLE})"
        return _Failed(reason=NO_ANSWER, trouble=trouble, cause="server")
    return _Failed(reason="connection lost", trouble=first_line(error), cause="server")


def _refused(response: Response) -> _Failed:
    """Describe a status that is no success."""
    code = response.status_code
    reason, trouble = f"HTTP {code}", status(response)
    if code in PASSING or code >= 500:
        pause_s = min(retry_after_s(response.headers), LONGEST_PAUSE_S)
        return _Failed(reason=reason, trouble=trouble, cause="server", too_many=code in TOO_MANY, pause_s=pause_s)
    if location := response.headers.get("Location"):
        trouble += f" to {printable(location)}"
    no_access = code in NO_ACCESS or 300 <= code < 400
    return _Failed(reason=reason, trouble=trouble, cause="access" if no_access else "request", passes=False)


def _no_completion(said: str) -> _Failed:
    return _Failed(reason="no chat completion", trouble=said, cause="request", passes=False)
