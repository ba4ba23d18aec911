"""Reads dates and times of day, in the usual orders and languages, as numbers that can be compared."""

from __future__ import annotations

import re
from datetime import date

Day = tuple[int | None, int, int]
"""(year, or None if none is given; month; day)."""
Moment = tuple[int, int, int, bool]
"""(hour of 24, minute, second, whether the half of the day was given)."""

_MONTHS = (
    "january jan januar janvier enero janeiro gennaio января январь",
    "february feb februar février fevrier febrero fevereiro febbraio февраля февраль",
    "march mar märz mars marzo março марта март",
    "april apr avril abril aprile апреля апрель",
    "may mai mayo maio maggio мая май",
    "june jun juni juin junio junho giugno июня июнь",
    "july jul juli juillet julio julho luglio июля июль",
    "august aug août aout agosto августа август",
    "september sep sept septembre septiembre setembro settembre сентября сентябрь",
    "october oct oktober okt octobre octubre outubro ottobre октября октябрь",
    "november nov novembre noviembre novembro ноября ноябрь",
    "december dec dezember dez décembre diciembre dezembro dicembre декабря декабрь",
)
_NUMBER_OF = {name: number for number, names in enumerate(_MONTHS, 1) for name in names.split()}
_MONTH = "|".join(sorted(_NUMBER_OF, key=len, reverse=True))
_YEAR = r"(?:,?\s+(?:de\s+|del\s+)?(?P<year>\d{4})\b)?"
_DATES = (
    re.compile(r"(?<![\d/.-])(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})(?![\d/-])"),
    re.compile(r"(?P<year>\d{4})\s*年\s*(?P<month>\d{1,2})\s*月\s*(?P<day>\d{1,2})\s*日"),
    re.compile(rf"\b(?P<name>{_MONTH})\.?\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\b{_YEAR}", re.IGNORECASE),
    re.compile(
        rf"\b(?P<day>\d{{1,2}})(?:st|nd|rd|th|er|º)?\.?\s+(?:of\s+|de\s+)?(?P<name>{_MONTH})\b\.?{_YEAR}(?:\s+года)?",
        re.IGNORECASE,
    ),
)
_SLASHED = re.compile(r"(?<![\d/.])(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d{2})(?![\d/])")
_TIME = re.compile(
    r"(?<![\d:.])(?P<h>\d{1,2})(?::(?P<m>[0-5]\d)(?::(?P<s>[0-5]\d))?(?:\s*(?P<half>[ap])\.?m\b\.?)?(?![\d:])|\s*(?P<alone>[ap])\.?m\b\.?)",
    re.IGNORECASE,
)


def date_of(text: str) -> Day | None:
    """Read a whole text as a date; ambiguous ones such as `05/01/2024` begin with the day."""
    whole = re.sub(r"^(?:the|on|le|el|am|il)\s+", "", text.strip(" .,"), flags=re.IGNORECASE)
    if not any(pattern.fullmatch(whole) for pattern in (*_DATES, _SLASHED)):
        return None
    found = dates_in(whole)
    return found.pop() if len(found) == 1 else None


def dates_in(text: str) -> set[Day]:
    """Find all dates in a text."""
    found: set[Day] = set()
    for pattern in _DATES:
        for match in pattern.finditer(text):
            parts = match.groupdict()
            month = _NUMBER_OF[parts["name"].casefold()] if parts.get("name") else int(parts["month"])
            found |= _valid(int(parts["year"]) if parts.get("year") else None, month, int(parts["day"]))
    for match in _SLASHED.finditer(text):
        year = int(match[4]) + (2000 if len(match[4]) == 2 else 0)
        found |= _valid(year, int(match[3]), int(match[1])) or _valid(year, int(match[1]), int(match[3]))
    with_year = {(month, day) for year, month, day in found if year is not None}
    return {(year, month, day) for year, month, day in found if year is not None or (month, day) not in with_year}


def _valid(year: int | None, month: int, day: int) -> set[Day]:
    try:
        date(year or 2024, month, day)
    except ValueError:
        return set()
    return {(year, month, day)}


def time_of(text: str) -> Moment | None:
    """Read a whole text as a time of day, `10:30` or `6:05 pm`."""
    whole = _TIME.fullmatch(_in_digits(text).strip(" ,").removesuffix("."))
    return _moment(whole) if whole else None


def times_in(text: str) -> set[Moment]:
    """Find all times of day in a text."""
    return {_moment(found) for found in _TIME.finditer(_in_digits(text))}


def _in_digits(text: str) -> str:
    """Rewrite noon and midnight as clock times, `3.30 pm` with a colon, and `3 o'clock in the afternoon` as 3 pm."""
    text = re.sub(r"\b(?:12(?::00)?\s+)?noon\b|\bmidday\b", "12:00 pm", text, flags=re.IGNORECASE)
    text = re.sub(r"\b(?:12(?::00)?\s+)?midnight\b", "12:00 am", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<=\d)\.(?=[0-5]\d\s*[ap]\.?m\b)", ":", text, flags=re.IGNORECASE)
    text = re.sub(r"(\d)(?: o'clock)? in the morning\b", r"\1 am", text, flags=re.IGNORECASE)
    return re.sub(r"(\d)(?: o'clock)? in the (?:afternoon|evening)\b", r"\1 pm", text, flags=re.IGNORECASE)


def same_moment(one: Moment, other: Moment) -> bool:
    """Return whether two times are equal; on a 12-hour clock if one of them leaves out the half of the day."""
    if one[:3] == other[:3]:
        return True
    return (
        one[3] != other[3] and min(one[0], other[0]) < 12 and (one[0] % 12, *one[1:3]) == (other[0] % 12, *other[1:3])
    )


def _moment(found: re.Match[str]) -> Moment:
    hour, half = int(found["h"]), (found["half"] or found["alone"] or "").casefold()
    if half:
        hour = hour % 12 + (12 if half == "p" else 0)
    return hour, int(found["m"] or 0), int(found["s"] or 0), bool(half)
