"""How a question is put to a teacher, besides the sampling: its system prompt, its template, how hard it should think.

All of it shapes the answer, so it is part of a request's hash and of the store's name; what keeps its default is left
out of both, so that traces collected by earlier versions are found again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from toolkit.errors import InputError
from toolkit.records import Message, Problem

QUESTION = "{question}"
MOST_LOGPROBS = 20
"""OpenAI's limit; vLLM's default is the same."""
OPTIONS = {
    "model": "--teacher URL#MODEL",
    "messages": "--prompt-template and --system",
    "max_tokens": "--max-new-tokens",
    "max_completion_tokens": "--max-new-tokens",
    "temperature": "--temperature",
    "top_p": "--top-p",
    "top_k": "--top-k",
    "min_p": "--min-p",
    "seed": "--seed",
    "n": "--samples",
    "logprobs": "--top-logprobs",
    "top_logprobs": "--top-logprobs",
    "reasoning_effort": "--effort",
    "stream": "--no-stream",
    "stream_options": "--no-stream",
}
"""Fields of a request that have an option of their own."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a question is put to a teacher."""

    system: str = ""
    """Said before each problem that has no system prompt of its own."""
    template: str = QUESTION
    """The user's message, with the question in the place of `{question}`."""
    effort: str = ""
    """Sent as `reasoning_effort`."""
    thinking: bool | None = None
    """Whether a model that can do both thinks; None leaves it to the server."""
    top_logprobs: int = 0
    """Candidates of each token to keep with their log probabilities."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Fields that are sent as they are."""

    def __post_init__(self) -> None:
        if QUESTION not in self.template:
            raise InputError(f"--prompt-template ({self.template!r:.80}) has no {QUESTION}; put it where questions go")
        if not 0 <= self.top_logprobs <= MOST_LOGPROBS:
            raise InputError(f"--top-logprobs ({self.top_logprobs}) must be from 0 to {MOST_LOGPROBS}")
        for name in self.extra_body:
            if name in OPTIONS:
                raise InputError(f"--extra-body has {name!r}, which has an option of its own: use {OPTIONS[name]}")

    def messages(self, problem: Problem) -> list[Message]:
        """Return what is sent for a problem."""
        messages = problem.messages
        if self.template != QUESTION:
            content = self.template.replace(QUESTION, messages[-1]["content"])
            messages = [*messages[:-1], {"role": "user", "content": content}]
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        return messages

    def given(self) -> dict[str, Any]:
        """Return what differs from the defaults."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if value != getattr(AS_IT_IS, name)}


def extra_body_of(text: str) -> dict[str, Any]:
    """Read the argument of --extra-body; raises `InputError` if it is no JSON object."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)  # NaN and Infinity are Python's words
    except (ValueError, RecursionError) as error:
        raise InputError(f"--extra-body ({text!r:.80}) is no JSON: {error}; quote it for the shell: '{{…}}'") from error
    if not isinstance(value, dict):
        raise InputError(f"--extra-body ({text!r:.80}) must be a JSON object such as '{{\"top_a\": 0.1}}'")
    return value


AS_IT_IS = Asking()
"""The bare question."""
