"""Reads the log-probabilities of a completion's tokens, in the forms that servers have for them.

content                                           a list of tokens, each with its candidates (OpenAI's chat form)
reasoning_content, content                        the same for a thought and its answer (`toolkit serve`)
tokens, token_logprobs, top_logprobs              three lists of one length (OpenAI's older form, llama-cpp-python)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill.store.logprobs import Candidate, ServerToken, TokenLogprobs


def read_logprobs(answer: Mapping[str, Any]) -> list[TokenLogprobs]:
    """Return the log-probabilities of a chat completion's tokens; none if the server gave none.

    Raises `LookupError`, `TypeError` or `ValueError` if they are malformed.
    """
    found = answer["choices"][0].get("logprobs")
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
            Candidate(ServerToken(text), float(value or 0.0)),
            [Candidate(ServerToken(other), float(logprob)) for other, logprob in (top or {}).items()],
        )
        for text, value, top in zip(tokens, values, tops, strict=True)
    ]


def _candidate(values: Mapping[str, Any]) -> Candidate:
    encoded = values.get("bytes")
    return Candidate(
        ServerToken(str(values["token"]), bytes(encoded) if isinstance(encoded, list) else None),
        float(values["logprob"]),
    )
