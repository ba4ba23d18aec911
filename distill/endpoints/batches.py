"""Asks by a server's batch API: files of requests in, files of answers out, at half the price of some providers.

    POST /files          the requests, one JSON object a line, each with its hash as `custom_id`
    POST /batches        the batch, with the digest of the file as metadata
    GET  /batches/ID     until it is completed, expired or has failed
    GET  /files/ID/content     the answers, and in another file the errors

Source: https://platform.openai.com/docs/guides/batch. A batch takes up to a day, so its input and its id are kept in
`batches/` beside the traces: a command that was interrupted finds its batches again and pays for nothing twice. Between
creating a batch and writing its id a process may be killed; then the batch is found by its digest in the server's list.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from httpx2 import Response, Timeout

from distill.collecting.job import Job, Request
from distill.collecting.outcomes import Refusal
from distill.collecting.trace_log import Collected
from distill.endpoints.budget import Budget, Reservation
from distill.endpoints.chat_requests import NOT_AN_ANSWER, Answered, ChatRequest, read_answer
from distill.endpoints.request_body import request_body
from distill.endpoints.servers.batch_api import BatchApi, id_of
from distill.endpoints.servers.server import Server
from distill.store.byte_locks import ByteLocks
from distill.store.shard_writer import lock_byte
from distill.store.sharded_store import LOCKS
from toolkit.errors import InputError
from toolkit.generation.endpoint import LISTING_TIMEOUT_S, open_client, printable
from toolkit.json_files import read_json
from toolkit.records import Message
from toolkit.runs import replace_text
from toolkit.terminal import counted, say

MOST_REQUESTS = 50_000
WINDOW = 4 * MOST_REQUESTS
"""Requests that are sent together, in several batches."""
MOST_BYTES = 190_000_000
"""OpenAI's limits of a batch: requests, and bytes of its file (200 MB)."""
FIRST_POLL_S, LONGEST_POLL_S = 2.0, 60.0
TRANSFER_S = 900.0
"""The longest silence while a file is sent or read."""
TRIES = 7
"""Tries of a request whose batch expired or whose field was refused."""
ENDED = ("completed", "expired", "cancelled", "failed")
"""States of a batch that is over; any other word means that it goes on, since asking again would be paid for again."""
FOLDER = "batches"


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """A batch whose input is on the disk; `id` is empty until the server has it."""

    input: Path
    id: str

    @property
    def digest(self) -> str:
        return self.input.stem

    @property
    def record(self) -> Path:
        """The file with the batch's id."""
        return self.input.with_suffix(".json")

    @property
    def keys(self) -> Path:
        """The file with what a trace needs besides the answer."""
        return self.input.with_suffix(".keys")

    def requests(self) -> dict[str, ChatRequest]:
        """Return the batch's requests by their hashes, without their prompts."""
        rows = (json.loads(line) for line in self.keys.read_text().splitlines())
        return {
            hash: Request(problem_id=problem_id, sample=sample, prompt=[], seed=seed, hash=hash)
            for hash, problem_id, sample, seed in rows
        }

    def forget(self) -> None:
        """Delete its files, once its outcomes are kept."""
        for path in (self.record, self.input, self.keys):
            path.unlink(missing_ok=True)


class BatchRequests:
    """Sends the requests of one job to one server by its batch API."""

    def __init__(self, server: Server, job: Job, *, digest: str, budget: Budget) -> None:
        self._server, self._job, self._budget = server, job, budget
        self._teacher = f"{server.settings.name}@{digest}"
        self._folder = job.path / FOLDER
        self._tries: dict[str, int] = {}
        """How often each request came back without an answer, but may be asked again."""

    def ask(self, requests: Iterator[ChatRequest], log: Collected[list[Message]]) -> None:
        """Send all requests, or as many as the budget allows, and log each outcome when its batch has ended.

        Raises `InputError` if the server has no batch API, or refuses a batch.
        """
        self._folder.mkdir(exist_ok=True)
        with ByteLocks(self._job.path / LOCKS) as self._locks:
            asyncio.run(self._ask(requests, log))

    async def _ask(self, requests: Iterator[ChatRequest], log: Collected[list[Message]]) -> None:
        settings = self._server.settings
        waits = Timeout(TRANSFER_S, connect=LISTING_TIMEOUT_S)
        async with open_client(settings.url, waits, key=settings.key) as client:
            api = BatchApi(client, settings.url)
            for batch in await self._known(api):
                state, sent = await self._wait_for(api, batch), batch.requests()
                async for values in self._outcomes(api, batch, state):
                    self._adopt(values, sent, log)
                self._forget(batch)
            while window := list(islice(requests, WINDOW)):
                wanted = {request.hash: request for request in window if not log.is_adopted(request)}
                while wanted and not self._budget.stopped_by:
                    await self._ask_batches(api, wanted, log)
                if self._budget.stopped_by:
                    return

    async def _ask_batches(self, api: BatchApi, wanted: dict[str, ChatRequest], log: Collected[list[Message]]) -> None:
        """Send what is wanted in one batch or several, and log what comes back."""
        reserved: list[Reservation] = []
        batches = [await self._create(api, batch) for batch in self._write(wanted, reserved)]
        if batches:
            ids = ", ".join(batch.id for batch in batches)
            say(
                f"{self._job.label}: waiting for {ids} at {self._server.settings.url}; interrupted, the command resumes"
            )
        for batch in batches:
            state = await self._wait_for(api, batch)
            async for values in self._outcomes(api, batch, state):
                self._take(values, wanted, log)
            for hash in batch.requests():  # what expired, or was cancelled, has no line
                self._again(hash, wanted, log, f"batch {state.get('status')}")
            self._forget(batch)
        for reservation in reserved:
            self._budget.settle(reservation)

    async def _known(self, api: BatchApi) -> list[_Batch]:
        """Return the batches of this server that an earlier command sent and did not collect."""
        found, listed = [], None
        for path in sorted(self._folder.glob("*.jsonl")):
            if not self._locks.take(lock_byte(path.name)):  # another process is at work on it
                continue
            record = path.with_suffix(".json")
            if record.exists():
                values = read_json(record)
                if values.get("server") != self._server.settings.name:
                    continue
                found.append(_Batch(input=path, id=str(values["batch"])))
                continue
            if listed is None:
                listed = await api.listed()
            if path.stem in listed:
                found.append(self._recorded(_Batch(input=path, id=listed[path.stem])))
            else:
                self._forget(_Batch(input=path, id=""))  # it was never sent
        if found:
            say(f"{self._job.label}: {counted(len(found), 'batch')} of an earlier command are collected first")
        return found

    def _write(self, wanted: Mapping[str, ChatRequest], reserved: list[Reservation]) -> Iterator[_Batch]:
        """Write the files of the wanted requests, as far as the budget allows."""
        chosen: list[ChatRequest] = []
        lines: list[bytes] = []
        size = 0
        for request in wanted.values():
            limit = self._job.sampling.max_new_tokens
            reservation = self._budget.try_reserve(self._server.settings, request.prompt, limit)
            if reservation is None:
                break
            reserved.append(reservation)
            line = self._line(request)
            if chosen and (len(chosen) == MOST_REQUESTS or size + len(line) > MOST_BYTES):
                yield self._written(chosen, lines)
                chosen, lines, size = [], [], 0
            chosen.append(request)
            lines.append(line)
            size += len(line)
        if chosen:
            yield self._written(chosen, lines)
        elif not reserved:
            self._budget.stop()

    def _line(self, request: ChatRequest) -> bytes:
        sent = self._server.fields.taken(self._body(request))
        values = {"custom_id": request.hash, "method": "POST", "url": "/v1/chat/completions", "body": sent}
        return json.dumps(values).encode() + b"\n"

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        model, sampling, asking = self._server.settings.model, self._job.sampling, self._job.asking
        body = request_body(model, request, sampling, asking, is_streamed=False)
        del body["stream"]
        return body

    def _written(self, requests: Sequence[ChatRequest], lines: Sequence[bytes]) -> _Batch:
        content = b"".join(lines)
        batch = _Batch(input=self._folder / f"{hashlib.sha256(content).hexdigest()[:16]}.jsonl", id="")
        self._locks.take(lock_byte(batch.input.name))
        keys = (json.dumps([one.hash, one.problem_id, one.sample, one.seed]) + "\n" for one in requests)
        replace_text(batch.keys, "".join(keys))
        partial = batch.input.with_suffix(".partial")
        partial.write_bytes(content)
        partial.replace(batch.input)
        return batch

    async def _create(self, api: BatchApi, batch: _Batch) -> _Batch:
        content = await asyncio.to_thread(batch.input.read_bytes)
        files = {"file": (batch.input.name, content, "application/jsonl"), "purpose": (None, "batch")}
        uploaded = await api.call("POST", "files", files=files)
        body = {
            "input_file_id": id_of(uploaded),
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"toolkit": batch.digest},
        }
        created = await api.call("POST", "batches", json=body, tries=1)
        return self._recorded(_Batch(input=batch.input, id=id_of(created)))

    def _forget(self, batch: _Batch) -> None:
        """Delete the files of a batch whose outcomes are kept, and let go of it."""
        batch.forget()
        self._locks.free(lock_byte(batch.input.name))

    def _recorded(self, batch: _Batch) -> _Batch:
        values = {"batch": batch.id, "server": self._server.settings.name}
        replace_text(batch.record, json.dumps(values) + "\n")
        return batch

    async def _wait_for(self, api: BatchApi, batch: _Batch) -> dict[str, Any]:
        """Wait for a batch and return its last state; raises `InputError` if the server failed it as a whole."""
        pause_s = FIRST_POLL_S
        state: dict[str, Any]
        while _state_of(state := await api.call("GET", f"batches/{batch.id}", lost=self._remedy(batch))) not in ENDED:
            await asyncio.sleep(pause_s)
            pause_s = min(LONGEST_POLL_S, pause_s * 1.5)
        if _state_of(state) == "failed" and not state.get("output_file_id"):
            self._forget(batch)
            raise InputError(
                f"{self._server.settings.url} failed the batch {batch.id}: {printable(str(state.get('errors')))}; "
                "correct what it names, or leave --batch-api out"
            )
        return state

    async def _outcomes(self, api: BatchApi, batch: _Batch, state: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Yield the lines of a batch's output and errors; `state`: its last one."""
        for name in ("output_file_id", "error_file_id"):
            if state.get(name):
                async for values in api.lines(str(state[name]), lost=self._remedy(batch)):
                    yield values

    def _remedy(self, batch: _Batch) -> str:
        """Say how the requests of a batch are sent anew that the server has lost."""
        return f"delete {batch.record} and {batch.input} to ask, and pay for, its requests again"

    def _adopt(
        self, values: Mapping[str, Any], requests: Mapping[str, ChatRequest], log: Collected[list[Message]]
    ) -> None:
        """Keep one answer of an earlier command's batch; what failed there is asked again."""
        request, (code, told) = requests.get(str(values.get("custom_id"))), _response_in(values)
        if request is not None and code == 200:
            with suppress(*NOT_AN_ANSWER):
                log.adopt(*self._read(told["body"], request))

    def _take(self, values: Mapping[str, Any], wanted: dict[str, ChatRequest], log: Collected[list[Message]]) -> None:
        """Log one line of a batch's output or errors."""
        request = wanted.get(str(values.get("custom_id")))
        if request is None:  # answered before, or not of this job
            return
        code, told = _response_in(values)
        body = told.get("body")
        if code != 200 or not isinstance(body, dict):
            self._failed(values, code, request, wanted, log)
            return
        try:
            trace, logprobs = self._read(body, request)
        except NOT_AN_ANSWER:
            self._refuse(request, wanted, log, "no chat completion", printable(str(body)))
            return
        del wanted[request.hash]
        log.answered(trace, logprobs)

    def _read(self, body: Mapping[str, Any], request: ChatRequest) -> Answered:
        trace, logprobs = read_answer(body, request, self._teacher, self._job, self._server.fields)
        self._budget.take_answer(self._server.settings, trace, request.prompt, self._job.sampling.max_new_tokens)
        return trace, logprobs

    def _failed(
        self,
        values: Mapping[str, Any],
        code: int,
        request: ChatRequest,
        wanted: dict[str, ChatRequest],
        log: Collected[list[Message]],
    ) -> None:
        _, told = _response_in(values)
        response = Response(code or 500, json=told.get("body") or values.get("error") or {})
        sent = self._body(request)
        if self._server.fields.refused(sent, response) or code in (0, 408, 429) or code >= 500:
            return  # it is asked again with the next batch
        self._refuse(request, wanted, log, f"HTTP {code}", printable(response.text))

    def _again(self, hash: str, wanted: dict[str, ChatRequest], log: Collected[list[Message]], reason: str) -> None:
        """Count a request without an outcome; record it as failed if it came back too often."""
        request = wanted.get(hash)
        if request is None:
            return
        self._tries[hash] = self._tries.get(hash, 0) + 1
        if self._tries[hash] >= TRIES:
            self._refuse(request, wanted, log, reason, f"no answer in {TRIES} batches")

    def _refuse(
        self,
        request: ChatRequest,
        wanted: dict[str, ChatRequest],
        log: Collected[list[Message]],
        reason: str,
        said: str,
    ) -> None:
        del wanted[request.hash]
        message = f"{self._server.settings.url} refused a request of a batch: {said}"
        log.failed(request, Refusal(message, reason=reason, cause="request", said=said))


def _response_in(values: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
    """Return the status and the response in a line of a batch's output; 0 if there is none."""
    told = values.get("response")
    told = told if isinstance(told, dict) else {}
    code = told.get("status_code")
    return (code if isinstance(code, int) and 100 <= code < 600 else 0), told


def _state_of(state: Mapping[str, Any]) -> str:
    """Return the word for a batch's state; raises `InputError` if the server gives none."""
    if not state.get("status"):
        raise InputError(f"the batch API gives no status of a batch: {printable(str(state))}; correct the address")
    return str(state["status"]).lower()
