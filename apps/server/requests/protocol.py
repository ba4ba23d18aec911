"""Reads OpenAI's completion requests: a JSON body in, a checked frozen record out, with OpenAI's field names.

A wrong value is an `ApiError`, and so is a field whose effect would silently be missing
(`apps.server.requests.fields`). Source: https://platform.openai.com/docs/api-reference (chat and completions).
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apps.server.requests.fields import (
    CHAT,
    MESSAGE,
    PART,
    SCHEMA,
    STREAM_OPTIONS,
    TEXT,
    FieldRefused,
    check_fields,
    check_known,
)
from toolkit.formats.message_fields import REASONING_FIELDS
from toolkit.generation.generate import Sampling
from toolkit.records import Message

NO_LIMIT = 2**31
"""The limit of an answer that only the context limits."""
COMPLETION_TOKENS = 16
"""OpenAI's limit for a plain completion that names none."""
MOST_STOPS = 16
MOST_TOP_LOGPROBS = 20
ROLES = ("system", "developer", "user", "assistant")
LIMITS = ("max_tokens", "max_completion_tokens")
"""Names of an answer's limit; if both are given, the last one counts, which is the newer name."""
FORMATS = {"text": {"type"}, "json_object": {"type", "schema"}, "json_schema": {"type", "json_schema"}}
"""Types of a response format with their fields; a json_object with a schema comes from llama-server."""


class ApiError(Exception):
    """An error that the client gets instead of an answer, in OpenAI's format."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True, kw_only=True)
class RequestSettings:
    """The settings that both kinds of request share."""

    sampling: Sampling
    n: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    logprobs: bool
    top_logprobs: int


@dataclass(frozen=True, kw_only=True)
class Begun:
    """The beginning of the model's turn, if a request's last message is to be continued."""

    reasoning: str
    answer: str | None
    """None while the thought is open."""


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    messages: tuple[Message, ...]
    begun: Begun | None
    """None for a new turn."""
    schema: str
    """JSON schema of the answer; empty for free text."""
    settings: RequestSettings


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool
    """Whether the answer begins with the prompt, with the log probabilities of its tokens if any are asked for."""
    by_id: bool
    """Whether log probabilities name tokens as `token_id:N`, as vLLM does, since several may have one text."""
    settings: RequestSettings


def read_chat_request(body: Mapping[str, Any], *, fresh_seed: int, thinks: bool) -> ChatRequest:
    """Read a chat request; `thinks`: whether the model thinks in every turn. Raises `ApiError` if a value is wrong."""
    _check_fields(body, CHAT, thinks=thinks)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError("messages must be a list of at least 1 message", param="messages")
    logprobs, top_logprobs = _boolean(body, "logprobs"), _integer(body, "top_logprobs", 0, MOST_TOP_LOGPROBS, 0)
    if top_logprobs and not logprobs:
        raise ApiError(f"top_logprobs ({top_logprobs}) needs logprobs to be true", param="top_logprobs")
    read = tuple(_message(message, f"messages[{i}]") for i, message in enumerate(messages))
    schema = _schema(body.get("response_format"))
    begun = _begun(messages, read[-1]["content"], goes_on=_boolean(body, "continue_final_message"))
    if body.get("add_generation_prompt") is not None and _boolean(body, "add_generation_prompt") == bool(begun):
        message = (
            f"add_generation_prompt must be {str(not begun).lower()} if a turn is {'continued' if begun else 'begun'}"
        )
        raise ApiError(message, param="add_generation_prompt")
    if begun and begun.answer and schema:
        raise ApiError(
            "response_format is not supported where an answer is continued; leave it out", param="response_format"
        )
    return ChatRequest(
        messages=read[:-1] if begun else read,
        begun=begun,
        schema=schema,
        settings=_settings(body, _limit(body, NO_LIMIT), fresh_seed, logprobs, top_logprobs),
    )


def read_text_request(body: Mapping[str, Any], *, fresh_seed: int, vocab_size: int) -> TextRequest:
    """Read a request for a plain completion; raises `ApiError` if a value is wrong."""
    _check_fields(body, TEXT, thinks=False)
    top_logprobs = _integer(body, "logprobs", 0, MOST_TOP_LOGPROBS, 0)
    echo = _boolean(body, "echo")
    if echo and _boolean(body, "stream"):
        raise ApiError("echo is not supported where the answer is streamed; leave one of them out", param="echo")
    return TextRequest(
        echo=echo,
        by_id=_boolean(body, "return_tokens_as_token_ids"),
        prompts=_prompts(body.get("prompt"), vocab_size),
        settings=_settings(
            body, _limit(body, COMPLETION_TOKENS), fresh_seed, body.get("logprobs") is not None, top_logprobs
        ),
    )


def _settings(
    body: Mapping[str, Any], limit: int, fresh_seed: int, logprobs: bool, top_logprobs: int
) -> RequestSettings:
    defaults = Sampling()
    stream_options = {} if body.get("stream_options") is None else body["stream_options"]
    if not isinstance(stream_options, dict):
        raise ApiError("stream_options must be an object", param="stream_options")
    _refuse_unknown(stream_options, STREAM_OPTIONS, "stream_options", param="stream_options")
    top_k = _integer(body, "top_k", -1, 2**31, defaults.top_k)
    penalty = _number(body, "repeat_penalty", 0.1, 10.0, defaults.repetition_penalty)
    return RequestSettings(
        sampling=Sampling(
            temperature=_number(body, "temperature", 0.0, 2.0, defaults.temperature),
            top_p=_number(body, "top_p", 0.0, 1.0, defaults.top_p),
            top_k=max(top_k, 0),  # vLLM's -1 keeps all, as 0 does
            min_p=_number(body, "min_p", 0.0, 1.0, defaults.min_p),
            repetition_penalty=_number(body, "repetition_penalty", 0.1, 10.0, penalty),
            max_new_tokens=limit,
            seed=_integer(body, "seed", -(2**63), 2**63 - 1, fresh_seed) % 2**63,
        ),
        n=_integer(body, "n", 1, 128, 1),
        stop=_stop(body.get("stop")),
        stream=_boolean(body, "stream"),
        include_usage=_boolean(stream_options, "include_usage"),
        logprobs=logprobs,
        top_logprobs=top_logprobs,
    )


def model_of(asked: Any, models: Sequence[str]) -> str:
    """Return the name of the model that is asked for: one of those that are served; null stands for the first."""
    if asked is None:
        return models[0]
    if asked not in models:
        message = f"unknown model {reprlib.repr(asked)}: this server has only {', '.join(map(repr, models))}"
        raise ApiError(message, param="model", code="model_not_found", status=404)
    return str(asked)


def _check_fields(body: Mapping[str, Any], obeyed: tuple[str, ...], *, thinks: bool) -> None:
    """Refuse fields that are not obeyed."""
    try:
        check_fields(body, obeyed, thinks=thinks)
    except FieldRefused as refused:
        code = "unknown_parameter" if refused.unknown else "unsupported_parameter"
        raise ApiError(str(refused), param=refused.name, code=code) from None


def _limit(body: Mapping[str, Any], limit: int) -> int:
    """Return the most tokens of the answer (-1 in a request means no limit); `limit` if the request names none."""
    for name in LIMITS:
        limit = NO_LIMIT if body.get(name) == -1 else _integer(body, name, 1, NO_LIMIT, limit)
    return limit


def _message(value: Any, place: str) -> Message:
    """Read one message, with its text in one piece."""
    if not isinstance(value, dict) or value.get("role") not in ROLES:
        raise ApiError(f"{place} must be an object with a role of {', '.join(ROLES)}", param=place)
    _refuse_unknown(value, MESSAGE, place)
    content = value.get("content")
    if isinstance(content, list):
        content = _joined(content, f"{place}.content")
    if content is None and value["role"] == "assistant" and value.get("content") is None:
        content = ""
    if not isinstance(content, str):
        raise ApiError(f"{place}.content must be a string or a list of text parts", param=place)
    role = "system" if value["role"] == "developer" else value["role"]
    return {"role": role, "content": _encodable(content, place)}


def _joined(parts: Sequence[Any], place: str) -> str | None:
    """Join the text of a content in parts; None if one of them is not a text."""
    texts = []
    for i, part in enumerate(parts):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            return None
        _refuse_unknown(part, PART, f"{place}[{i}]")
        texts.append(part["text"])
    return "".join(texts)


def _refuse_unknown(value: Mapping[str, Any], known: Sequence[str], place: str, *, param: str = "") -> None:
    """Raise `ApiError` for an unknown field; `param`: what the error names instead of the field itself."""
    try:
        check_known(value, known, place)
    except FieldRefused as refused:
        raise ApiError(str(refused), param=param or refused.name, code="unsupported_parameter") from None


def _begun(messages: Sequence[Any], content: str, *, goes_on: bool) -> Begun | None:
    """Return the beginning of the turn in the last message, whose content has been read; None for a new turn.

    DeepSeek and Mistral mark it by `prefix` in the message, vLLM by `continue_final_message` in the request
    (https://api-docs.deepseek.com/guides/chat_prefix_completion).
    """
    marked = [message for message in messages if _boolean(message, "prefix")]
    last = messages[-1]
    if not marked and not goes_on:
        return None
    if last["role"] != "assistant" or any(message is not last for message in marked):
        raise ApiError("only the last message can be continued, and it must be from the assistant", param="messages")
    thoughts = [last[name] for name in REASONING_FIELDS if last.get(name) is not None]
    if not all(isinstance(thought, str) for thought in thoughts):
        raise ApiError(f"{' and '.join(REASONING_FIELDS)} must be strings", param="messages")
    return Begun(
        reasoning=_encodable(thoughts[0] if thoughts else "", f"messages[{len(messages) - 1}]"),
        answer=None if last.get("content") is None else content,
    )


def _schema(response_format: Any) -> str:
    """Return the JSON schema that the answer must follow; empty if it is free."""
    if response_format is None:
        return ""
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if not isinstance(kind, str) or kind not in FORMATS:
        raise ApiError(f"response_format.type must be one of {', '.join(FORMATS)}", param="response_format")
    for name in response_format.keys() - FORMATS[kind]:
        if response_format[name] is not None:
            shown = reprlib.repr(name)
            raise ApiError(
                f"response_format of type {kind} has no field {shown}; leave it out", param="response_format"
            )
    if kind == "text":
        return ""
    if kind == "json_object":
        schema = {"type": "object"} if response_format.get("schema") is None else response_format["schema"]
    else:
        described = response_format.get("json_schema")
        if isinstance(described, dict):
            _refuse_unknown(described, SCHEMA, "response_format.json_schema", param="response_format")
        schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(schema, dict):
        place = "schema" if kind == "json_object" else "json_schema.schema"
        raise ApiError(f"response_format.{place} must be an object", param="response_format")
    return json.dumps(schema)


def _prompts(value: Any, vocab_size: int) -> tuple[str | tuple[int, ...], ...]:
    """Read the prompts: a text, a list of texts, or the token ids of one prompt or of several."""
    several = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
    prompts: list[str | tuple[int, ...]] = []
    for prompt in several:
        if isinstance(prompt, str) and prompt:
            prompts.append(_encodable(prompt, "prompt"))
        elif isinstance(prompt, list) and prompt and all(type(i) is int and 0 <= i < vocab_size for i in prompt):
            prompts.append(tuple(prompt))
        else:
            message = (
                f"prompt must be a text, a list of texts, or token ids from 0 to {vocab_size - 1}; none may be empty"
            )
            raise ApiError(message, param="prompt")
    return tuple(prompts)


def _stop(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise ApiError(f"stop must be a text or a list of at most {MOST_STOPS} texts, none empty", param="stop")
    return tuple(stops)


def _encodable(text: str, place: str) -> str:
    """Refuse half a surrogate pair, which JSON can carry but no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ApiError(f"{place} must be Unicode text, without half a surrogate pair", param=place) from None
    return text


def _number(body: Mapping[str, Any], name: str, low: float, high: float, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ApiError(f"{name} ({reprlib.repr(value)}) must be a number between {low} and {high}", param=name)
    return float(value)


def _integer(body: Mapping[str, Any], name: str, low: int, high: int, default: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or not low <= value <= high:
        raise ApiError(f"{name} ({reprlib.repr(value)}) must be a whole number between {low} and {high}", param=name)
    return value


def _boolean(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(f"{name} ({reprlib.repr(value)}) must be true or false", param=name)
    return bool(value)
