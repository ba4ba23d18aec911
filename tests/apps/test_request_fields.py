"""No field of a request is silently ignored: each is obeyed, known to change nothing, or refused by its name."""

from __future__ import annotations

import re
from typing import Any

import pytest

from apps.server.requests.fields import CHAT, HARMLESS, MESSAGE, NEUTRAL, PART, TEXT, THINKS
from apps.server.requests.protocol import NO_LIMIT, ApiError, model_of, read_chat_request, read_text_request
from tests.house.modules import ROOT

QUESTION = [{"role": "user", "content": "?"}]
WRONG = {"banana": 1}
"""What no field means anything by."""


def read(thinks: bool = False, /, **fields: Any) -> Any:
    model_of(fields.get("model"), ["tiny"])
    return read_chat_request({"messages": QUESTION, **fields}, fresh_seed=1, thinks=thinks)


def read_text(**fields: Any) -> Any:
    model_of(fields.get("model"), ["tiny"])
    return read_text_request({"prompt": "?", **fields}, fresh_seed=1, vocab_size=9)


def refusal(thinks: bool = False, /, **fields: Any) -> dict[str, Any]:
    with pytest.raises(ApiError) as caught:
        read(thinks, **fields)
    assert caught.value.status in (400, 404)
    return dict(caught.value.body["error"])


@pytest.mark.parametrize("name", CHAT)
def test_each_field_that_is_obeyed_is_read(name: str) -> None:
    assert str(refusal(**{name: WRONG})["param"]).startswith(name)


@pytest.mark.parametrize("name", TEXT)
def test_each_field_of_a_plain_completion_is_read(name: str) -> None:
    with pytest.raises(ApiError):
        read_text(**{name: WRONG})


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_field_that_nothing_obeys_is_refused_by_name_and_passes_where_it_asks_for_nothing(name: str) -> None:
    error = refusal(**{name: WRONG})
    assert (error["param"], error["code"]) == (name, "unsupported_parameter") and name in error["message"]
    plain = read().settings
    for value in (None, *NEUTRAL[name]):
        assert read(**{name: value}).settings == plain


@pytest.mark.parametrize(
    "fields",
    [
        {"presence_penalty": 0.1},
        {"frequency_penalty": -2},
        {"logit_bias": {"5": -100}},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "required"},
        {"reasoning_effort": "high"},
        {"reasoning_effort": "banana"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"modalities": ["text", "audio"]},
        {"echo": True},
        {"min_tokens": 5},
        {"typical_p": 0.9},
    ],
)
@pytest.mark.parametrize("thinks", [False, True])
def test_what_would_change_the_answer_is_refused(fields: dict[str, Any], thinks: bool) -> None:
    assert refusal(thinks, **fields)["param"] == next(iter(fields))


@pytest.mark.parametrize("name", THINKS)
def test_a_model_that_thinks_may_be_asked_to(name: str) -> None:
    for value in THINKS[name]:
        read(True, **{name: value})
    assert refusal(**{name: THINKS[name][-1]})["param"] == name


def test_what_clients_send_of_accounts_and_caches_is_taken() -> None:
    plain = read().settings
    for name in HARMLESS:
        assert read(**{name: "anything"}).settings == plain


@pytest.mark.parametrize(
    ("name", "near"), [("temperatur", "temperature"), ("max_token", "max_tokens"), ("mood", ""), ("\ud800", "")]
)
def test_a_name_that_nobody_knows_is_refused_with_the_nearest(name: str, near: str) -> None:
    error = refusal(**{name: 1})
    assert error["code"] == "unknown_parameter"
    assert f"did you mean {near}?" in error["message"] if near else "leave it out" in error["message"]
    assert str(error).encode()


def test_how_tokens_are_drawn_reaches_the_sampler_by_each_server_s_name() -> None:
    sampling = read(top_k=5, min_p=0.1, repetition_penalty=1.2).settings.sampling
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (5, 0.1, 1.2)
    assert read(repeat_penalty=1.3).settings.sampling.repetition_penalty == 1.3
    assert read(top_k=-1).settings.sampling.top_k == 0
    assert read_text(top_k=5).settings.sampling.top_k == 5


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_tokens": 7}, 7),
        ({"max_tokens": -1}, NO_LIMIT),
        ({"max_tokens": 5, "max_completion_tokens": -1}, NO_LIMIT),
        ({"max_tokens": -1, "max_completion_tokens": 5}, 5),
        ({}, NO_LIMIT),
    ],
)
def test_the_newer_name_of_the_limit_wins_and_minus_one_is_none(fields: dict[str, int], limit: int) -> None:
    assert read(**fields).settings.sampling.max_new_tokens == limit
    if fields:
        assert read_text(**fields).settings.sampling.max_new_tokens == limit


@pytest.mark.parametrize("value", [0, -2, 1.5, "5", True])
def test_another_limit_is_refused(value: Any) -> None:
    assert refusal(max_tokens=value)["param"] == "max_tokens"
    assert refusal(max_tokens=5, max_completion_tokens=value)["param"] == "max_completion_tokens"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"top_logprobs": 3, "logprobs": False}, "top_logprobs"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"stream_options": {"continuous_usage_stats": True}}, "stream_options"),
        ({"response_format": {"type": "text", "schema": {}}}, "response_format"),
        ({"response_format": {"type": "json_object", "schema": []}}, "response_format"),
        ({"response_format": {"type": "json_object", "json_schema": {}}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": []}}, "response_format"),
    ],
)
def test_a_field_is_refused_where_another_one_leaves_it_without_an_effect(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields)["param"] == param


def test_a_json_object_may_come_with_its_schema() -> None:
    schema = {"type": "object", "required": ["sum"]}
    wanted = {"type": "json_object", "schema": schema}
    assert '"required": ["sum"]' in read(response_format=wanted).schema
    assert read(response_format={"type": "json_object"}).schema == '{"type": "object"}'


@pytest.mark.parametrize(
    "name", ["tool_calls", "function_call", "tool_call_id", "audio", "images", "refusal", "tools", "contnet", "\ud800"]
)
def test_what_a_message_holds_beside_its_text_is_refused_unless_it_is_empty(name: str) -> None:
    message = {"role": "assistant", "content": "!", name: [{"id": "1"}]}
    assert refusal(messages=[*QUESTION, message, *QUESTION])["param"] == f"messages[1].{shown(name)}"
    empties: list[Any] = [None, [], ""]
    for empty in empties:
        read(messages=[*QUESTION, message | {name: empty}, *QUESTION])


def shown(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def test_what_changes_no_answer_may_stand_in_a_message_and_in_its_parts() -> None:
    given = {"role": "user", "content": [dict.fromkeys(PART, "x") | {"type": "text", "text": "?"}]}
    message = {name: "x" for name in MESSAGE if name not in ("role", "content", "prefix")} | given
    assert read(messages=[message]).messages == ({"role": "user", "content": "?"},)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "?", "txt": "!"}]}]},
            "messages[0].content[0].txt",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "grammar": "a"}}},
            "response_format",
        ),
        ({"stream_options": []}, "stream_options"),
        ({"stream_options": ""}, "stream_options"),
        ({"stream_options": False}, "stream_options"),
    ],
)
def test_what_stands_within_a_field_is_read_as_strictly(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields)["param"] == param


@pytest.mark.parametrize("name", ["model", "temperature", "seed", "stream", "max_tokens", "a" * 100_000])
def test_a_refusal_is_short_however_long_the_value(name: str) -> None:
    assert len(refusal(**{name: "x" * 100_000})["message"]) < 300


def test_the_table_for_readers_names_each_field() -> None:
    table = (ROOT / "docs" / "reference" / "server.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_0-9]+)`", table))
    assert {*CHAT, *TEXT, *HARMLESS, *NEUTRAL, *MESSAGE} <= named
