"""R1's form around a template changes nothing inside: earlier thoughts are left out, and a prompt opens a thought."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from tests.toolkit.test_templates import CONVERSATIONS, NAMES, SHIPPED, USER
from toolkit.errors import InputError
from toolkit.formats.templates import ChatTemplate
from toolkit.formats.thought_forms import tagged
from toolkit.voice.reasoning_template import OPENING, with_reasoning

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}
THOUGHTS: dict[str, list[dict[str, Any]]] = {
    "an earlier thought": [USER, {"role": "assistant", "content": tagged("hm", "one\n </think> two")}, USER],
    "several": [USER, *([{"role": "assistant", "content": f" {tagged('hm', 'one')}"}, USER] * 3)],
    "a thought before a call": [
        USER,
        {"role": "assistant", "content": tagged("hm", "I add."), "tool_calls": [CALL]},
        {"role": "tool", "content": "1"},
    ],
}


@cache
def compiled(template: str) -> ChatTemplate:
    return ChatTemplate(template, datetime.now)


def written(template: str, messages: list[dict[str, Any]], **switches: Any) -> str | None:
    try:
        return compiled(template).render(messages, NAMES, **switches)
    except InputError:
        return None


def by_transformers(template: str, messages: list[dict[str, Any]]) -> str | None:
    given = [{name: value for name, value in message.items() if value is not None} for message in messages]
    try:
        rendered: Any = render_jinja_template([given], chat_template=template, add_generation_prompt=True, **NAMES)
    except (TemplateError, TypeError):
        return None
    return str(rendered[0][0])


def answered(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if message["role"] != "assistant" or not isinstance(content, str) or not content.lstrip().startswith("<think>"):
        return message
    return message | {"content": content.partition("</think>")[2].lstrip()}


@pytest.mark.parametrize("path", [path for path in SHIPPED if "training" not in path.stem], ids=lambda path: path.stem)
def test_the_template_inside_writes_what_it_writes_alone(path: Any) -> None:
    own = path.read_text(encoding="utf-8")
    template = with_reasoning(own)
    for messages in [CONVERSATIONS["system"], CONVERSATIONS["an answer last"], *THOUGHTS.values()]:
        plain = [answered(message) for message in messages]
        alone = written(own, plain)
        expected = None if alone is None else alone + OPENING
        assert written(template, messages) == expected
        assert by_transformers(template, messages) == expected
        assert written(template, messages, add_generation_prompt=False) == written(
            own, plain, add_generation_prompt=False
        )
        with_tools = written(own, plain, tools=[TOOL])
        assert written(template, messages, tools=[TOOL]) == (None if with_tools is None else with_tools + OPENING)


@pytest.mark.parametrize(
    "own",
    [
        "  {% if true %}x{% endif %}\n",
        "\n\n{{ messages[0].content }}\n\n",
        "{{ messages | length }}\n  ",
        "{#- nothing -#}\n {%- set x = 1 -%} {{ x }} {%- if x %} {% endif %}\n",
        "{% macro said() %}{{ messages[0].content }}{% endmacro %}{{ said() }}",
        "{% set messages = messages[1:] %}{{ messages }}",
        "",
        "{{ content }}{{ turn }}{{ message }}",
    ],
)
def test_white_space_and_names_at_the_edges_stay(own: str) -> None:
    alone = written(own, [USER])
    assert alone is not None
    assert written(with_reasoning(own), [USER]) == by_transformers(with_reasoning(own), [USER]) == alone + OPENING


def test_llama_cpp_sees_that_the_model_thinks() -> None:
    source = with_reasoning("{{ messages[0].content }}")
    assert "content.split('</think>')" in source and "reasoning_content" not in source


def test_a_long_conversation_stays_within_the_bounds() -> None:
    turn = [USER, {"role": "assistant", "content": tagged("hm " * 100, "one " * 50)}]
    messages = [*turn * 150, {"role": "user", "content": "word <b> " * 100_000}]
    own = "{% for message in messages %}{{ message.content }}{% endfor %}"
    text = written(with_reasoning(own), messages)
    assert text is not None and "hm" not in text
