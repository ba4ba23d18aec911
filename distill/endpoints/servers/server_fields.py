"""Learns which request fields a server accepts: a refused field is renamed or left out from then on, with a message.

OpenAI's reasoning models want `max_completion_tokens` instead of `max_tokens` and refuse a temperature; other servers
have no seed. A refusal names its field in `error.param` (OpenAI), in `detail[].loc` (FastAPI), or in the message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from httpx2 import Response

from toolkit.terminal import say

RENAMED = {"max_tokens": "max_completion_tokens"}
DISPENSABLE = ("stream_options", "seed", "top_p", "temperature")
"""In the order in which they are left out if a server refuses two together; then whatever else was sent."""
NEEDED = ("model", "messages", *RENAMED.values())
ALSO_SENT = {
    "thinking": "chat_template_kwargs",
    "chat_template_kwargs": "thinking",
    "repeat_penalty": "repetition_penalty",
    "repetition_penalty": "repeat_penalty",
}
"""Fields that say the same in other servers' words: one of them is enough."""
SILENT = ("stream", "stream_options")
"""Fields that change no answer."""
NEAR = 100
"""Most characters between a field's name and a word of `_UNKNOWN`."""
_UNKNOWN = re.compile(
    r"unsupported|not (?:be )?(?:supported|permitted|allowed|recogni[sz]ed|available|implemented)|unrecogni[sz]ed|"
    r"unknown|n[o']t support|unexpected|extra_forbidden|extra (?:inputs|fields)|only the default|deprecated|"
    r"mutually exclusive|cannot both|(?:invalid|no such) (?:parameter|argument|field|property)|additional propert",
    re.IGNORECASE,
)
"""Words with which servers refuse a field as such, rather than a value out of its range."""


class ServerFields:
    """The request fields that one server accepts."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._instead: dict[str, str] = {}
        """Each refused field's new name; empty if it is left out."""
        self._is_without_logprobs = False

    @property
    def left_out(self) -> list[str]:
        """The refused fields that have no other name."""
        return sorted(field for field, instead in self._instead.items() if not instead and self._is_missed(field))

    def taken(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body with refused fields renamed or left out."""
        return {name: value for old, value in body.items() if (name := self._instead.get(old, old))}

    def refused(self, sent: Mapping[str, Any], response: Response) -> bool:
        """Return whether the server refused a field that can be spared; later requests are sent without it."""
        if response.status_code not in (400, 404, 422, 501):
            return False
        text = response.text[:4000]
        said = " ".join(text[max(0, found.start() - NEAR) : found.end() + NEAR] for found in _UNKNOWN.finditer(text))
        named = _named_field(response)
        others = [field for field in sent if field not in (*NEEDED, *RENAMED, *DISPENSABLE)]
        for field in (*RENAMED, *DISPENSABLE, *others):
            if (
                field in sent
                and said
                and (field == named or (not named and re.search(rf"\b{re.escape(field)}\b", said)))
            ):
                self._instead_of(field)
                return True
        return False

    def lack_logprobs(self) -> None:
        """Say once that an answer has come without the log-probabilities that were asked for."""
        if not self._is_without_logprobs:
            self._is_without_logprobs = True
            say(f"{self._url} gives no log-probabilities that can be read with an answer; such traces have none")

    def _instead_of(self, field: str) -> None:
        if field in self._instead:  # another request in flight has found it already
            return
        self._instead[field] = RENAMED.get(field, "")
        if self._instead[field]:
            say(f"{self._url} refuses {field}; it is sent as {self._instead[field]} from now on")
        elif self._is_missed(field):
            say(f"{self._url} refuses {field}; it is left out from now on")

    def _is_missed(self, field: str) -> bool:
        """Whether answers may differ without a field."""
        return field not in SILENT and self._instead.get(ALSO_SENT.get(field, field)) == ""


def _named_field(response: Response) -> str:
    """Return the field that a refusal names outside its message; empty if it names none."""
    try:
        answer = response.json()
        error = answer.get("error")
        if isinstance(error, dict) and error.get("param"):
            return str(error["param"])
        return str(answer["detail"][0]["loc"][-1])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
