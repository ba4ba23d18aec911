"""Answers OpenAI's completion routes with one loaded model.

    request ─ key ─ body ─ record ─ turns ─ scheduler ─ pieces ─ response, whole or as events

The default settings are those that R1's authors advise (`toolkit.generation.generate.Sampling`), not OpenAI's.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from apps.model import check_folder
from apps.server.grammar import Grammar
from apps.server.metrics import Metrics
from apps.server.requests.body import read_body
from apps.server.requests.protocol import ApiError, RequestSettings, model_of, read_chat_request, read_text_request
from apps.server.responses import CompletionChoice, Head, chunk_choices, usage, whole_choice
from apps.server.row import BatchRow, Piece
from apps.server.scheduler import QueueFull, Scheduler
from apps.server.served_names import Served, served_names
from export.runtime.exported_model import OpenModel, open_exported
from export.runtime.kernels.library import kernels_name
from export.runtime.rows.row_pool import RowPool
from toolkit.errors import InputError
from toolkit.formats.chat_format import ReasoningParser
from toolkit.generation.endpoint import PREFIX

RETRY_AFTER_S = 5
"""The retry-after header when the queue is full, which most libraries obey."""

Pieces = asyncio.Queue[tuple[int, Piece | BaseException]]


class Service:
    """One loaded model with its adapters, scheduler and routes."""

    def __init__(
        self,
        folder: Path,
        *,
        open_model: OpenModel = open_exported,
        parallel: int,
        queue: int,
        api_key: str,
        name: str = "",
        adapters: Mapping[str, Path] | None = None,
        repeatable: bool = False,
    ) -> None:
        """An empty `api_key` admits everybody; an empty `name` is the folder's. `adapters`: see `run_server`.
        `repeatable`: see `Scheduler`.

        Raises `InputError` if the folder is not a sound export, or an adapter does not fit it.
        """
        check_folder(folder)
        adapters = adapters or {}
        model = open_model(folder, adapters=[*adapters.values()])
        self._served = served_names(folder, name or folder.resolve().name, adapters, model.vocab_size)
        self.names = [*self._served]
        """Those under which it answers, the model's own first."""
        self.most_cache_bytes = model.position_bytes * model.max_length * parallel
        """The size of the cache when all rows are as long as the context."""
        self.metrics = Metrics(kernels_name())
        self.scheduler = Scheduler(
            RowPool(model), self.metrics, parallel=parallel, queue=queue, clock=time.monotonic, repeatable=repeatable
        )
        self._max_length = model.max_length
        self._api_key = api_key

    def application(self) -> Starlette:
        routes = [
            Route("/health", self._health),
            Route("/metrics", self._guarded(self._metrics)),
            Route("/v1/models", self._guarded(self._models)),
            Route("/v1/models/{name:path}", self._guarded(self._model)),
            Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
            Route("/v1/completions", self._guarded(self._complete), methods=["POST"]),
        ]
        application = Starlette(routes=routes, exception_handlers={HTTPException: _no_route, Exception: _unforeseen})
        application.router.redirect_slashes = False  # another path is refused in OpenAI's format
        return application

    def _guarded(self, endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Put an endpoint behind the key, with errors in OpenAI's format."""

        async def answer(request: Request) -> Response:
            try:
                self._check_key(request)
                return await endpoint(request)
            except (ApiError, InputError) as refused:
                error = refused if isinstance(refused, ApiError) else ApiError(str(refused))
                self.metrics.refused.labels(str(error.status)).inc()
                headers = {"retry-after": str(RETRY_AFTER_S)} if error.status == 429 else {}
                if error.status in (408, 413):  # the rest of the body is not read
                    headers["connection"] = "close"
                return JSONResponse(error.body, status_code=error.status, headers=headers)

        return answer

    def _check_key(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        fits = hmac.compare_digest(given.strip().encode(), self._api_key.encode()) and scheme.lower() == "bearer"
        if self._api_key and not fits:
            raise ApiError(
                "wrong or missing API key; send the server's key as a bearer token", code="invalid_api_key", status=401
            )

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": self.names[0]})

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described(served) for served in self._served.values()]})

    async def _model(self, request: Request) -> Response:
        return JSONResponse(self._described(self._asked_for(request.path_params["name"])))

    def _asked_for(self, model: Any) -> Served:
        return self._served[model_of(model, self.names)]

    def _described(self, served: Served) -> dict[str, Any]:
        model = {"id": served.name, "object": "model", "created": served.created, "owned_by": "toolkit"}
        model["max_model_len"] = self._max_length  # vLLM's name for the context
        if served.adapter:
            model["parent"] = self.names[0]  # vLLM's name for the model that an adapter changes
        return model | {"capabilities": {PREFIX: True}}

    async def _chat(self, request: Request) -> Response:
        body = await read_body(request)
        served = self._asked_for(body.get("model"))
        chat_format = served.chat_format
        asked = read_chat_request(body, fresh_seed=secrets.randbits(31), thinks=chat_format.opens_reasoning)
        self._check_count(asked.settings.n)
        try:
            prompt = await run_in_threadpool(chat_format.prompt_ids, asked.messages)
        except InputError as error:
            raise ApiError(str(error), param="messages") from error
        grammar = None
        if asked.schema:
            try:
                grammar = await run_in_threadpool(Grammar.of_schema, served.vocabulary, asked.schema)
            except InputError as error:
                raise ApiError(str(error), param="response_format") from error
        begun = asked.begun
        written = await run_in_threadpool(chat_format.begun_ids, begun.reasoning, begun.answer) if begun else []
        return await self._answer(request, served, [prompt], asked.settings, grammar, is_chat=True, written=written)

    async def _complete(self, request: Request) -> Response:
        body = await read_body(request)
        served = self._asked_for(body.get("model"))
        chat_format = served.chat_format
        asked = read_text_request(
            body, fresh_seed=secrets.randbits(31), vocab_size=chat_format.tokenizer.get_vocab_size()
        )
        self._check_count(len(asked.prompts) * asked.settings.n)
        prompts = [
            await run_in_threadpool(chat_format.encode, prompt) if isinstance(prompt, str) else list(prompt)
            for prompt in asked.prompts
        ]
        return await self._answer(
            request, served, prompts, asked.settings, None, is_chat=False, echo=asked.echo, by_id=asked.by_id
        )

    async def _answer(
        self,
        request: Request,
        served: Served,
        prompts: Sequence[list[int]],
        settings: RequestSettings,
        grammar: Grammar | None,
        *,
        is_chat: bool,
        written: Sequence[int] = (),
        echo: bool = False,
        by_id: bool = False,
    ) -> Response:
        """Run the turns of one request, and answer whole or as a stream.

        `written`: ids that each turn begins with. `echo`: whether prompts are given back. `by_id`: see `Head`.
        """
        pieces: Pieces = asyncio.Queue()
        loop = asyncio.get_running_loop()
        turns = []
        for i in range(len(prompts) * settings.n):
            parser = ReasoningParser(opened=served.chat_format.opens_reasoning) if is_chat else None
            prompt, deliver = prompts[i // settings.n], _deliver_to(loop, pieces)
            turns.append(self._turn(served, prompt, settings, grammar, parser, i, deliver, written, echo))
        try:
            self.scheduler.submit(turns)
        except QueueFull:
            message = f"the queue is full: {self.scheduler.capacity} answers are running or waiting; try again later"
            raise ApiError(message, code="rate_limit_exceeded", status=429) from None
        head = Head(
            id=("chatcmpl-" if is_chat else "cmpl-") + secrets.token_hex(12),
            created=int(time.time()),
            model=served.name,
            is_chat=is_chat,
            by_id=by_id,
        )
        choices = [CompletionChoice(index=i) for i in range(len(turns))]
        counted = turns[:: settings.n]
        if settings.stream:
            events = self._events(served, head, choices, turns, pieces, counted if settings.include_usage else ())
            return StreamingResponse(
                events,
                media_type="text/event-stream",
                headers={"cache-control": "no-store"},
                background=BackgroundTask(self.scheduler.cancel, turns),  # the events may never be started
            )
        if not await self._collected(request, choices, turns, pieces):
            return Response(status_code=499)  # the client has left
        for choice, turn in zip(choices, turns, strict=True):
            choice.echoed = turn.echoed() if echo else None
        shown = [whole_choice(head, choice, served.chat_format.tokenizer) for choice in choices]
        return JSONResponse(head.envelope(is_chunk=False, choices=shown, usage=usage(choices, counted)))

    async def _collected(
        self, request: Request, choices: Sequence[CompletionChoice], turns: Sequence[BatchRow], pieces: Pieces
    ) -> bool:
        """Wait until all choices are complete; False if the client leaves before."""
        collected = asyncio.ensure_future(self._collect(choices, turns, pieces))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({collected, gone}, return_when=asyncio.FIRST_COMPLETED)
            if collected.done():
                await collected
            return collected.done()
        finally:
            collected.cancel()
            gone.cancel()
            self.scheduler.cancel(turns)

    def _turn(
        self,
        served: Served,
        prompt: list[int],
        settings: RequestSettings,
        grammar: Grammar | None,
        parser: ReasoningParser | None,
        index: int,
        deliver: Callable[[int, Piece | BaseException], None],
        written: Sequence[int],
        echo: bool,
    ) -> BatchRow:
        length = len(prompt) + len(written)
        room = self._max_length - length
        if room < 1 or not prompt:
            message = f"the prompt ({length} tokens) must be shorter than the model's context "
            message += f"({self._max_length} tokens) and not empty; shorten it"
            raise ApiError(message, param="messages" if parser else "prompt", code="context_length_exceeded")
        sampling = settings.sampling
        return BatchRow(
            prompt,
            tokenizer=served.chat_format.tokenizer,
            stop_ids=served.chat_format.stop_ids,
            sampling=replace(
                sampling, max_new_tokens=min(sampling.max_new_tokens, room), seed=sampling.seed + index % settings.n
            ),
            parser=parser,
            stop=settings.stop,
            grammar=grammar.copy() if grammar else None,
            top_logprobs=settings.top_logprobs if settings.logprobs else -1,
            deliver=lambda piece: deliver(index, piece),
            adapter=served.adapter,
            written=written,
            echo=echo,
        )

    def _check_count(self, count: int) -> None:
        """Refuse early what the scheduler could never admit."""
        capacity = self.scheduler.capacity
        if count > capacity:
            raise ApiError(
                f"{count} answers are asked for, but at most {capacity} may run or wait; ask for fewer", param="n"
            )

    async def _collect(self, choices: Sequence[CompletionChoice], turns: Sequence[BatchRow], pieces: Pieces) -> None:
        try:
            async for index, piece in _until_all_end(pieces, len(turns)):
                choices[index].add(piece)
        except Exception as error:  # whatever the scheduler delivered
            raise ApiError(f"the model failed: {error}", status=500) from error

    async def _events(
        self,
        served: Served,
        head: Head,
        choices: Sequence[CompletionChoice],
        turns: Sequence[BatchRow],
        pieces: Pieces,
        counted: Sequence[BatchRow],
    ) -> AsyncIterator[str]:
        """Yield the server-sent events of one request; `counted`: a turn for each prompt, if the last event is to carry
        the usage."""
        shared: dict[str, Any] = {"usage": None} if counted else {}
        try:
            if head.is_chat:
                for choice in choices:
                    first = {"index": choice.index, "delta": {"role": "assistant", "content": ""}}
                    first |= {"logprobs": None, "finish_reason": None}
                    yield _event(head.envelope(is_chunk=True, choices=[first], **shared))
            async for index, piece in _until_all_end(pieces, len(turns)):
                choices[index].add(piece)
                for part in chunk_choices(head, index, piece, served.chat_format.tokenizer):
                    yield _event(head.envelope(is_chunk=True, choices=[part], **shared))
            if counted:
                yield _event(head.envelope(is_chunk=True, choices=[], usage=usage(choices, counted)))
            yield "data: [DONE]\n\n"
        except Exception as error:  # noqa: BLE001 – the status is sent already, so the error is an event
            yield _event(ApiError(f"the model failed: {error}", status=500).body)
        finally:  # also when the client has left
            self.scheduler.cancel(turns)


def _deliver_to(loop: asyncio.AbstractEventLoop, pieces: Pieces) -> Callable[[int, Piece | BaseException], None]:
    def deliver(index: int, piece: Piece | BaseException) -> None:
        with suppress(RuntimeError):  # the server has stopped meanwhile
            loop.call_soon_threadsafe(pieces.put_nowait, (index, piece))

    return deliver


async def _until_all_end(pieces: Pieces, count: int) -> AsyncIterator[tuple[int, Piece]]:
    while count:
        index, piece = await pieces.get()
        if isinstance(piece, BaseException):
            raise RuntimeError(f"{type(piece).__name__}: {piece}") from piece  # noqa: TRY004 – it is no wrong argument
        count -= piece.finish_reason is not None
        yield index, piece


async def _no_route(request: Request, error: Exception) -> Response:
    """Refuse a path or a method that is not served, in OpenAI's format."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path!r} is not served: {error.detail}"
    refused = ApiError(message, code="unknown_url" if error.status_code == 404 else None, status=error.status_code)
    return JSONResponse(refused.body, status_code=error.status_code, headers=error.headers)


async def _unforeseen(request: Request, error: Exception) -> Response:
    """Report an unforeseen error, whose traceback is printed in the terminal."""
    return JSONResponse(ApiError(f"the server failed: {type(error).__name__}", status=500).body, status_code=500)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"
