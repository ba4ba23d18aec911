"""Which fields of a request a server takes: what it refuses is found once, then renamed or left out, and said.

OpenAI's reasoning models want `max_completion_tokens` for `max_tokens` and refuse a temperature; others know no seed.
The forms of a refusal: `error.param` (OpenAI), `detail[].loc` (FastAPI), or the field's name in the message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from httpx2 import Response

from toolkit.terminal import say

RENAMED = {"max_tokens": "max_completion_tokens"}
DISPENSABLE = ("seed", "top_p", "temperature")
"""In the order in which they go where a server refuses two together."""
NEAR = 100
"""Characters between a field's name and these words."""
_UNKNOWN = re.compile(
    r"unsupported|not (?:be "
    r")?(?:supported|permitted|allowed|recogni[sz]ed|available|implemented)|unrecogni[sz]ed|unknown|"
    r"n[o']t support|unexpected|extra_forbidden|extra (?:inputs|fields)|only the default|deprecated|mutually exclusive|"
    r"cannot both|(?:invalid|no such) (?:parameter|argument|field|property)|additional propert",
    re.IGNORECASE,
)
"""A server's words for a field that it does not take, and not for a value out of its range."""


class ServerFields:
    """The fields of requests to one server, as it takes them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._instead: dict[str, str] = {}
        """The new name of each refused field, empty for those that are left out."""

    @property
    def left_out(self) -> list[str]:
        """The fields that the server refused and that have no other name."""
        return sorted(field for field, instead in self._instead.items() if not instead)

    def taken(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body without what was refused so far."""
        return {name: value for old, value in body.items() if (name := self._instead.get(old, old))}

    def refused(self, sent: Mapping[str, Any], response: Response) -> bool:
        """Whether the server refused the request for a field that can be spared: then the next one is without it."""
        if response.status_code not in (400, 404, 422, 501):
            return False
        text = response.text[:4000]
        said = " ".join(text[max(0, found.start() - NEAR) : found.end() + NEAR] for found in _UNKNOWN.finditer(text))
        named = _named_field(response)
        for field in (*RENAMED, *DISPENSABLE):
            if field in sent and said and (field == named or (not named and re.search(rf"\b{field}\b", said))):
                self._instead_of(field)
                return True
        return False

    def _instead_of(self, field: str) -> None:
        if field in self._instead:  # of requests in flight together, another one has found it
            return
        self._instead[field] = RENAMED.get(field, "")
        fate = f"sent as {self._instead[field]}" if self._instead[field] else "left out"
        say(f"{self._url} refuses {field}; it is {fate} from here on")


def _named_field(response: Response) -> str:
    """The field that a refusal names in a place of its own; empty where there is none."""
    try:
        answer = response.json()
        error = answer.get("error")
        if isinstance(error, dict) and error.get("param"):
            return str(error["param"])
        return str(answer["detail"][0]["loc"][-1])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
