"""Calls a server's batch API, and reads its files and its list of batches.

    POST /files    POST /batches    GET /batches/ID    GET /files/ID/content    GET /batches

Source: https://platform.openai.com/docs/api-reference/batch.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from httpx2 import AsyncClient, HTTPError

from toolkit.errors import InputError
from toolkit.generation.bounded_response import read_body, with_body
from toolkit.generation.endpoint import excerpt, first_line, printable, status
from toolkit.terminal import counted, say

CALL_TRIES = 7
FIRST_PAUSE_S = 0.5
MOST_PAGES = 100
"""The most pages of the list of batches that are read."""


class BatchApi:
    """The batch API of one server; `lost` of a call says what a user can do if the server has lost what is asked for.

    Raises `InputError` if the server does not answer, refuses, or sends something else.
    """

    def __init__(self, client: AsyncClient, url: str) -> None:
        self._client, self._url = client, url

    async def call(
        self, method: str, path: str, *, tries: int = CALL_TRIES, lost: str = "", **sent: Any
    ) -> dict[str, Any]:
        """Return the answer's JSON object; passing failures are tried again."""
        trouble = ""
        for number in range(tries):
            try:
                response = await self._client.request(method, path, **sent)
            except HTTPError as error:
                trouble = first_line(error)
            else:
                response.encoding = "utf-8"
                if response.status_code in (200, 201):
                    if values := _object(response.content):
                        return values
                    raise InputError(
                        f"{self._url}/{path} sends no JSON object, but {excerpt(response)}; correct the address"
                    )
                trouble = status(response)
                if response.status_code in (404, 405, 501) and path in ("files", "batches"):
                    raise InputError(f"{self._url} has no batch API ({trouble}); leave --batch-api out")
                if response.status_code < 500 and response.status_code not in (408, 409, 429):
                    raise InputError(f"{self._url}/{path} was refused: {trouble}{_remedy(lost)}")
            if number + 1 < tries:
                await asyncio.sleep(FIRST_PAUSE_S * 2**number)
        raise InputError(f"{self._url}/{path} did not answer: {trouble}; run the same command to resume")

    async def lines(self, file: str, *, lost: str) -> AsyncIterator[dict[str, Any]]:
        """Yield the objects of a file's lines, and say how many lines hold none."""
        rest, unread = b"", 0
        try:
            async with self._client.stream("GET", f"files/{file}/content") as response:
                if response.status_code != 200:
                    trouble = status(with_body(response, await read_body(response)))
                    raise InputError(f"{self._url} does not hand out the file {file}: {trouble}{_remedy(lost)}")
                async for piece in response.aiter_bytes():
                    *lines, rest = (rest + piece).split(b"\n")  # other line ends may be characters of a text
                    for line in lines:
                        values = _object(line)
                        unread += values is None
                        if values:
                            yield values
        except HTTPError as error:
            raise InputError(
                f"{self._url} broke off within the file {file}: {first_line(error)}; run the same command to resume"
            ) from error
        values = _object(rest)
        unread += values is None
        if values:
            yield values
        if unread:
            say(f"{self._url}: {counted(unread, 'line')} of {file} cannot be read; their requests count as unanswered")

    async def listed(self) -> dict[str, str]:
        """Return the ids of the server's batches by the digests of their files, of equal ones the newest."""
        found: dict[str, str] = {}
        query = "batches?limit=100"
        for _ in range(MOST_PAGES):
            listing = await self.call("GET", query)
            entries = [entry for entry in listing.get("data") or () if isinstance(entry, dict) and entry.get("id")]
            for entry in entries:
                found.setdefault(str((entry.get("metadata") or {}).get("toolkit")), str(entry["id"]))
            if not listing.get("has_more") or not entries:
                break
            query = f"batches?limit=100&after={entries[-1]['id']}"
        return found


def id_of(answer: Mapping[str, Any]) -> str:
    """Return the id of what was created; raises `InputError` if the server names none."""
    if not answer.get("id"):
        raise InputError(f"the batch API answers without an id: {printable(str(answer))}; correct the address")
    return str(answer["id"])


def _remedy(lost: str) -> str:
    return f"; run the same command later, or {lost}" if lost else ""


def _object(line: bytes) -> dict[str, Any] | None:
    """Return the object of a JSON text; empty if the text is, None if it holds anything else."""
    try:
        values = json.loads(line) if line.strip() else {}
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None
