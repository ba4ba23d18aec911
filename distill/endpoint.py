"""A model behind an OpenAI-compatible server: POST {url}/chat/completions, one request a sample.

    http://host:8000/v1            the only model that {url}/models lists
    http://host:8000/v1#name       that one of several

The server renders its own template, so a question goes there as text. What the model thought comes back in a field of
its own (`reasoning_content` from DeepSeek and llama.cpp, `reasoning` from vLLM, `thinking` from Ollama) or inside the
content's tags, the first of which R1 leaves out. A thought that ran into the limit where a server sends it as content
without any tag can't be told from an answer.

The server is asked for few samples at once. What may pass (too many requests, a server's error, a cut connection, a
timeout) is tried again after growing pauses; everything else ends the run with one line, and the same command goes on
where it stopped. Redirects are not followed, so the key reaches nobody else.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from httpx2 import URL, AsyncClient, HTTPError, InvalidURL, RequestError, Response, Timeout, get

from distill.traces import Request, collect, plan
from toolkit.chat_format import CLOSE, Completion, split_completion
from toolkit.errors import InputError
from toolkit.generate import Sampling
from toolkit.records import Problem, Trace

KEY_VARIABLE = "TOOLKIT_API_KEY"
"""Environment variable whose value is sent as a bearer token."""
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
MOST_IN_FLIGHT = 8
CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 600.0
"""A slow server that works through a queue sends nothing for long."""
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
        """As `distill.traces.sample_traces`; of `batch_size` requests at most `MOST_IN_FLIGHT` are open at once.

        Raises `InputError` where the server is away, refuses, or answers something else than a chat completion.
        """
        for name, value, default in (
            ("top_k", sampling.top_k, 0),
            ("min_p", sampling.min_p, 0.0),
            ("repetition_penalty", sampling.repetition_penalty, 1.0),
        ):
            if value != default:
                raise InputError(f"{name} ({value}) must be {default} for {self.url}: an endpoint knows no {name}")
        requests = plan(str, problems, sampling, samples=samples, teacher=teacher)
        in_flight = min(batch_size, MOST_IN_FLIGHT)

        def draw(missing: list[Request[str]], done: Callable[[Trace], None]) -> None:
            try:
                asyncio.run(self._draw(missing, done, sampling, teacher, in_flight))
            except ExceptionGroup as group:  # of the workers that failed together, the first one's
                raise group.exceptions[0] from group

        return collect(requests, draw, path, label)

    def tokens_per_s(self, problems: Sequence[Problem]) -> None:
        """Another machine's speed, its queue and the network's belong into no ledger of this one."""

    async def _draw(
        self,
        requests: Sequence[Request[str]],
        done: Callable[[Trace], None],
        sampling: Sampling,
        teacher: str,
        in_flight: int,
    ) -> None:
        timeout = Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        waiting = iter(requests)  # the workers share it: each takes the next one

        async def work(client: AsyncClient) -> None:
            for request in waiting:
                body = {
                    "model": self.model,
                    "messages": [{"role": "user", "content": request.prompt}],
                    "max_tokens": sampling.max_new_tokens,
                    "temperature": sampling.temperature,
                    "top_p": sampling.top_p,
                    "seed": request.seed % 2**SEED_BITS,
                    "stream": False,
                }
                done(self._trace(request, await self._post(client, body), teacher))

        async with (
            AsyncClient(base_url=self.url, headers=_headers(), timeout=timeout) as client,
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
                trouble = _words(error)
            else:
                if response.status_code not in (408, 429) and response.status_code < 500:
                    return response
                trouble = _status(response)
                with suppress(ValueError):  # a date, which nobody sends here
                    pause_s = max(pause_s, min(float(response.headers.get("Retry-After", "0")), LONGEST_PAUSE_S))
            if n + 1 < TRIES:
                await asyncio.sleep(pause_s)
        raise InputError(
            f"{self.url} must answer; {TRIES} tries ended with: {trouble}; when it is back, the same command goes on"
        )

    def _trace(self, request: Request[str], response: Response, teacher: str) -> Trace:
        if response.status_code != 200:
            raise InputError(f"{self.url} must accept a chat completion of {self.model!r}; it says {_status(response)}")
        try:
            answer = response.json()
            choice, usage = answer["choices"][0], answer["usage"]
            completion = _completion(choice["message"])
            tokens, prompt_tokens = int(usage["completion_tokens"]), int(usage["prompt_tokens"])
            thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
            finish_reason = choice["finish_reason"]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.url} must answer with a chat completion and its usage; it says {_start(response)}"
            ) from error
        return Trace(
            problem_id=request.problem_id,
            sample=request.sample,
            reasoning=completion.reasoning,
            answer=completion.answer,
            finish_reason="length" if finish_reason == "length" else "stop",
            closed=completion.closed,
            prompt_tokens=prompt_tokens,
            reasoning_tokens=int(thought) if thought else _share_of_tokens(completion, tokens),
            completion_tokens=tokens,
            teacher=teacher,
            request_hash=request.hash,
        )


def connect(argument: str) -> Endpoint:
    """The endpoint of an `http(s)://…/v1` argument, `#MODEL` after it where its server has several.

    Raises `InputError` where nobody answers there, or where it is open which model is meant.
    """
    try:
        url = URL(argument)
    except InvalidURL as error:
        raise InputError(f"{argument!r} must be an address like http://127.0.0.1:8000/v1: {error}") from error
    if not url.host or url.userinfo or url.query:
        raise InputError(
            f"an endpoint's address must have a host ({url.host!r}) and neither password nor query; "
            f"a key goes into the environment variable {KEY_VARIABLE}"
        )
    address = str(url.copy_with(fragment=None)).rstrip("/")
    try:
        listing = get(f"{address}/models", headers=_headers(), timeout=CONNECT_TIMEOUT_S)
    except HTTPError as error:
        raise InputError(
            f"{address} must be a server that answers: {_words(error)}; start it or correct the address"
        ) from error
    return Endpoint(url=address, model=url.fragment or _only_model(address, listing))


def _only_model(address: str, listing: Response) -> str:
    try:
        names = [str(model["id"]) for model in listing.json()["data"]] if listing.status_code == 200 else []
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{address}/models must list the server's models; it says {_start(listing)}") from error
    if len(names) != 1 or not names[0].isprintable():
        found = ", ".join(ascii(name) for name in names[:5]) or _status(listing)
        raise InputError(
            f"{address} must list 1 model where none is named; it lists {len(names)} ({found}): add #MODEL"
        )
    return names[0]


def _completion(message: dict[str, Any]) -> Completion:
    content = message.get("content") or ""
    if not isinstance(content, str):
        raise TypeError("content is no text")
    for field in REASONING_FIELDS:
        if isinstance(reasoning := message.get(field), str) and reasoning:
            thought = reasoning.removeprefix("\n").removesuffix("\n")
            return Completion(reasoning=thought, answer=content, closed=bool(content.strip()))
    return split_completion(content, opened=CLOSE in content)


def _share_of_tokens(completion: Completion, tokens: int) -> int:
    """An estimate by characters, for servers that don't count the thought's tokens apart."""
    characters = len(completion.reasoning) + len(completion.answer)
    return round(tokens * len(completion.reasoning) / characters) if characters else 0


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    return {"Authorization": f"Bearer {key}"} if key else {}


def _words(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


def _status(response: Response) -> str:
    return f"{response.status_code} {response.reason_phrase}: {_start(response)}"


def _start(response: Response) -> str:
    """The beginning of what a server said, safe to print."""
    return ascii(" ".join(response.text[:2000].split())[:160])
