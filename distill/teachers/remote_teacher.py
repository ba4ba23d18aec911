"""A model behind an OpenAI-compatible server: POST {url}/chat/completions, one request a sample.

The server renders its own template, so a question goes there as messages. Where in a message the thought stands, and
whether it is whole, is read by `distill.teachers.messages`. A thought that ran into the limit where a server sends it as
content without any tag can't be told from an answer that did; neither is whole.

The server is asked for few samples at once. What may pass (too many requests, a server's error, a cut connection, a
timeout) is tried again after growing pauses; everything else ends the run with one line, and the same command goes on
where it stopped. Redirects are not followed, so the key reaches nobody else.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from httpx2 import AsyncClient, RequestError, Response

from distill.teachers.messages import read_message
from distill.teachers.traces import Request, collect, plan
from toolkit.chat_format import Completion
from toolkit.endpoint import excerpt, first_line, locate, open_client, status
from toolkit.errors import InputError
from toolkit.generate import Sampling
from toolkit.records import Message, Problem, Trace

MOST_IN_FLIGHT = 8
TRIES = 7
FIRST_PAUSE_S = 0.5
"""Doubles with each try: half a minute in all."""
LONGEST_PAUSE_S = 60.0
"""Most that a server's Retry-After is obeyed."""
SEED_BITS = 31
"""llama.cpp takes 32 bits, most others a signed 64."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One model of one server."""

    url: str
    model: str
    first_pause_s: float = FIRST_PAUSE_S
    weight_bytes: int = 0
    """They are elsewhere."""

    @property
    def name(self) -> str:
        return f"{self.url}#{self.model}"

    @property
    def digest(self) -> str:
        """Of the address: what is behind it can't be known."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:16]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def answer(
        self,
        problems: Sequence[Problem],
        sampling: Sampling,
        *,
        samples: int,
        batch_size: int,
        path: Path,
        teacher: str,
        label: str = "traces",
    ) -> list[Trace]:
        """As `distill.teachers.traces.sample_traces`; of `batch_size` requests at most `MOST_IN_FLIGHT` are open at once.

        Raises `InputError` where the server is away, refuses, or answers something else than a chat completion.
        """
        for name, value, default in (
            ("top_k", sampling.top_k, 0),
            ("min_p", sampling.min_p, 0.0),
            ("repetition_penalty", sampling.repetition_penalty, 1.0),
        ):
            if value != default:
                raise InputError(f"{name} ({value}) must be {default} for {self.url}: an endpoint knows no {name}")
        requests = plan(list, problems, sampling, samples=samples, teacher=teacher)
        in_flight = min(batch_size, MOST_IN_FLIGHT)

        def draw(missing: list[Request[list[Message]]], done: Callable[[Trace], None]) -> None:
            try:
                asyncio.run(self._draw(missing, done, sampling, teacher, in_flight))
            except ExceptionGroup as group:  # of the workers that failed together, the first one's
                raise group.exceptions[0] from group

        return collect(requests, draw, path, label)

    def tokens_per_s(self, problems: Sequence[Problem]) -> None:
        """Another machine's speed, its queue and the network's belong into no ledger of this one."""

    async def _draw(
        self,
        requests: Sequence[Request[list[Message]]],
        done: Callable[[Trace], None],
        sampling: Sampling,
        teacher: str,
        in_flight: int,
    ) -> None:
        waiting = iter(requests)  # the workers share it: each takes the next one

        async def work(client: AsyncClient) -> None:
            for request in waiting:
                body = {
                    "model": self.model,
                    "messages": request.prompt,
                    "max_tokens": sampling.max_new_tokens,
                    "temperature": sampling.temperature,
                    "top_p": sampling.top_p,
                    "seed": request.seed % 2**SEED_BITS,
                    "stream": False,
                }
                done(self._trace(request, await self._post(client, body), sampling, teacher))

        async with (
            open_client(self.url) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(in_flight):
                group.create_task(work(client))

    async def _post(self, client: AsyncClient, body: dict[str, Any]) -> Response:
        """The server's answer, after as many tries as it takes and is worth."""
        trouble = ""
        for n in range(TRIES):
            pause_s = self.first_pause_s * 2**n
            try:
                response = await client.post("chat/completions", json=body)
            except RequestError as error:
                trouble = first_line(error)
            else:
                if response.status_code not in (408, 429) and response.status_code < 500:
                    return response
                trouble = status(response)
                with suppress(ValueError):  # a date, which nobody sends here
                    pause_s = max(pause_s, min(float(response.headers.get("Retry-After", "0")), LONGEST_PAUSE_S))
            if n + 1 < TRIES:
                await asyncio.sleep(pause_s)
        raise InputError(
            f"{self.url} must answer; {TRIES} tries ended with: {trouble}; when it is back, the same command goes on"
        )

    def _trace(self, request: Request[list[Message]], response: Response, sampling: Sampling, teacher: str) -> Trace:
        if response.status_code != 200:
            raise InputError(f"{self.url} must accept a chat completion of {self.model!r}; it says {status(response)}")
        try:
            answer = response.json()
            choice, usage = answer["choices"][0], answer["usage"]
            tokens, prompt_tokens = int(usage["completion_tokens"]), int(usage["prompt_tokens"])
            reached_limit = tokens >= sampling.max_new_tokens
            read = read_message(choice["message"], choice.get("finish_reason"), reached_limit=reached_limit)
            thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.url} must answer with a chat completion and its usage; it says {excerpt(response)}"
            ) from error
        return Trace(
            problem_id=request.problem_id,
            sample=request.sample,
            reasoning=read.reasoning,
            answer=read.answer,
            finish_reason=read.finish_reason,
            closed=read.closed,
            prompt_tokens=prompt_tokens,
            reasoning_tokens=int(thought) if thought else _share_of_tokens(read, tokens),
            completion_tokens=tokens,
            teacher=teacher,
            request_hash=request.hash,
        )


def connect(argument: str) -> Endpoint:
    """The endpoint of a model argument; raises `InputError` as `toolkit.endpoint.locate` does."""
    place = locate(argument)
    return Endpoint(url=place.url, model=place.model)


def _share_of_tokens(completion: Completion, tokens: int) -> int:
    """An estimate by characters, for servers that don't count the thought's tokens apart."""
    characters = len(completion.reasoning) + len(completion.answer)
    return round(tokens * len(completion.reasoning) / characters) if characters else 0
