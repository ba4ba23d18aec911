"""Reads the log-probabilities of a completion's tokens, in the forms that servers have for them.

content                                           a list of tokens, each with its candidates (OpenAI's chat form)
reasoning_content, content                        the same for a thought and its answer (`toolkit serve`)
tokens, token_logprobs, top_logprobs              three lists of one length (OpenAI's older form, llama-cpp-python)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from distill.store.logprobs import Candidate, ServerToken, TokenLogprobs

MOST_LOGPROB = 0.01
"""A logarithm of a probability is at most 0, or a little more by rounding."""


def read_logprobs(answer: Mapping[str, Any]) -> list[TokenLogprobs] | None:
    """Return the log-probabilities of a chat completion's tokens; empty if the server gave none, None if they are none:
    malformed, not a number, or above 0. The answer that they came with is paid for, and good without them.
    """
    try:
        return _read(answer["choices"][0].get("logprobs"))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def _read(found: Any) -> list[TokenLogprobs]:
    if not isinstance(found, dict):
        return []
    if isinstance(content := found.get("content"), list):
        said = [*(found.get("reasoning_content") or ()), *content]
        return [TokenLogprobs(_candidate(each), [*map(_candidate, each.get("top_logprobs") or ())]) for each in said]
    tokens, values = found.get("tokens"), found.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list):
        return []
    tops: Sequence[Any] = found.get("top_logprobs") or [None] * len(tokens)
    return [
        TokenLogprobs(
            Candidate(ServerToken(_text(text)), _logprob(0.0 if value is None and not place else value)),
            [Candidate(ServerToken(other), _logprob(logprob)) for other, logprob in (top or {}).items()],
        )
        for place, (text, value, top) in enumerate(zip(tokens, values, tops, strict=True))  # the first may have none
    ]


def _candidate(values: Mapping[str, Any]) -> Candidate:
    encoded = values.get("bytes")
    return Candidate(
        ServerToken(_text(values["token"]), bytes(encoded) if isinstance(encoded, list) else None),
        _logprob(values["logprob"]),
    )


def _logprob(value: Any) -> float:
    number = float(value)
    if math.isnan(number) or number > MOST_LOGPROB:
        raise ValueError(f"{number} is no logarithm of a probability")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a token must be a text, not {type(value).__name__}")
    return value
