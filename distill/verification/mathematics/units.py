"""Reads units of measure: what a unit's name measures, and how large it is.

    "km/h" → length / time, 5/18        "square feet" → length², 0.09290304        "apples" → a dimension of its own

Quantities are comparable if they measure the same thing; each is then its number times its unit's factor. A noun that
is not a unit counts as a dimension of its own, so that 5 apples are not 5 pears; "units" can measure anything.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache


@dataclass(frozen=True)
class Unit:
    """A unit's dimensions, as (dimension, power), its factor, and its name as written."""

    dimensions: tuple[tuple[str, int], ...]
    factor: Fraction
    name: str

    @property
    def is_percent(self) -> bool:
        return self.dimensions == (("percent", 1),)

    @property
    def is_noun(self) -> bool:
        """Whether the unit counts things that the table does not know: apples, red marbles."""
        return not any(dimension in _DIMENSIONS for dimension, _ in self.dimensions)


PERCENT = Unit((("percent", 1),), Fraction(1), "%")
DEGREE = Unit((("angle", 1),), Fraction(1), "degrees")

_TABLE = """
length: m meter metre =1; cm centimeter centimetre =1/100; mm millimeter millimetre =1/1000; km kilometer kilometre =1000;
 in inch inche =127/5000; ft foot feet =381/1250; yd yard =1143/1250; mi mile =201168/125; dm decimeter =1/10;
 nm nanometer =1/1000000000; μm micrometer micron =1/1000000
mass: kg kilogram kilo =1; g gram =1/1000; mg milligram =1/1000000; lb pound =45359237/100000000;
 oz ounce =45359237/1600000000; tonne =1000; ton =1000
time: s sec second =1; min minute =60; h hr hour =3600; day =86400; week =604800; ms millisecond =1/1000
months: month =1; yr year =12; decade =120; century centurie =1200
angle: degree deg =1; °=1
radian: rad radian =1
percent: percent % pct =1
dollars: dollar usd $ buck =1; cent ¢ =1/100
euros: euro eur € =1
sterling: gbp £ =1
rupees: rupee inr ₹ =1
yen: yen jpy ¥ =1
yuan: yuan rmb cny =1
celsius: celsius °c =1
fahrenheit: fahrenheit °f =1
kelvin: kelvin k =1
energy: j joule =1; kj kilojoule =1000; kwh =3600000; cal calorie =523/125; kcal kilocalorie =4184
power: w watt =1; kw kilowatt =1000; mw megawatt =1000000
force: n newton =1
pressure: pa pascal =1; kpa =1000; atm =101325
voltage: v volt =1; mv millivolt =1/1000
current: a amp ampere =1
resistance: ohm Ω =1
frequency: hz hertz =1; khz =1000; mhz =1000000
amount: mol mole =1
charge: coulomb c =1
capacitance: farad f =1
induction: tesla t =1
inductance: henry =1
data: byte =8; bit =1; kb kilobyte =8000; mb megabyte =8000000; gb gigabyte =8000000000
"""
_VOLUMES = (
    "l liter litre =1/1000; ml milliliter millilitre =1/1000000; dl deciliter =1/10000; gal gallon "
    "=473176473/125000000000; quart qt =473176473/500000000000; pint pt =473176473/1000000000000; cup "
    "=473176473/2000000000000; cc =1/1000000"
)
_SPEEDS = "mph =1397/3125; kph kmh =5/18"
_NOTHING = frozenset((
    "unit", "in", "total", "altogether", "left", "each", "per", "only", "more", "of", "the", "a", "an", "all",
    "together", "exactly",
))  # fmt: skip
_PERCENT = re.compile(r"\b(?:per cento?|pour cent|por c(?:iento|ento)|prozent|процент\w*)\b", re.IGNORECASE)
_ANY = re.compile(r"(?:square |cubic |sq\.? |cu\.? )?units?(?:\s*\^\{?[23]\}?|squared|cubed)?", re.IGNORECASE)
SINGLE = frozenset("msghlL")
"""Letters that are units after a number and a space."""
LETTERS = SINGLE | frozenset("JNWVAKCFTH")
"""Letters that are units if they are written as text; any other letter stands for a number."""


def _rows(
    text: str, dimensions: tuple[tuple[str, int], ...]
) -> dict[str, tuple[tuple[tuple[str, int], ...], Fraction]]:
    rows: dict[str, tuple[tuple[tuple[str, int], ...], Fraction]] = {}
    for row in text.split(";"):
        names, _, factor = row.rpartition("=")
        rows |= {name: (dimensions, Fraction(factor.strip())) for name in names.split()}
    return rows


def _table() -> dict[str, tuple[tuple[tuple[str, int], ...], Fraction]]:
    table: dict[str, tuple[tuple[tuple[str, int], ...], Fraction]] = {}
    for line in _TABLE.strip().replace("\n ", " ").split("\n"):
        dimension, _, rows = line.partition(":")
        table |= _rows(rows, ((dimension, 1),))
    table |= _rows(_VOLUMES, (("length", 3),))
    return table | _rows(_SPEEDS, (("length", 1), ("time", -1)))


_UNITS = _table()
_PROPER = {
    name.casefold(): (name, *others)
    for name, *others in (
        ["mV"],
        ["kJ", "KJ"],
        ["kW", "KW"],
        ["MW"],
        ["Pa"],
        ["kPa"],
        ["Hz"],
        ["kHz"],
        ["MHz"],
        ["MB"],
        ["GB"],
        ["KB", "kB"],
    )
}
"""Two-letter names that are units only in this spelling: mv is a product."""
_DIMENSIONS = frozenset(dimension for dimensions, _ in _UNITS.values() for dimension, _ in dimensions)


def is_unit(word: str) -> bool:
    """Return whether a single word names a unit of the table."""
    return _known(word) is not None


@lru_cache(maxsize=2_048)
def read_unit(text: str) -> Unit | None:
    """Read "cm^2", "miles per hour" or "red apples"; return None if nothing is measured (an empty text, "units")."""
    name = " ".join(text.replace("\\", " ").split()).strip(" .,")
    if not name or _ANY.fullmatch(name):
        return None
    plain = re.sub(r"\bper\b(?! cento?\b)", "/", name.replace("{", "").replace("}", ""), flags=re.IGNORECASE)
    plain = _PERCENT.sub(
        "percent", re.sub(r"\bdegrees? (?=(?:celsius|fahrenheit|kelvin)\b)", "", plain, flags=re.IGNORECASE)
    )
    plain = re.sub(r"\b(square|sq\.?|cubic|cu\.?) (\w+)", _powered, plain, flags=re.IGNORECASE)
    plain = re.sub(r"(\w+) (squared|cubed)", _powered_behind, plain, flags=re.IGNORECASE)
    dimensions: Counter[str] = Counter()
    factor, sign = Fraction(1), 1
    for word, power, slash in _words(plain):
        if slash:
            sign = -1
            continue
        if word.casefold() in _NOTHING and not (word == "in" and power):
            continue
        exponent = sign * int(power or 1)
        base, size = _known(word) or (((_singular(word.casefold()), 1),), Fraction(1))
        for dimension, times in base:
            dimensions[dimension] += times * exponent
        factor *= size**exponent
    kept = tuple(sorted((dimension, power) for dimension, power in dimensions.items() if power))
    return Unit(kept, factor, name) if kept else None


def _words(text: str) -> list[tuple[str, str, str]]:
    pattern = r"([^\W\d_°]+|°[CFcf]?|[%$€£¥₹¢])(?:\s*\^\s*\(?([-+]?\d)\)?|(?<=m)([23])\b)?|(/)"
    return [(word, power or glued, slash) for word, power, glued, slash in re.findall(pattern, text)]


def _known(word: str) -> tuple[tuple[tuple[str, int], ...], Fraction] | None:
    if len(word) == 1 and word.isalpha() and word.isascii() and word not in LETTERS:
        return None
    folded = word.casefold()
    if folded in _PROPER and word not in _PROPER[folded]:
        return None
    return _UNITS.get(folded) or (_UNITS.get(_singular(folded)) if len(folded) > 2 else None)


def _singular(word: str) -> str:
    for ending, instead in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss"), ("xes", "x")):
        if word.endswith(ending) and len(word) > 4:
            return word[: -len(ending)] + instead
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 2 else word


def _powered(found: re.Match[str]) -> str:
    return f"{found[2]}^{2 if found[1].casefold().startswith('s') else 3}"


def _powered_behind(found: re.Match[str]) -> str:
    return f"{found[1]}^{2 if found[2].casefold() == 'squared' else 3}"
