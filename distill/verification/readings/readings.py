r"""Reads references and answers: their kind and their meaning.

    "#### 1,200"            ──read_reference──>  number 1200
    "It costs $1,200.00."   ──read_answer────>   number $1,200.00 (a number is sought because the reference is one)

The reference's kind decides how an answer is read, its value never does: the reading does not depend on what is right.
What cannot be read in that way is "nothing", with a reason for people.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

from distill.verification.mathematics.atoms import SCALES, Tree
from distill.verification.mathematics.grammar import read_notation
from distill.verification.mathematics.tokens import NeedsLibrary, Unreadable
from distill.verification.mathematics.units import read_unit
from distill.verification.mathematics.values import letters_of, value_of
from distill.verification.readings import calendar_strings, strings
from distill.verification.readings.bare_results import bare_result, remainder_in, without_label
from distill.verification.readings.choices import LETTERS, choice_in, choice_of, choices_in, choices_of
from distill.verification.readings.parts import parts_of
from toolkit.answers.final_answer import FinalAnswer, find_final_answer
from toolkit.answers.number_notation import number_in_words
from toolkit.answers.plain_text import plain_text, without_emphasis
from toolkit.answers.qualifiers import says_another
from toolkit.answers.sentences import Unclear, number_said, without_delimiters

Kind = Literal[
    "number",
    "mathematics",
    "library",
    "choice",
    "date",
    "time",
    "truth",
    "choices",
    "parts",
    "code",
    "words",
    "list",
    "data",
    "lines",
    "nothing",
]


@dataclass(frozen=True)
class Reading:
    """The meaning of a text, to be compared by its `kind`."""

    kind: Kind
    said: str
    """The text for people; for "nothing" the reason."""
    meaning: Any = None
    """A tree of mathematics, a date, a letter with its option's text …"""
    others: tuple[Any, ...] = ()
    """For an answer in words, shorter texts within its sentence that may be the answer; for `18 \\bmod 5`, 3."""

    def __str__(self) -> str:
        return f"{self.kind}: {' '.join(self.said.split())[:200]}"


@lru_cache(maxsize=4_096)
def read_reference(text: str) -> Reading:
    """Read what a right answer must mean, from any published form."""
    found = find_final_answer(text)
    if found.place in ("tag", "box", "####") or _STATED.match(text):
        text = found.text
    plain = plain_text(text).strip()
    if len(plain) > 2 and plain[0] == plain[-1] == "`":
        plain = plain.strip("`")
    if parts := parts_of(plain):
        return Reading("parts", plain, tuple(map(read_reference, parts)))
    if "\n" in plain and r"\begin" not in plain:
        return Reading("lines", plain, _lines(plain))
    bare = strings.without_style(plain) if re.fullmatch(r"\$?\\(?:text|mathrm|mbox)\w*\{[^{}]*\}\$?", plain) else plain
    return _string(bare) or _mathematics(bare) or _words(bare)


@lru_cache(maxsize=4_096)
def read_as_list(text: str) -> Reading | None:
    """Read a reference such as `-2,1`, which may also be a decimal number, as a list; None if it is not a list."""
    text = without_delimiters(plain_text(text))
    if not re.fullmatch(r"-?\d+,(?:\d{1,2}|\d{4,})", text):
        return None
    return Reading("mathematics", text, read_notation(text, commas=False))


@lru_cache(maxsize=4_096)
def read_answer(text: str, reference: Reading, question: str = "") -> Reading:
    """Read an answer by the reference's kind alone, whatever the reference's value is."""
    found = find_final_answer(text)
    if reference.kind == "parts":
        parts = parts_of(found.rest if found.is_stated else plain_text(text)) or parts_of(plain_text(text))
        return Reading("parts", found.text, parts) if parts else Reading("nothing", f"no parts in {found.text!r}")
    if reference.kind == "lines":
        whole = found.rest if found.is_stated else plain_text(text)
        return Reading(
            "lines", found.text, _lines(without_emphasis(whole)), tuple(_last_lines(text, len(reference.meaning)))
        )
    if not found.text and reference.kind != "data":
        return Reading("nothing", "no final answer")
    match reference.kind:
        case "number":
            return _number_said(found, question)
        case "mathematics" | "library":
            return _mathematics_said(
                found, is_list=reference.kind == "mathematics" and reference.meaning[0] == "sequence"
            )
        case "choice":
            letter = choice_in(found.text, question)
            if letter is None:
                letter = choice_in((text.strip().split("\n") or [""])[-1], question)
            if letter == "":
                return Reading("nothing", f"more than one letter in {found.text!r}")
            return Reading("choice", found.text, (letter, found.text))
        case "choices":
            return Reading("choices", found.text, choices_in(found.text))
        case "date" | "time":
            finder = calendar_strings.dates_in if reference.kind == "date" else calendar_strings.times_in
            named = finder(found.text) or finder(found.rest.strip().split("\n")[-1])  # "4. Juli" begins like a list
            if strings.says_otherwise(found.text) or _BESIDE_A_DAY.search(found.text):
                named = set()
            if len(named) != 1 or re.search(r"\b(?:between|or)\b", found.text):
                return Reading("nothing", f"{len(named)} {reference.kind}s in {found.text!r}")
            return Reading(reference.kind, found.text, named.pop())
        case "truth":
            truth = strings.truth_in(found.text)
            return (
                Reading("nothing", f"neither yes nor no in {found.text!r}")
                if truth is None
                else Reading("truth", found.text, truth)
            )
        case "code":
            return _code_said(found)
        case "data":
            value = strings.data_in(found.rest if found.is_stated else text)
            if value is None:
                value = next(filter(None, map(strings.list_of, strings.said_in(found.text))), None)
            if value is None or strings.says_otherwise(re.split(r"[\[{(]", found.text)[0]):
                return Reading("nothing", f"no data in {found.text!r}")
            return Reading("data", found.text, _written(value))
        case "list":
            listed = strings.listed_lines(found.rest if found.is_stated else text)
            lists = [tuple(items) for items in (listed, *map(strings.list_of, strings.said_in(found.text))) if items]
            if not lists:
                return Reading("nothing", f"no list in {found.text!r}")
            return Reading("list", found.text, lists[0 if listed else -1], tuple(lists))
    shorter = tuple(filter(None, map(strings.plain_words, strings.said_in(found.text))))
    if _EMPTY_SET.fullmatch(without_delimiters(found.text).rstrip(". ")):
        shorter += _NO_SOLUTION
    return Reading("words", found.text, min(shorter, key=len, default=""), shorter)


_EMPTY_SET = re.compile(r"(?:[A-Za-z]\s*(?:=|\\in)\s*)?(?:\\emptyset|\\varnothing|\\\{\s*\\\})\s*")
_NO_SOLUTION = ("no solution", "no solutions", "no real solution", "no real solutions", "empty set")
"""An empty set in words."""
_BESIDE_A_DAY = re.compile(
    r"\b(?:before|after|by|until|since|no (?:later|earlier) than|earlier than|later than|plus|minus)\b", re.IGNORECASE
)
"""Words that change a date or a time."""
_STATED = re.compile(
    r"\s*(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is|:)[^\n]*\Z",
    re.IGNORECASE,
)
"""A reference in a sentence that states it."""


# References


def _string(text: str) -> Reading | None:
    """Read what must not be read as mathematics although it looks like it."""
    if letters := choices_of(text):
        return Reading("choices", text, letters)
    if choice := choice_of(text):
        letter, content = choice
        if text.strip("$ ").startswith(("(", "\\", *LETTERS)) and (text.strip(" .)($\\").isupper() or content):
            return Reading("choice", text, (letter, _content(content)))
    if day := calendar_strings.date_of(text):
        return Reading("date", text, day)
    if moment := calendar_strings.time_of(text):
        return Reading("time", text, moment)
    if (truth := strings.truth_of(text)) is not None:
        return Reading("truth", text, truth)
    if _is_code(text):
        return Reading("code", text, strings.plain_code(text))
    if (data := strings.data_of(text)) is not None:
        return Reading("data", text, _written(data))
    return None


def _written(data: Any) -> str:
    """Write data so that equal data give equal texts."""
    return json.dumps(data, sort_keys=True, ensure_ascii=False)


def _is_code(text: str) -> bool:
    """Return whether a text is a code: hyphenated digits, digits with a leading 0, or capitals with digits."""
    if re.fullmatch(r"\d+(?:-\d+)+|0\d{3,}|\+?\d[\d ]*-[\d -]+", text):
        return True
    return (
        bool(re.fullmatch(r"(?=.*[A-Z])(?=.*\d)[A-Za-z0-9]+(?:[-._/:#][A-Za-z0-9]+)*", text))
        and not re.fullmatch(r"\d+(?:\.\d+)?[eE][-+]?\d+|\d+ ?[A-Z]+[A-Z]?/?h?|\d+[eE]", text)
    ) or bool(re.fullmatch(r"\d+[A-Z]{1,2}", text))


def _mathematics(text: str) -> Reading | None:
    bare = re.sub(r"\.\s*$", "", without_delimiters(text)).strip()
    if (value := number_in_words(bare)) is not None:
        return Reading("number", bare, ("number", value, None))
    is_words = re.fullmatch(r"[^\W\d_]{2,}(?:[ -][^\W\d_]+)*", bare) and not _is_product(bare)
    if is_words and not _ALL_REALS.fullmatch(bare):
        return None
    try:
        tree = _tree(bare)
    except NeedsLibrary:
        return Reading("library", bare, bare)
    except Unreadable:
        return None
    return None if tree is None else Reading("number" if _is_number(tree) else "mathematics", bare, tree)


_ALL_REALS = re.compile(
    r"(?:\\text\{)?\s*(?:[a-z] (?:is|can be) )?(?:the set of )?(?:all|any|every) real(?:s|(?: numbers?))\s*\}?",
    re.IGNORECASE,
)
"""What the set of real numbers is called in words."""


def _is_product(text: str) -> bool:
    """Return whether adjacent letters, `xy`, stand for numbers: alphabetical neighbours, unlike a word's letters."""
    letters = [ord(letter) for letter in text]
    return (
        text.isascii() and 2 <= len(text) <= 3 and all(later - one == 1 for one, later in itertools.pairwise(letters))
    )


def _tree(text: str) -> Tree | None:
    """Read the whole text as mathematics, or as a number of things; None if it holds nothing but a text."""
    if _ALL_REALS.fullmatch(text):
        return ("symbol", "mathbb_R")
    if builder := re.fullmatch(r"\\?\{\s*[a-zA-Z]\s*(?:\\mid|\||:)\s*(.+?)\s*\\?\}", text):
        text = builder[1]  # {x | x > 2}
    try:
        tree = read_notation(text)
    except NeedsLibrary:
        raise
    except Unreadable:
        counted = re.fullmatch(r"(-?[\d.,' /]*\d)\s+([a-z]+(?: [a-z]+)?)", text)
        if (
            not counted
            or counted[2].split()[0] in SCALES
            or says_another("", f" {counted[2]}")
            or not (unit := read_unit(counted[2]))
        ):
            raise
        return ("quantity", read_notation(counted[1]), unit)
    return None if tree[0] == "text" else tree


def _is_number(tree: Tree) -> bool:
    """Return whether a tree is one value without letters, which may occur in a sentence."""
    if tree[0] == "relation" and set(tree[1]) <= {"=", "~"}:
        return tree[2][0][0] == "symbol" and _is_number(tree[2][-1])
    return (
        tree[0]
        in ("number", "quantity", "compound", "negative", "/", "^", "*", "+", "call", "constant", "digits", "ratio")
        and not letters_of(tree)
        and "infinity" not in str(tree)
    )


def _content(text: str) -> Reading | None:
    """Read the text of an option."""
    return (_string(text) or _mathematics(text) or _words(text)) if text else None


def _words(text: str) -> Reading:
    if items := strings.list_of(text):
        return Reading("list", text, tuple(items))
    if not re.search(r"\s", text) and re.search(r"\d|[^\w\s'.-]", text) and text.isascii():
        return Reading("code", text, strings.plain_code(text))
    return Reading("words", text, strings.plain_words(text))


def _lines(text: str) -> tuple[str, ...]:
    text = re.sub(r"^[ \t]*(?:```|~~~).*$", "", text, flags=re.MULTILINE)
    lines = [" ".join(line.split()) for line in text.split("\n")]
    return tuple(line for line in lines if line)


def _last_lines(text: str, count: int) -> list[tuple[str, ...]]:
    """Return the last fenced block of a text, and its last lines."""
    blocks = re.findall(
        r"^[ \t]*(?:```|~~~)[^\n]*\n(.*?)^[ \t]*(?:```|~~~)", plain_text(text), re.MULTILINE | re.DOTALL
    )
    lines = _lines(plain_text(text))
    return [*(_lines(block) for block in blocks[-1:]), lines[-count:]]


# Answers


def _number_said(found: FinalAnswer, question: str) -> Reading:
    """Read the whole answer as one number, or else the number in the sentence that states it."""
    whole = bare_result(found.text)
    for bare in dict.fromkeys((whole, without_label(whole))):
        if (value := number_in_words(bare)) is not None:
            return Reading("number", bare, ("number", value, None))
        try:
            if (tree := _tree(bare)) is not None and (
                found.place == "box" or not letters_of(tree) or tree[0] == "relation"
            ):
                remainder = remainder_in(bare, question)
                taken = () if remainder is None else (("number", Fraction(remainder), None),)
                return Reading("number", bare, tree, taken)
        except Unreadable:
            pass
    if share := re.fullmatch(r"(\d+) (?:out of|in) (?:every )?(\d+)", whole):
        return Reading("number", whole, ("/", *(read_notation(term) for term in share.groups())))
    if ratio := re.search(r"(?:\bratio\b.*?|^)(\d+(?:\.\d+)?) to (\d+(?:\.\d+)?)\s*\.?$", found.text):
        return Reading("number", found.text, ("ratio", *(read_notation(term) for term in ratio.groups())))
    _, said = number_said(found, question)
    if isinstance(said, Unclear):
        return Reading("nothing", f"{said.why} in {found.text!r}")
    try:
        tree = read_notation(said.text)
        if tree[0] == "relation" and tree[1][-1] == "=":
            tree = tree[2][-1]
    except Unreadable as error:
        return Reading("nothing", f"{error} in {said.text!r}")
    behind = re.split(r"[\n,;:]|\.(?:\s|$)", said.behind)[0]
    if scale := re.match(r"\s*([^\W\d_]+)", behind):
        factor = SCALES.get(scale[1].casefold() if len(scale[1]) > 1 else scale[1]) or next(
            (SCALES[sign] for sign in "万萬亿億만억" if scale[1].startswith(sign)), None
        )
        if factor:
            tree, behind = ("*", tree, ("number", Fraction(factor), None)), behind[scale.end() :]
            tree = ("number", value_of(tree), None) if tree[1][0] == "number" else tree
    unit = read_unit(behind) if behind.strip() and tree[0] != "quantity" else None
    return Reading("number", f"{said.text}{behind}".strip(), ("quantity", tree, unit) if unit else tree)


def _mathematics_said(found: FinalAnswer, *, is_list: bool) -> Reading:
    """Read the whole answer as mathematics, or else a part of its sentence; `-2,1` is a list if one is wanted."""
    bare = bare_result(found.text)
    reasons = []
    unlabelled = without_label(bare)
    first = (
        (unlabelled, bare) if re.match(r"\\|\w'", bare) else (bare, unlabelled)
    )  # what stands for a derivative, a limit
    for text in (*first, *strings.said_in(found.text)):
        text = bare_result(text)
        if is_list and (listed := read_as_list(text)):
            return listed
        try:
            if (tree := _tree(text)) is not None:
                return Reading("mathematics", text, tree)
        except NeedsLibrary:
            return Reading("library", text, text)
        except Unreadable as error:
            reasons.append(str(error))
    return Reading("nothing", f"{reasons[0] if reasons else 'no mathematics'} in {found.text!r}")


def _code_said(found: FinalAnswer) -> Reading:
    text = without_delimiters(found.text)
    shorter = tuple(strings.plain_code(piece.strip().rstrip("!?").removesuffix(".")) for piece in strings.said_in(text))
    named = set() if strings.says_otherwise(text) else strings.codes_in(text)
    return Reading("code", text, min(shorter, key=len, default=""), (*shorter, *(named if len(named) == 1 else ())))
