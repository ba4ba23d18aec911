"""Servers refuse fields in many ways; a complaint about a value does not count as one."""

from __future__ import annotations

import json

import pytest
from httpx2 import Response

from distill.endpoints.servers.server_fields import ServerFields

BODY = {"model": "m", "messages": [], "max_tokens": 5, "temperature": 0.6, "top_p": 0.9, "seed": 1, "stream": False}


def error(message: str, **more: str) -> str:
    return json.dumps({"error": {"message": message, **more}})


REFUSALS = [
    (
        "max_tokens",
        400,
        error("Unsupported parameter: 'max_tokens' is not supported with this model.", param="max_tokens"),
    ),
    ("max_tokens", 400, error("'max_tokens' is not supported here. Use 'max_completion_tokens' instead.")),
    ("temperature", 400, error("Unsupported value: only the default (1) value is supported.", param="temperature")),
    ("temperature", 400, error("temperature is deprecated for this model")),
    ("top_p", 400, error("`temperature` and `top_p` cannot both be specified for this model. Please use only one.")),
    ("seed", 400, error("Unrecognized request argument supplied: seed")),
    ("seed", 400, error("property 'seed' is unsupported")),
    ("seed", 400, error('Invalid JSON payload received. Unknown name "seed": Cannot find field.')),
    (
        "seed",
        422,
        json.dumps({"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs …"}]}),
    ),
    ("seed", 422, json.dumps({"message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"]}]}})),
    ("seed", 400, "seed: this argument is not allowed"),
]
OTHERS = [
    (
        400,
        error("max_tokens is too large: 9000. This model supports at most 4096 completion tokens", param="max_tokens"),
    ),
    (400, error("This model's maximum context length is 4096 tokens. Please reduce max_tokens.")),
    (400, error("temperature must be between 0 and 2", param="temperature")),
    (400, error("the model 'm' is not supported by this endpoint", param="model")),
    (404, error("unknown model: m")),
    (400, error("unknown error" + " " * 300 + "in a request with seed, top_p, temperature and max_tokens")),
    (401, error("Unknown key; the request had seed 1")),
    (500, error("seed is not supported")),
    (400, "[" * 100_000),
    (400, ""),
]


@pytest.mark.parametrize(("field", "status", "text"), REFUSALS)
def test_a_refused_field_is_left_out_from_then_on(
    field: str, status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = ServerFields("http://host/v1")
    assert fields.refused(BODY, Response(status, text=text))
    assert fields.refused(BODY, Response(status, text=text)), "of requests in flight together each is asked again"
    fate = {"max_tokens": "sent as max_completion_tokens"}.get(field, "left out")
    assert capsys.readouterr().err == f"http://host/v1 refuses {field}; it is {fate} from now on\n"
    expected = {name: value for name, value in BODY.items() if name != field}
    if field == "max_tokens":
        expected["max_completion_tokens"] = 5
    assert fields.taken(BODY) == expected
    if "both" not in text:
        assert not fields.refused(fields.taken(BODY), Response(status, text=text)), "it is sent no more"


@pytest.mark.parametrize(("status", "text"), OTHERS)
def test_what_is_no_refusal_of_a_field_changes_nothing(
    status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = ServerFields("http://host/v1")
    assert not fields.refused(BODY, Response(status, text=text))
    assert fields.taken(BODY) == BODY and capsys.readouterr().err == ""
