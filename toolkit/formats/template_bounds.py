"""Provides a Jinja environment in which a template can neither run forever nor fill the memory.

Jinja's sandbox keeps a template away from files and from Python. In addition, each round of a loop, each call and each
`CHARACTERS_A_STEP` characters that are made or looked through cost a step here, nothing may grow past
`MOST_CHARACTERS`, and filters and methods that a prompt never needs, or whose growth cannot be seen, are removed.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MOST_STEPS = 1_000_000
"""The steps of one rendering, plus one for each character given, and the number of messages squared, since some
templates look back from each."""
CHARACTERS_A_STEP = 64
CALL_STEPS = 8
MOST_CHARACTERS = 32_000_000
MOST_DEPTH = 64
MOST_BITS = 4096

TEXT_METHODS = """
    capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal isdigit islower
    isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind
    rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper
"""
FILTERS = """
    abs attr capitalize count d default dictsort e escape first float format groupby indent int items join
    last length list lower map max min reject rejectattr replace reverse round safe select selectattr sort
    string sum title tojson trim truncate unique upper wordcount
"""
_AT_ONCE = ("length", "count", "first", "last", "default", "d")
"""Filters that do not look through their value."""
BY_ITEMS = "groupby list map max min reject rejectattr select selectattr sort sum title unique wordcount"
"""Filters that treat a text character by character."""
COMPARING = "eq equalto == ne != gt greaterthan > ge >= lt lessthan < le <= in lower upper"
"""Tests that look through their value; the others look only at its type."""
_METHODS = frozenset(TEXT_METHODS.split())
_WIDTH = re.compile(r"\d{4}|\*|:[^{}]*\{")
"""A width in a format that makes a short text long, or that is an argument."""
_ROUNDS, _BUILT, _READ, _JOINED = "_rounds", "_built", "_read", "_joined"
"""Filters that `_Counting` puts into a template's tree."""


class Work:
    """Counts what one rendering may still do."""

    def __init__(self, given: Sequence[Any]) -> None:
        self._known: dict[int, tuple[Any, int, int]] = {}
        self._left = MOST_STEPS + len(given) ** 2
        self._left += self.size(given)

    def charge(self, characters: int, steps: int = 1) -> None:
        self._left -= steps + characters // CHARACTERS_A_STEP
        if self._left < 0:
            raise TemplateError(f"it must end within {MOST_STEPS:,} steps; it needs more")

    def grow(self, characters: int) -> None:
        """Pay for a text, or a value of such a size, before it is made."""
        if characters > MOST_CHARACTERS:
            raise TemplateError(f"a value must have at most {MOST_CHARACTERS:,} characters, not {characters:,}")
        self.charge(characters)

    def read(self, value: Any) -> Any:
        """Pay for looking through a value: for its characters, or for its entries and everything in them."""
        if isinstance(value, str):
            self.charge(len(value))
        elif isinstance(value, list | tuple | dict | range):
            self.charge(self.size(value), 1 + len(value))
        else:
            self.charge(0)
        return value

    def built(self, value: Any) -> Any:
        """Pay for a value that was made."""
        if (size := self.size(value)) > MOST_CHARACTERS:
            self.grow(size)
        return self.read(value)

    def size(self, value: Any) -> int:
        """Return the characters of a text, or of everything in a list, counted as often as it occurs."""
        return self._measure(value)[0]

    def _measure(self, value: Any) -> tuple[int, int]:
        """Return the size of a value, and how deep lists are nested in it."""
        if isinstance(value, str):
            return len(value), 0
        if isinstance(value, int):
            if value.bit_length() > MOST_BITS:
                raise TemplateError(f"a number must have at most {MOST_BITS:,} bits, not {value.bit_length():,}")
            return 1, 0
        if not isinstance(value, list | tuple | dict):
            return 1, 0
        if known := self._known.get(id(value)):  # nothing in a template changes a list
            return known[1:]
        measures = [self._measure(part) for part in value]
        if isinstance(value, dict):
            measures += [self._measure(part) for part in value.values()]
        size, depth = sum(size + 1 for size, _ in measures), 1 + max((depth for _, depth in measures), default=0)
        if depth > MOST_DEPTH:
            raise TemplateError(f"lists must be nested at most {MOST_DEPTH} deep")
        self._known[id(value)] = (value, size, depth)  # kept, so that no other value gets its id
        return size, depth


_WORK: ContextVar[Work] = ContextVar("work")


@contextmanager
def bounded(given: Sequence[Any]) -> Iterator[None]:
    """Within this context, rendering may take the steps that one rendering of `given` may take."""
    before = _WORK.set(Work(given))
    try:
        yield
    finally:
        _WORK.reset(before)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with the names that transformers gives a template, in which every operation costs steps."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, extensions: Sequence[type[Extension]]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=_shown)
        self.globals = {
            "range": safe_range,
            "dict": _dict,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
        }
        self.filters["tojson"] = _tojson
        self.filters = {
            name: _paid(name, function) for name, function in self.filters.items() if name in FILTERS.split()
        }
        tests: dict[str, Any] = dict(self.tests)
        self.tests |= {name: _paid_test(tests[name]) for name in COMPARING.split()}
        self.filters |= {_ROUNDS: _rounds, _BUILT: _built, _READ: _read_through, _JOINED: _joined}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counting().visit(Parser(self, source, name, filename).parse())
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in _METHODS
        return not isinstance(obj, int | float | bytes) and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        work = _WORK.get()
        if operator == "%" and isinstance(left, str):
            _check_format(left, right)
        elif operator == "**":
            work.grow(0 if abs(right) * max(1, _bits(left)) <= MOST_BITS else MOST_CHARACTERS + 1)
        elif operator == "*" and isinstance(left, int) and isinstance(right, int):
            work.grow(0 if _bits(left) + _bits(right) <= MOST_BITS else MOST_CHARACTERS + 1)
        elif operator == "*":
            times, many = (left, right) if isinstance(left, int) else (right, left)
            work.grow(work.size(many) * times if isinstance(times, int) else 0)
        elif operator == "+":
            work.grow(work.size(left) + work.size(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        work = _WORK.get()
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        work.charge(0, CALL_STEPS)
        for value in (owner, *args, *kwargs.values()):
            work.read(value)
        if isinstance(owner, str):
            args = _checked(obj.__name__, owner, args, kwargs)
        elif isinstance(obj, LoopContext) and args:  # a loop that calls itself
            args = (_rounds(args[0], 0), *args[1:])
        return work.built(super().call(context, obj, *args, **kwargs))


class _Counting(NodeTransformer):
    """Wraps parts of a template's tree that call nothing in filters that count their steps."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        texts = sum(len(text.data) for text in node.find_all(nodes.TemplateData))
        texts += sum(len(const.value) for const in node.find_all(nodes.Const) if isinstance(const.value, str))
        node.iter = _filtered(node.iter, _ROUNDS, nodes.Const(texts))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes), _JOINED)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return _filtered(self.generic_visit(node), _BUILT)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return _filtered(self.generic_visit(node), _BUILT)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, _BUILT) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _filtered(node, _BUILT)
        return _looking(node, "arg")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        return _looking(self.generic_visit(node), "expr")

    def visit_Operand(self, node: nodes.Operand) -> nodes.Node:
        return _looking(self.generic_visit(node), "expr")


class _Namespace(Namespace):
    """Jinja's namespace, but it neither shows what it holds nor takes names that begin with an underscore."""

    def __repr__(self) -> str:
        return "<Namespace>"

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace takes no name that begins with an underscore, such as {name}")
        super().__setitem__(name, value)


def _filtered(node: Any, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _looking(node: Any, part: str) -> nodes.Node:
    """Make a node pay for looking through one of its parts."""
    looked_at = getattr(node, part)
    if not isinstance(looked_at, nodes.Const):
        setattr(node, part, _filtered(looked_at, _READ))
    found: nodes.Node = node
    return found


def _rounds(value: Any, texts: int) -> Iterator[Any]:
    """Yield the rounds of a loop, each of which may write `texts` characters of the template."""
    charge = _WORK.get().charge
    for item in value:
        charge(texts)
        yield item


def _built(value: Any) -> Any:
    return _WORK.get().built(value)


def _read_through(value: Any) -> Any:
    return _WORK.get().read(value)


def _joined(values: list[Any]) -> str:
    """Join values as `~` does."""
    work = _WORK.get()
    work.grow(sum(map(work.size, values)))
    return "".join(map(str, values))


def _shown(value: Any) -> Any:
    """Pay for the value that an expression prints."""
    work = _WORK.get()
    work.charge(work.size(value))
    return value


def _paid(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a filter pay for what it reads and makes."""
    place = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        work = _WORK.get()
        value, rest = args[place], args[place + 1 :]
        for given in (*([] if name in _AT_ONCE else [value]), *rest, *kwargs.values()):
            work.read(given)
        if isinstance(value, Iterator):
            value = _rounds(value, 0)
        elif name in BY_ITEMS.split() and isinstance(value, str):
            work.charge(0, len(value))
        if name == "join":
            (value,) = _checked(name, str(kwargs.get("d", rest[0] if rest else "")), (value,), {})
        else:
            _checked(name, value, rest, kwargs)
        return work.built(function(*args[:place], value, *rest, **kwargs))

    return filtered


def _paid_test(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a test pay for what it looks through."""

    @functools.wraps(function)
    def tested(*args: Any) -> Any:
        for value in args:
            _WORK.get().read(value)
        return function(*args)

    return tested


def _checked(name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Pay for the result of a method or filter that may be larger than its value; return its arguments."""
    work = _WORK.get()
    match name, args:
        case "replace", (str() as old, str() as new, *_):
            work.grow(len(value) + str(value).count(old) * len(new))
        case "replace", _:
            raise TemplateError("replace needs two texts")
        case "join", (items, *rest):
            items = list(_rounds(items, 0))
            work.grow(work.size(items) + len(value) * len(items))
            return (items, *rest)
        case "strip" | "lstrip" | "rstrip" | "trim", (str() as characters, *_):
            work.charge(len(value) * len(characters))  # each is compared with all of these
        case "split" | "rsplit", (str() as separator, *_) if separator:
            work.charge(0, value.count(separator))
        case "split" | "rsplit" | "splitlines", _:
            work.charge(0, len(value) // 2)
        case "format", _:
            _check_format(str(value), (*args, *kwargs.values()))
        case "indent", _:
            width = kwargs.get("width", args[0] if args else 4)
            work.grow((1 + str(value).count("\n")) * (width if isinstance(width, int) else len(width)))
        case "tojson", _:
            indent = kwargs.get("indent", args[1] if len(args) > 1 else None) or 0
            width = indent if isinstance(indent, int) else len(indent)
            between = sum(map(len, kwargs.get("separators") or ()))
            work.grow(work.size(value) * (1 + between + width * MOST_DEPTH if width or between else 1))
        case "round", _:
            if not -MOST_DEPTH < kwargs.get("precision", args[0] if args else 0) < MOST_DEPTH:
                raise TemplateError(f"round needs a precision below {MOST_DEPTH}")
        case "sum", _:
            if not isinstance(kwargs.get("start", args[1] if len(args) > 1 else 0), int | float):
                raise TemplateError("the start of sum must be a number")
    return args


def _check_format(form: str, values: Any) -> None:
    if _WIDTH.search(form):
        raise TemplateError("a width in a format must have at most 3 digits")
    work = _WORK.get()
    work.grow(len(form) + (form.count("%") + form.count("{")) * (1000 + work.size(values)))


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 1


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Write JSON as transformers' filter does; Jinja's own escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
