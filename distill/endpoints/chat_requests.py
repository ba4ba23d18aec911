"""Requests to a chat completion server: each sends a question as messages and logs a trace or a failure.

The server applies its own chat template, so a question is sent as messages: POST {url}/chat/completions, one request
per sample. `distill.endpoints.messages` finds the thought in the response and decides whether it is whole.

Only a few requests are in flight at once. Transient failures (too many requests, server errors, lost connections,
timeouts) are retried after growing pauses. `distill.collecting.outcomes` decides what becomes of a request that still
fails. Redirects are not followed, so the key reaches no other server.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from httpx2 import ConnectError, ConnectTimeout, ProxyError, ReadTimeout, RequestError, Response, UnsupportedProtocol

from distill.collecting.job import Job, Request
from distill.collecting.outcomes import Cause, Refusal
from distill.collecting.trace_log import TraceLog
from distill.endpoints.messages import read_trace
from distill.endpoints.server_fields import ServerFields
from toolkit.generation.bounded_response import TIMEOUT_VARIABLE, TooLarge
from toolkit.generation.endpoint import ask_listing, chat_sender, excerpt, first_line, open_client, status
from toolkit.records import Message, Trace

MOST_IN_FLIGHT = 8
TRIES = 7
SILENT_TRIES = 2
"""Tries if a server sends nothing in time: each costs minutes, and perhaps an answer that was written meanwhile."""
FIRST_PAUSE_S = 0.5
"""Doubles with each try and adds up to half a minute."""
LONGEST_PAUSE_S = 60.0
"""A longer Retry-After is not obeyed."""
SEED_BITS = 31
"""llama.cpp accepts 32 bits, most other servers signed 64."""
Send = Callable[[bytes], Coroutine[Any, Any, Response]]
ChatRequest = Request[list[Message]]
NO_ACCESS = (401, 402, 403, 404, 405, 407)
"""Statuses that a wrong address, key or account causes, whatever is asked; a redirect counts as one too."""


@dataclass(frozen=True, kw_only=True)
class ChatRequests:
    """Sends the requests of one job to one model of a server."""

    url: str
    model: str
    teacher: str
    """The name that traces give the model: name@digest."""
    fields: ServerFields
    job: Job

    def ask(self, requests: list[ChatRequest], log: TraceLog) -> None:
        """Send all requests and log each answer or failure as soon as it arrives.

        At most `batch_size` requests, and never more than `MOST_IN_FLIGHT`, are in flight. Raises `InputError` as the
        log does.
        """
        if self.job.shared:
            ask_listing(self.url)
            requests.sort(key=lambda request: request.hash)  # spreads out questions that are refused alike
        try:
            asyncio.run(self._ask_all(requests, log))
        except ExceptionGroup as group:  # workers that failed together: the first one's error speaks for all
            raise group.exceptions[0] from group

    async def _ask_all(self, requests: list[ChatRequest], log: TraceLog) -> None:
        waiting = deque(requests)  # shared: each worker takes the next request

        async def work(send: Send) -> None:
            while waiting:
                request = waiting.popleft()
                try:
                    log.answered(await self._ask(request, send))
                except Refusal as refusal:
                    if log.failed(request, refusal):
                        waiting.append(request)

        async with open_client(self.url) as client, asyncio.TaskGroup() as group:
            for _ in range(min(self.job.batch_size, MOST_IN_FLIGHT)):
                group.create_task(work(chat_sender(client, self.url)))

    async def _ask(self, request: ChatRequest, send: Send) -> Trace:
        """Send one request and return its trace; raises `Refusal` if there is none."""
        sampling = self.job.sampling
        body = {
            "model": self.model,
            "messages": request.prompt,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed % 2**SEED_BITS,
            "stream": False,
        }
        response = await self._post(send, body)
        try:
            return read_trace(response.json(), request, self.teacher, sampling.max_new_tokens)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise Refusal(
                f"{self.url} sent no chat completion but {excerpt(response)}",
                reason="no chat completion",
                cause="request",
                said=excerpt(response),
            ) from error

    async def _post(self, send: Send, body: Mapping[str, Any]) -> Response:
        """Post a request until it is answered; raises `Refusal` if it is refused or has been tried often enough."""
        tries = 0
        while True:
            sent = self.fields.taken(body)
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
                if self.fields.refused(sent, response):
                    continue
                reason, trouble, cause = f"HTTP {response.status_code}", status(response), "server"
                if response.status_code not in (408, 429) and response.status_code < 500:
                    no_access = response.status_code in NO_ACCESS or 300 <= response.status_code < 400
                    message = f"{self.url} refused a chat completion by {self.model!r}: {trouble}"
                    if response.status_code in (401, 403):
                        message += "; the key is read from TOOLKIT_API_KEY"
                    raise Refusal(message, reason=reason, cause="access" if no_access else "request", said=trouble)
                with suppress(ValueError):  # dates, which chat servers do not send, are ignored
                    pause_s = max(pause_s, min(float(response.headers.get("Retry-After", "0")), LONGEST_PAUSE_S))
            tries += 1
            if tries >= most:
                message = (
                    f"{self.url} did not answer in {tries} tries; the last one ended with: {trouble}; when the server "
                    "is back, run the same command to resume"
                )
                raise Refusal(message, reason=reason, cause=cause, said=trouble)
            await asyncio.sleep(pause_s)
