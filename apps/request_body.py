"""A request's body as a JSON object, within bounds of size and time.

A body must say that it is JSON: a page of another site cannot send that without asking first, and nothing here answers.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

from apps.completions import ApiError

MOST_BODY_BYTES = 4_000_000
BODY_TIMEOUT_S = 30.0


async def read_body(request: Request) -> dict[str, Any]:
    """The JSON object of a request; raises `ApiError` where it is none, too large or too slow."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError("content-type must be application/json", status=415)
    too_large = ApiError(f"the body must be at most {MOST_BODY_BYTES} bytes", status=413)
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > MOST_BODY_BYTES:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                content += chunk
                if len(content) > MOST_BODY_BYTES:
                    raise too_large
    except TimeoutError:
        raise ApiError(f"the body must arrive within {BODY_TIMEOUT_S:.0f} s", status=408) from None
    except ClientDisconnect:
        raise ApiError("the client left before its body was whole") from None
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body must be JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(f"the body must be a JSON object, not {type(body).__name__}")
    return body
