"""Finds a model's chat template in its folder, and renders messages with it.

Invariant: the text is that of transformers' `apply_chat_template`, or an `InputError` of one line says why there is
none. A template is a program that comes with a folder; `toolkit.formats.template_bounds` limits what it may do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from toolkit.errors import InputError
from toolkit.formats.message_fields import REASONING_FIELDS
from toolkit.formats.template_bounds import BoundedEnvironment, bounded
from toolkit.json_files import read_bytes
from toolkit.records import read_object

TEMPLATE_FILE = "chat_template.jinja"
NAMED_TEMPLATES = "additional_chat_templates"
PROCESSOR_TEMPLATE = "chat_template.json"
DEFAULT = "default"
MOST_SOURCE = 1_000_000
MOST_SAID = 500
"""The most characters of an error's reason, and of the form of a date."""


class ChatTemplate:
    """A compiled template; `clock` gives it the date."""

    def __init__(self, source: str, clock: Callable[[], datetime]) -> None:
        if len(source) > MOST_SOURCE:
            raise InputError(f"the chat template has {len(source):,} characters; it must have at most {MOST_SOURCE:,}")
        environment = BoundedEnvironment(extensions=[_GenerationTag, loopcontrols])
        environment.globals["strftime_now"] = lambda form: _day(clock(), form)
        try:
            with bounded(()):  # compiling evaluates constants
                self._template = environment.from_string(source)
        except Exception as error:  # whatever a program does
            raise InputError(
                f"the chat template must be valid Jinja: {_one_line(error)}; get the model's files again"
            ) from error

    def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, str], **switches: Any) -> str:
        """Render the prompt up to the model's turn; `variables`: texts of special tokens by name; `switches`: variables
        that the template looks at, such as `enable_thinking`, or `add_generation_prompt=False`.

        Raises `InputError` if the template refuses the messages, fails or does too much.
        """
        passed = [_as_passed(message) for message in messages]
        given = {**variables, "messages": passed, "tools": None, "documents": None, "add_generation_prompt": True}
        given |= switches
        try:
            with bounded(passed):
                return self._template.render(given)
        except Exception as error:  # whatever a program does
            raise InputError(f"the chat template cannot render {len(messages)} messages: {_one_line(error)}") from error


def read_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str:
    """Read the template that transformers' tokenizer of this folder uses: of several, the one named default.

    Raises `InputError` if there is none.
    """
    template = find_template(folder, tokenizer_config)
    if template is None:
        raise InputError(
            f"{folder} has no chat template ({TEMPLATE_FILE}); copy the one that the model was trained with"
        )
    return template


def find_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """Return the template that `read_template` reads, or None if there is none, as in a base model's folder."""
    files = {path.stem: path for path in sorted((folder / NAMED_TEMPLATES).glob("*.jinja"))}
    if (folder / TEMPLATE_FILE).is_file():
        files = {DEFAULT: folder / TEMPLATE_FILE, **files}
    found: Any = {name: _read(path) for name, path in files.items()} or tokenizer_config.get("chat_template")
    if found is None and (folder / PROCESSOR_TEMPLATE).is_file():
        found = read_object(folder / PROCESSOR_TEMPLATE).get("chat_template")
    if isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
        found = {entry.get("name"): entry.get("template") for entry in found}
    if isinstance(found, dict) and found and DEFAULT not in found:
        names = ", ".join(map(str, found))
        raise InputError(
            f"{folder} has several chat templates ({names}), but none named {DEFAULT}; rename the one to use"
        )
    template = found.get(DEFAULT) if isinstance(found, dict) else found
    return template if isinstance(template, str) else None


class _GenerationTag(Extension):
    """Renders the text of `{% generation %} … {% endgeneration %}`, which marks answers for training."""

    tags = {"generation"}  # noqa: RUF012 – Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return caller()


def _day(now: datetime, form: str) -> str:
    if len(form) > MOST_SAID:
        raise TemplateError(f"the form of a date must have at most {MOST_SAID} characters, not {len(form):,}")
    return now.strftime(form)


def _as_passed(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message as transformers passes it on: without fields that are None, and the thought by each name."""
    given = {name: value for name, value in message.items() if value is not None}
    thoughts = [given[name] for name in (REASONING_FIELDS[0], "thinking", *REASONING_FIELDS) if name in given]
    return {"thinking": thoughts[0], **given, REASONING_FIELDS[0]: thoughts[0]} if thoughts else given


def _one_line(error: Exception) -> str:
    said = " ".join(str(error).split())[:MOST_SAID]
    return said if isinstance(error, TemplateError) and said else f"{type(error).__name__} {said}".rstrip()


def _read(path: Path) -> str:
    content = read_bytes(path, 4 * MOST_SOURCE)
    try:
        return content.decode().replace("\r\n", "\n").replace("\r", "\n")
    except ValueError as error:
        raise InputError(f"{path} must be a chat template in UTF-8: {error}; get it again") from error
