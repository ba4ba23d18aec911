"""The servers of a teacher, and what a user says of them: addresses on the command line, or the rows of a file.

    url, model, weight, concurrency, requests_per_minute, tokens_per_minute, price_in, price_out, key

A file is JSONL, JSON, CSV or TSV with these columns, of which only `url` is needed. What a row lacks is what the
options say. All servers serve the same model; the first one gives the teacher its name
(`distill.endpoints.remote_teacher`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from distill.endpoints.remote_teacher import Endpoint, Serving
from distill.endpoints.servers.server import MOST_CONCURRENCY, ServerSettings
from distill.problems.files import TEXT_SUFFIXES, FileRow, file_parts, kind_of
from toolkit.errors import InputError, Unreachable
from toolkit.generation.endpoint import locate, parse_address
from toolkit.sources.model_names import is_endpoint
from toolkit.terminal import say

COLUMNS = tuple(one.name for one in fields(ServerSettings))
RANGES = {
    "weight": (0.001, 1000.0),
    "concurrency": (1, MOST_CONCURRENCY),
    "requests_per_minute": (0.001, math.inf),
    "tokens_per_minute": (1, math.inf),
    "price_in": (0.0, math.inf),
    "price_out": (0.0, math.inf),
}
"""The least and the most of each number; infinity itself is none."""


def teacher_of(serving: Serving, first: ServerSettings) -> Endpoint:
    """Return the teacher whose first server is this one, with its model; the others must serve the same.

    A server that does not answer now is expected to serve it. Raises `InputError` if one serves another model.
    """
    others = [_with_model(server, first) for server in serving.servers[1:]]
    return Endpoint(url=first.url, model=first.model, serving=replace(serving, servers=(first, *others)))


def is_server_list(argument: str) -> bool:
    """Whether a teacher argument is a file with servers."""
    return argument.endswith(TEXT_SUFFIXES) and Path(argument).is_file()


def servers_of(arguments: Sequence[str], options: Mapping[str, Any]) -> tuple[ServerSettings, ...]:
    """Return the servers of addresses, or of one file's rows; `options`: what they have unless a row says otherwise.

    Raises `InputError` that names the row.
    """
    if len(arguments) == 1 and is_server_list(arguments[0]):
        path = Path(arguments[0])
        if kind_of(path) == ".parquet":
            raise InputError(f"{path} must be a text file ({', '.join(TEXT_SUFFIXES)})")
        parts, _ = file_parts(path)
        found = [_of_row(row, options) for part in parts for row in part.rows]
        if not found:
            raise InputError(f"{path} has no row; write one for each server, with its url")
    else:
        found = [_server({"url": argument}, options, "--teacher") for argument in arguments]
    for number, server in enumerate(found):
        if any((server.url, server.model) == (other.url, other.model) for other in found[:number]):
            raise InputError(f"{server.url} is given twice as a teacher's server; leave one out, or raise its weight")
    return tuple(found)


def _of_row(row: FileRow, options: Mapping[str, Any]) -> ServerSettings:
    for column in row.values:
        if column not in COLUMNS:
            nearest = get_close_matches(column, COLUMNS, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known ones are {', '.join(COLUMNS)}"
            raise InputError(f"{row.where} has an unknown column {column!r}; {hint}")
    values = {column: value for column, value in row.values.items() if value not in (None, "")}
    if not isinstance(values.get("url"), str):
        raise InputError(f"{row.where} has no url; give the server's address, such as http://127.0.0.1:8000/v1")
    if not is_endpoint(values["url"]):
        raise InputError(f"{row.where} has the url {values['url']!r:.200}; it must begin with http:// or https://")
    return _server(values, options, row.where)


def _server(values: Mapping[str, Any], options: Mapping[str, Any], where: str) -> ServerSettings:
    url, named = parse_address(values["url"])
    found = {name: value for name, value in options.items() if value is not None} | dict(values) | {"url": url}
    if named and found.get("model", named) != named:
        raise InputError(f"{where} names two models, {named!r} and {found['model']!r}; keep one")
    found["model"] = str(named or found.get("model", ""))
    for name, (least, most) in RANGES.items():
        if name in found:
            found[name] = _number(found[name], name, least, most, where)
    if not isinstance(found.get("key", ""), str):
        raise InputError(f"{where} must name the environment variable with the key, not {found['key']!r}")
    return ServerSettings(**found)


def _number(value: Any, name: str, least: float, most: float, where: str) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    is_whole = name != "concurrency" or number == round(number) if math.isfinite(number) else False
    if not (math.isfinite(number) and least <= number <= most and is_whole):
        upper = "" if most == math.inf else f" to {most:g}"
        raise InputError(f"{where} has the {name} {value!r:.60}; it must be a number from {least:g}{upper}")
    return int(number) if name == "concurrency" else number


def _with_model(server: ServerSettings, first: ServerSettings) -> ServerSettings:
    if server.model:
        return server
    try:
        model = locate(server.url, server.key).model
    except Unreachable:
        say(f"{server.url} does not answer; it is expected to serve {first.model!r} later")
        model = first.model
    if model != first.model:
        raise InputError(
            f"{server.url} serves {model!r}, but the first server {first.model!r}; if that is the same model, say so: "
            f"{server.url}#{model}"
        )
    return replace(server, model=model)
