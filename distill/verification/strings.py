r"""References that are no mathematics: words, letters of a choice, dates, times of day, codes and lists of words.

Each has one normal form, and one way to find it in a sentence: a sentence gives a thing where it says just that one ("It
was Marie Curie."), and where nothing in it denies it or names another ("not Paris", "Paris or London"). A string that
only looks like mathematics (`2024-01-15`, `555-1234`, `H2O`) is compared as the string that it is.
"""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Iterator
from datetime import date

from toolkit.answers.final_answer import sentences
from toolkit.answers.sentences import without_delimiters

DENIALS = re.compile(
    r"\b(?:not|never|neither|nor|cannot|isn't|aren't|wasn't|don't|doesn't|can't|won't|nicht|kein\w*|pas|no es|не)\b|n't\b"
    r"|不是|不|ではない|아니|ليس|नहीं",
    re.IGNORECASE,
)
_DOUBTS = re.compile(
    r"\b(?:may|might|could|perhaps|possibly|maybe|either|cannot be determined|unclear|unknown)\b", re.IGNORECASE
)
_STYLE = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|mbox|mathrm|mathbf|mathit|mathsf|mathtt|operatorname)\s*\{([^{}]*)\}"
)
_ASIDE = re.compile(
    r"(?:,|;|:| -| —)?\s+(?:because|since|as|for|which|who|where|whose|so that|given|by|according to|after|due to)\b.*$"
    r"|,\s+(?:the|a|an|not|and not|but|it|this|that|they|we|7|\d|i)\b.*$|\s*\([^()]*\)\s*$|\s+—\s.*$|;.*$",
    re.IGNORECASE | re.DOTALL,
)
_COPULA = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals|becomes?|reads?|says?|prints?|outputs?|returns?|called|named|call|ist|sind|war|est|sont|es"
    r"|son|é|è|это|являются?|namely|therefore|pick|choose|select|call)\b(?!-)|[:=]|是|为|為|は|은|는|هو|هي|है)\s*",
    re.IGNORECASE,
)
_BACK = re.compile(
    r"^(.{1,200}?)\s+(?:is|are|was|were)\s+(?:the|my|our|a|an|his|her|its|their|what|who|where|right|correct)\b.*$",
    re.DOTALL | re.IGNORECASE,
)
_LEADING = re.compile(
    r"^(?:so|thus|hence|therefore|then|and|well|ok|okay|there (?:is|are|was)|it(?:'s| is| was)|this is|that is|these are|they are|he is|she is|"
    r"i (?:think|say|choose|pick|guess)|the|an?|exactly|simply|option|choice|answer|letter)\b[\s,:]*",
    re.IGNORECASE,
)
_TRAILING = re.compile(r"(?:です|でした|だ|입니다|이다|است|है)\s*$")
_MONTHS = "january february march april may june july august september october november december".split()
_MONTH = "|".join(f"{name}|{name[:3]}" for name in _MONTHS) + "|sept"
_DATES = (
    re.compile(r"(?<![\d/.-])(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})(?![\d/-])"),
    re.compile(r"(?P<year>\d{4})年(?P<month>\d{1,2})月(?P<day>\d{1,2})日"),
    re.compile(
        rf"\b(?P<name>{_MONTH})\.?\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\b(?:,?\s+(?P<year>\d{{4}})\b)?", re.IGNORECASE
    ),
    re.compile(
        rf"\b(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\.?\s+(?:of\s+)?(?P<name>{_MONTH})\b\.?(?:,?\s+(?P<year>\d{{4}})\b)?",
        re.IGNORECASE,
    ),
)
_SLASHED = re.compile(r"(?<![\d/.])(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d{2})(?![\d/])")
_TIME = re.compile(
    r"(?<![\d:.])(?P<h>\d{1,2}):(?P<m>[0-5]\d)(?::(?P<s>[0-5]\d))?(?:\s*(?P<half>[ap])\.?m\b\.?)?(?![\d:])",
    re.IGNORECASE,
)
_CODE = re.compile(r"[^\s\"'`,;()]*\d[^\s\"'`,;()]*")
LONGEST = 1_000
"""Characters of a sentence whose parts are looked at."""
CHOICES = "ABCDEFGHIJ"


def plain_words(text: str) -> str:
    """Small letters without styles, quotes, articles and the punctuation around them."""
    text = _STYLE.sub(r" \1 ", without_delimiters(text)).replace("\\ ", " ").replace("~", " ")
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"[\"`*_“”‘]+", "", text).strip(" \t\n.,;:!?。'…")
    return " ".join(re.sub(r"^(?:the|an?)\s+", "", text).split())


def without_style(text: str) -> str:
    r"""What stands within `\text{…}`, `\textbf{…}` and the like, without them; without marks of mathematics around it."""
    return _STYLE.sub(r"\1", without_delimiters(text)).replace("\\ ", " ").strip()


def says_otherwise(text: str) -> bool:
    """Whether a sentence denies or doubts what it names."""
    return bool(DENIALS.search(text) or _DOUBTS.search(text))


def said_in(text: str) -> Iterator[str]:
    """What a final answer may say, from the whole of it to the shortest, without the sentence around it."""
    text = _STYLE.sub(r" \1 ", without_delimiters(text)).strip()
    yield text
    if (
        len(text) > LONGEST
        or DENIALS.search(re.sub(r",\s*(?:and |but )?not\b.*$|;.*$", "", text))
        or _DOUBTS.search(text)
    ):
        return
    seen = {text}
    queue = [text]
    while queue:
        whole = queue.pop(0)
        for shorter in _shorter(whole):
            shorter = shorter.strip(" \t,;")
            if shorter and shorter not in seen and len(seen) < 40:
                seen.add(shorter)
                queue.append(shorter)
                yield shorter


def _shorter(text: str) -> Iterator[str]:
    told = [sentence.strip() for sentence in sentences(text)]
    if len(told) > 1:
        yield told[-1]
    yield _LEADING.sub("", text)
    yield _TRAILING.sub("", text.rstrip(" .。"))
    if (aside := _ASIDE.search(text)) and aside.start():
        yield text[: aside.start()]
    for copula in _COPULA.finditer(text):
        if text[copula.end() :].strip(" .!?"):
            yield text[copula.end() :]
    if back := _BACK.match(text):
        yield back[1]


# Dates, times, codes


def date_of(text: str) -> tuple[int | None, int, int] | None:
    """(year or None, month, day) of a text that is one date; of `15/01/2024` where only one order of its parts is a date."""
    found = dates_in(text)
    whole = re.sub(r"^(?:the|on)\s+", "", text.strip(" .,"), flags=re.IGNORECASE)
    if len(found) != 1 or not any(pattern.fullmatch(whole) for pattern in (*_DATES, _SLASHED)):
        return None
    return found.pop()


def dates_in(text: str) -> set[tuple[int | None, int, int]]:
    """All dates that a text names."""
    found: set[tuple[int | None, int, int]] = set()
    for pattern in _DATES:
        for match in pattern.finditer(text):
            parts = match.groupdict()
            name = (parts.get("name") or "").casefold()
            month = (
                next((i for i, long in enumerate(_MONTHS, 1) if long.startswith(name[:3])), 0)
                if name
                else int(parts["month"])
            )
            found |= _valid(int(parts["year"]) if parts.get("year") else None, month, int(parts["day"]))
    for match in _SLASHED.finditer(text):
        first, second = int(match[1]), int(match[3])
        year = int(match[4]) + (2000 if len(match[4]) == 2 else 0)
        either = _valid(year, second, first) or _valid(year, first, second)  # day first, where both could be
        found |= either
    undated = {day for year, *day in ((d[0], d[1:]) for d in found) if year is not None for day in day}
    return {d for d in found if d[0] is not None or d[1:] not in undated}


def _valid(year: int | None, month: int, day: int) -> set[tuple[int | None, int, int]]:
    try:
        date(year or 2024, month, day)
    except ValueError:
        return set()
    return {(year, month, day)}


def time_of(text: str) -> tuple[int, int, int] | None:
    """(hour of 24, minute, second) of a text that is one time of day, `10:30` or `6:05 pm`."""
    whole = _TIME.fullmatch(text.strip(" .,").removesuffix("."))
    return _hour(whole) if whole else None


def times_in(text: str) -> set[tuple[int, int, int]]:
    """All times of day that a text names."""
    return {_hour(found) for found in _TIME.finditer(text)}


def _hour(found: re.Match[str]) -> tuple[int, int, int]:
    hour = int(found["h"])
    if half := (found["half"] or "").casefold():
        hour = hour % 12 + (12 if half == "p" else 0)
    return hour, int(found["m"]), int(found["s"] or 0)


def codes_in(text: str) -> set[str]:
    """All strings with a digit in them that stand alone between white space or quotes."""
    return {found.rstrip(".!?:") for found in _CODE.findall(text)}


# Choices and lists


def choice_of(text: str) -> tuple[str, str] | None:
    r"""(letter, what it stands for) of `(B)`, `B) Paris`, `\textbf{(B)}\ 16`, `Option B`; None where no letter is chosen."""
    text = re.sub(r"[*`\"]", "", without_style(text)).strip().rstrip(".")
    found = re.fullmatch(
        rf"(?:(?:option|choice|answer|letter)\s+)?(?:\(([{CHOICES}])\)|([{CHOICES}])(?=\s*$|[.):,]|\s+[-—])|\[([{CHOICES}])\])[.):,]*\s*(?:[-—]\s+)?(.*)",
        text,
        re.IGNORECASE | re.DOTALL,
    )
    if not found:
        return None
    return (found[1] or found[2] or found[3]).upper(), found[4].strip()


def letters_in(text: str) -> set[str]:
    """The letters of choices that a text names: alone, in brackets or after "option"."""
    found = re.findall(
        rf"\(([{CHOICES}])\)|\b(?:options?|choices?)\s+([{CHOICES}])\b|(?<![\w'])([{CHOICES}])(?![\w'])(?!\s+[a-z]{{2}})",
        text,
    )
    return {letter for letters in found for letter in letters if letter}


def options_in(question: str) -> dict[str, str]:
    """Letter → what it stands for, of a question that lists its choices."""
    found = re.findall(rf"^\s*\(?([{CHOICES}])[.):]\s+(\S.*?)\s*$", question, re.MULTILINE)
    return {letter: plain_words(said) for letter, said in found}


def list_of(text: str) -> list[str] | None:
    """The items of `['a', 'b']`, `["a", "b"]` or `apple, banana and cherry`; None where the text is no list of words."""
    text = without_style(text).strip().rstrip(".")
    if text[:1] in "[(" and re.search(r"[\"']", text):
        try:
            items = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
        flat = isinstance(items, list | tuple) and all(isinstance(item, str | int | float) for item in items)
        return [plain_words(str(item)) for item in items] if flat else None
    bare = text[1:-1] if text[:1] in "[(" and text[-1:] in "])" else text
    items = re.split(r"\s*[,;]\s*(?:and\s+)?|\s+(?:and|und|et|y|e)\s+", bare)
    if len(items) < 2 or not all(re.fullmatch(r"[^\W_](?:[\w'.-]| (?! )){0,40}", item) for item in items):
        return None
    return [plain_words(item) for item in items]
