"""Reads a request's body as a JSON object, within bounds of size and time.

A body must be declared as JSON: a page of another site can send that only after a preflight, which is not answered.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from apps.access.bounded_body import BodyRefused, read_bounded
from apps.server.requests.protocol import ApiError
from toolkit.errors import InputError
from toolkit.json_files import parse_json


async def read_body(request: Request) -> dict[str, Any]:
    """Read the JSON object of a request; raises `ApiError` if it is not one, too large or too slow."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError("content-type must be application/json", status=415)
    try:
        content = await read_bounded(request.receive, request.headers.get("content-length", "0"))
    except BodyRefused as refused:
        raise ApiError(str(refused), status=refused.status) from None
    try:
        body = parse_json(content, "the body")
    except InputError as error:
        raise ApiError(str(error)) from None
    if not isinstance(body, dict):
        raise ApiError(f"the body must be a JSON object, not {type(body).__name__}")
    return body
