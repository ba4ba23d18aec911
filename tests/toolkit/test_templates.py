"""Chat templates: transformers' text, found where transformers finds it, and no end without a line."""

from __future__ import annotations

import json
import os
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import trl
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.formats.templates import ChatTemplate, read_template

SHIPPED = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
DAY = datetime(2031, 2, 3)

USER = {"role": "user", "content": " 1 < 2?\n"}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "question": [USER],
    "system": [{"role": "system", "content": "Be  brief, <b>é</b> & 你好.\n"}, USER],
    "turns": [USER, {"role": "assistant", "content": " one\n"}, USER, {"role": "assistant", "content": "two"}, USER],
    "thoughts": [USER, {"role": "assistant", "reasoning_content": "hm", "content": "one"}, USER],
    "thoughts by another name": [USER, {"role": "assistant", "reasoning": "hm", "content": "one"}, USER],
    "thoughts of nobody": [USER, {"role": "assistant", "thinking": None, "content": "one", "tool_calls": None}, USER],
    "thoughts in the text": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\none"}, USER],
    "an answer last": [USER, {"role": "assistant", "reasoning_content": "hm", "content": "one"}],
    "words for the template": [{"role": "system", "content": "/no_think\nBe kind."}, USER],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
}
OWN = (
    (
        "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{% "
        "if not m.content %}{% continue %}{% endif %}"
        "{% generation %}{{ m.role ~ ': ' ~ m.content }}{% endgeneration %}{% endfor %}"
    ),
    (
        "{{ messages | tojson }}{{ {'é': ['<b>', 1.5, none]} | tojson(indent=2) "
        "}}{{ [2, 1] | tojson(separators=(',', ':')) }}"
    ),
    (
        "{{ tools is defined }}{{ tools is none }}{{ documents is defined }}{{ "
        "pad_token }}{{ unknown }}{{ add_generation_prompt }}"
    ),
    "{% macro say(x, y='') %}<{{ x | upper }}{{ y }}>{% endmacro %}{{ say('a') }}{% call(z) say('b') %}{% endcall %}",
    (
        "{% set ns = namespace(n=0, s='') %}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}"
        "{% set ns.s = ns.s ~ m.role[:1] + '%s' % ns.n %}{% endfor %}{{ ns.s }}{{ '{:>3}|{}'.format(ns.n, 'x') }}"
    ),
    "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}",
    (
        "{% set x %}{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}={{ v }};{% "
        "endfor %}{% endset %}{{ x | replace('=', '<') }}"
    ),
    (
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') "
        "| join('|') | trim }}{{ 7 % 4 ** 2 }}"
    ),
    "{{ raise_exception('no ' ~ messages | length) }}",
    "{{ messages[9].content.strip() }}",
)


def theirs(messages: list[dict[str, Any]], template: str) -> str | None:
    given = [{name: value for name, value in message.items() if value is not None} for message in messages]
    try:
        rendered: Any = render_jinja_template([given], chat_template=template, add_generation_prompt=True, **NAMES)
    except (TemplateError, TypeError):
        return None
    return str(rendered[0][0])


def ours(messages: list[dict[str, Any]], template: str) -> str | None:
    compiled = ChatTemplate(template, datetime.now)
    try:
        return compiled.render(messages, NAMES)
    except InputError as error:
        assert "cannot render" in str(error) and "\n" not in str(error)
        return None


def test_trl_ships_its_templates() -> None:
    assert len(SHIPPED) > 60


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_template_that_trl_ships_renders_as_in_transformers(path: Path) -> None:
    template = path.read_text()
    for name, messages in CONVERSATIONS.items():
        assert ours(messages, template) == theirs(messages, template), name


@pytest.mark.parametrize("template", OWN)
def test_whatever_templates_use_renders_as_in_transformers(template: str) -> None:
    for name, messages in CONVERSATIONS.items():
        assert ours(messages, template) == theirs(messages, template), name


def test_a_template_is_told_the_day() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", lambda: DAY)
    assert template.render([USER], {}) == "03 Feb 2031"
    assert ours([USER], "{{ strftime_now('%Y') }}") == theirs([USER], "{{ strftime_now('%Y') }}")


def test_the_template_is_found_where_transformers_finds_it(tiny_student: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tiny_student / "tokenizer.json").read_bytes())
    config = json.loads((tiny_student / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "in a list"}]

    def found() -> str:
        ours = ChatFormat.from_folder(tmp_path).template
        assert ours == AutoTokenizer.from_pretrained(tmp_path).get_chat_template()
        return ours

    for template, expected in (("alone", "alone"), (named, "in a list")):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
        assert found() == expected
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "default.jinja").write_text("in a folder")
    assert found() == "in a folder"
    (tmp_path / "additional_chat_templates" / "default.jinja").rename(
        tmp_path / "additional_chat_templates" / "rag.jinja"
    )
    (tmp_path / "chat_template.jinja").write_text("in a file\r\n")
    assert found() == "in a file\n"


def test_a_processors_template_serves_where_the_tokenizer_has_none(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text('{"chat_template": "a processor\'s"}')
    assert read_template(tmp_path, {}) == "a processor's"
    assert read_template(tmp_path, {"chat_template": "a tokenizer's"}) == "a tokenizer's"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_template_that_is_no_file_or_has_no_end_is_refused(tiny_student: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_student, tmp_path / "student"))
    named = folder / "additional_chat_templates"
    named.mkdir()
    os.mkfifo(named / "default.jinja")
    with pytest.raises(InputError, match=r"default.jinja must be a regular file"):
        read_template(folder, {})
    (named / "default.jinja").unlink()
    os.truncate(folder / "chat_template.jinja", 2**32)
    with pytest.raises(InputError, match=r"chat_template.jinja has 4294967296 bytes, more than"):
        read_template(folder, {})


def test_templates_without_a_default_are_refused_by_their_names(tmp_path: Path) -> None:
    config = {"chat_template": [{"name": "tool_use", "template": ""}, {"name": "rag", "template": ""}]}
    with pytest.raises(InputError, match=r"has several chat templates \(tool_use, rag\), but none named default"):
        read_template(tmp_path, config)


DOUBLED = "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = OP %}{% endfor %}{{ ns.s }}"
DOUBLING = (
    "ns.s + ns.s",
    "ns.s ~ ns.s",
    "[ns.s, ns.s] | join",
    "ns.s.join([ns.s, ns.s])",
    "ns.s.replace('a', ns.s)",
    "ns.s | replace('a', ns.s)",
    "'%s%s' % (ns.s, ns.s)",
    "'{0}{0}'.format(ns.s)",
    "'%s%s' | format(ns.s, ns.s)",
    "[ns.s, ns.s]",
    "(ns.s, ns.s)",
    "{'a': ns.s, 'b': ns.s}",
    "dict(a=ns.s, b=ns.s)",
    "[ns.s, ns.s] | tojson",
    "('a\\n' ~ ns.s) | indent(ns.s | length)",
)
BIG = "{% set s = 'ab' * 8000000 %}{% for i in range(100000) %}OP{% endfor %}"
DEEP = (
    "{% set p = 'x' * 2 %}{% set q = 'x' ~ 'x' %}{% set a = [[p] * 1000] * 3000 %}{% set b = [[q] * 1000] * 3000 %}"
    "{% set t = ((p,) * 1000,) * 1000 %}{% set d = {} %}{% for i in range(9999) %}OP{% endfor %}"
)
"""Lists and tuples of a million entries, most of them the same one."""
RUNAWAYS = {
    **{operation: DOUBLED.replace("OP", operation) for operation in DOUBLING},
    **{
        operation: BIG.replace("OP", operation)
        for operation in (
            "{{ s }}",
            "{{ 'q' in s }}",
            "{{ s.find('q') }}",
            "{{ s[1:] }}",
            "{{ 'q' is in(s) }}",
            "{{ s is eq(s ~ 'a') }}",
            "{{ s is lower }}",
            "{{ loop.changed(s) }}",
            "{{ ['q'] | select('in', s) | list }}",
            "{{ [{'a': 'q'}] | selectattr('a', 'in', s) | list }}",
            "{{ [s ~ 'a'] == [s ~ 'b'] }}",
            "{{ (s | title | length, s | wordcount) }}",
            "{{ s.split('a') | length }}",
            "{{ s.strip(s) }}",
            "{{ s | trim(s) }}",
            "{{ s | list | length }}",
        )
    },
    **{
        operation: DEEP.replace("OP", operation)
        for operation in (
            "{{ a == b }}",
            "{{ [a] is eq([b]) }}",
            "{{ [a, b] | sort | length }}",
            "{{ [a].index(b) }}",
            "{{ {t: 1} | length }}",
            "{{ d.get(t) }}",
            "{{ d[t] }}",
            "{{ t in d }}",
            "{{ [t] | unique | list | length }}",
        )
    },
    "quotient": "{{ (('f' * 3000000) | int(0, 16)) // (('7' * 1500000) | int(0, 16)) }}",
    "remainder": "{{ (('f' * 3000000) | int(0, 16)) % (('7' * 1500000) | int(0, 16)) }}",
    "form of a day": "{{ strftime_now('%A' * 1000000) }}",
    "loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "lists": "{% for i in range(100000) %}{% set x = range(100000) | list %}{% endfor %}",
    "text in loops": "{% for i in range(100000) %}" + "x" * 100_000 + "{% endfor %}",
    "recursion": (
        "{% for x in range(99999) recursive %}{% if loop.depth < 9 %}{{ loop(range(99999)) }}{% endif %}{% endfor %}"
    ),
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "product": "{{ 'a' * 2000000000 }}",
    "product the other way": "{{ 2000000000 * 'a' }}",
    "product of lists": "{{ ([1] * 2000000000) | length }}",
    "power": "{{ 2 ** (2 ** 40) }}",
    "squares": DOUBLED.replace("'ab'", "3").replace("OP", "ns.s * ns.s"),
    "range": "{{ range(1000000000) | list }}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "width": "{{ '%2000000000d' % 1 }}",
    "width of a format": "{{ '{:>2000000000}'.format('a') }}",
    "width as an argument": "{{ '{:{}}'.format('a', 2000000000) }}",
    "center": "{{ 'a' | center(2000000000) }}",
    "ljust": "{{ 'a'.ljust(2000000000) }}",
    "indent": "{{ 'a\nb' | indent(2000000000) }}",
    "JSON": "{{ [1] | tojson(indent=2000000000) }}",
    "bytes": "{{ (1).to_bytes(2000000000, 'big') }}",
    "round": "{{ 1.5 | round(2000000000, 'ceil') }}",
    "deep lists": (
        "{% set ns = namespace(s=[]) %}{% for i in range(9999) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}"
    ),
    "deep blocks": "{% if 1 %}" * 200 + "{% endif %}" * 200,
    "deep brackets": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "long source": "x" * 2_000_000,
    "division": "{{ 1 / 0 }}",
    "types": "{{ 1 + 'a' }}",
    "another file": "{% include '/etc/passwd' %}",
    "Python": "{{ ''.__class__.__mro__ }}",
    "lines": "{{ raise_exception('a\n\nb') }}",
}


@pytest.mark.parametrize("name", RUNAWAYS)
def test_a_template_that_does_too_much_or_fails_is_one_line(name: str) -> None:
    with pytest.raises(
        InputError, match=r"the chat template (cannot render 1 messages|must be valid Jinja|has ).+"
    ) as refused:
        ChatTemplate(RUNAWAYS[name], datetime.now).render([{"role": "user", "content": "?"}], {})
    assert re.fullmatch(r"[^\n]{1,700}", str(refused.value))


def test_a_long_conversation_is_within_the_bounds() -> None:
    messages = CONVERSATIONS["turns"] * 200 + [{"role": "user", "content": "word <b> " * 100_000}]
    for path in SHIPPED:
        if path.stem in ("qwen3", "gptoss", "deepseek_r1_distill", "llama3_2"):
            template = path.read_text()
            assert ours(messages, template) == theirs(messages, template)
