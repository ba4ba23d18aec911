"""Writes the body of a chat completion request.

    always          model, messages, max_tokens, temperature, top_p, seed, stream
    if they differ  top_k, min_p, repetition_penalty (vLLM, SGLang, `toolkit serve`) and repeat_penalty (llama.cpp)
    if asked for    logprobs and top_logprobs, reasoning_effort, and the switches of thinking

Servers switch thinking in two ways: `chat_template_kwargs` (vLLM, SGLang, llama-server, for templates that know
`enable_thinking` or `thinking`) and `thinking.type` (DeepSeek's and Zhipu's own). Both are sent; a server that refuses
one of them gets the other alone. Fields that a server refuses are left out: `distill.endpoints.servers.server_fields`.
"""

from __future__ import annotations

from typing import Any

from distill.collecting.asking import Asking
from distill.collecting.job import Request
from toolkit.generation.generate import Sampling
from toolkit.records import Message

SEED_BITS = 31
"""llama.cpp accepts 32 bits, most other servers signed 64."""


def request_body(
    model: str, request: Request[list[Message]], sampling: Sampling, asking: Asking, *, is_streamed: bool
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": request.prompt,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": request.seed % 2**SEED_BITS,
        "stream": is_streamed,
    }
    if is_streamed:
        body["stream_options"] = {"include_usage": True}
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    if sampling.min_p:
        body["min_p"] = sampling.min_p
    if sampling.repetition_penalty != 1.0:
        body |= {"repetition_penalty": sampling.repetition_penalty, "repeat_penalty": sampling.repetition_penalty}
    if asking.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": asking.top_logprobs}
    if asking.effort:
        body["reasoning_effort"] = asking.effort
    if asking.thinking is not None:
        body["chat_template_kwargs"] = {"enable_thinking": asking.thinking, "thinking": asking.thinking}
        body["thinking"] = {"type": "enabled" if asking.thinking else "disabled"}
    given = dict(asking.extra_body)
    for name in ("chat_template_kwargs", "thinking"):
        if isinstance(given.get(name), dict) and name in body:
            body[name] |= given.pop(name)
    return body | given
