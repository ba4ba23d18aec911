"""Numbers as references, the ways to write each rightly, and answers that only contain it.

    numbers() ──> Number ──> right_spellings(number)   texts that mean the number
                        └──> wrong_shapes(number)      texts that mean something else, though the number stands in them

A wrong shape carries the number that it means; the shape is left out if that is the reference itself (`n!` of 2,
`\\sqrt{n}` of 1) or rounds to a reference with decimals (`\\sin(0.1)` to 0.1). A shape that is not a single number (an
interval, two values, an inequality) is wrong for every reference.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

Shape = tuple[str, str, Fraction | None]
"""A name, a text, and the number that the text means; None if it means no single number."""

INTEGERS, NEGATIVES, DECIMALS, FRACTIONS = 80, 40, 40, 40


@dataclass(frozen=True, kw_only=True)
class Number:
    """A reference: its exact value, and its spellings in plain text and in LaTeX."""

    value: Fraction
    text: str
    latex: str

    @property
    def is_integer(self) -> bool:
        return self.text.lstrip("-").isdigit()

    @property
    def is_fraction(self) -> bool:
        return self.text != self.latex

    @property
    def half_unit(self) -> Fraction:
        """Half a unit of the last written place; 0 if the number is exact."""
        places = len(self.text.partition(".")[2])
        return Fraction(1, 2 * 10**places) if places else Fraction(0)

    @property
    def grouped(self) -> str:
        """The LaTeX, in brackets if an exponent after it would only apply to a part of it."""
        return rf"\left({self.latex}\right)" if self.is_fraction or self.value < 0 else self.latex


def integer(value: int) -> Number:
    return Number(value=Fraction(value), text=str(value), latex=str(value))


def decimal(text: str) -> Number:
    return Number(value=Fraction(text), text=text, latex=text)


def fraction(value: Fraction) -> Number:
    sign, top = "-" if value < 0 else "", abs(value.numerator)
    return Number(value=value, text=str(value), latex=rf"{sign}\frac{{{top}}}{{{value.denominator}}}")


def numbers(seed: int) -> list[Number]:
    """Draw two hundred different references: integers of 1–7 digits, negative ones, decimals and fractions."""
    random_ = random.Random(seed)
    drawn = {Fraction(value): integer(value) for value in (0, 1, 2, 3, -1)}
    while len(drawn) < INTEGERS:
        value = random_.randrange(10 ** random_.randint(1, 7))
        drawn[Fraction(value)] = integer(value)
    while len(drawn) < INTEGERS + NEGATIVES:
        value = -random_.randrange(1, 10 ** random_.randint(1, 7))
        drawn[Fraction(value)] = integer(value)
    while len(drawn) < INTEGERS + NEGATIVES + DECIMALS:
        places = random_.randint(1, 4)
        digits = random_.randrange(1, 10 ** (places + random_.randint(0, 3)))
        text = str(Decimal(random_.choice((1, 1, -1)) * digits).scaleb(-places))
        if not text.endswith("0") and "E" not in text:
            drawn[Fraction(text)] = decimal(text)
    while len(drawn) < INTEGERS + NEGATIVES + DECIMALS + FRACTIONS:
        ratio = Fraction(random_.choice((1, 1, -1)) * random_.randint(1, 99), random_.randint(2, 99))
        if ratio.denominator > 1 and ratio not in drawn:
            drawn[ratio] = fraction(ratio)
    return list(drawn.values())


def wrong_shapes(number: Number) -> dict[str, str]:
    """Return, by name, texts that contain the number or look like it but mean something else."""
    shapes = (*_expressions(number), *_several(number), *_others(number), *_sentences(number))
    return {
        name: text
        for name, text, meaning in shapes
        if meaning is None or abs(meaning - number.value) > number.half_unit
    }


def _expressions(number: Number) -> Iterator[Shape]:
    """Put the number into formulas."""
    n, value, group = number.latex, number.value, number.grouped
    if value:
        yield "reciprocal", rf"\boxed{{\frac{{1}}{{{n}}}}}", 1 / value
    if value > 0 and value != 1:
        yield "logarithm's base", rf"\boxed{{\log_{{{n}}} 8}}", Fraction(math.log(8, value))
    yield "root", rf"\boxed{{\sqrt{{{n}}}}}", Fraction(math.sqrt(value)) if value >= 0 else None
    yield "square", rf"\boxed{{{group}^{{2}}}}", value**2
    yield "exponent", rf"\boxed{{2^{{{n}}}}}", None
    yield "times x", rf"\boxed{{{n} x}}", None if value else Fraction(0)
    yield "times i", rf"\boxed{{{n} i}}", None if value else Fraction(0)
    yield "times pi", rf"\boxed{{{n}\pi}}", None if value else Fraction(0)
    yield "sine", rf"\boxed{{\sin({n})}}", Fraction(math.sin(value))
    yield "numerator", rf"\boxed{{\frac{{{n}}}{{3}}}}", value / 3
    yield "power of ten", rf"\boxed{{{n} \times 10^{{3}}}}", value * 1000
    yield "unfinished sum", f"{n} + 1", value + 1
    yield "unfinished difference", rf"\boxed{{{n} - 3}}", value - 3
    yield "unfinished product", rf"{n} \times 2", value * 2
    yield "sum with x", rf"\boxed{{{n} + x}}", None
    yield "power of x", rf"\boxed{{x^{{{n}}}}}", None
    yield "index", rf"\boxed{{x_{{{n}}}}}", None
    yield "argument", rf"\boxed{{f({n})}}", None
    yield "modulus", rf"\boxed{{4 \pmod{{{n}}}}}", Fraction(4)
    if number.is_integer:
        size = math.factorial(min(abs(int(value)), 20))  # beyond that the least that it can be
        yield "factorial", rf"\boxed{{{n}!}}", Fraction(-size if value < 0 else size)
        yield (
            "mixed number",
            rf"\boxed{{{n}\frac{{1}}{{2}}}}",
            value + (Fraction(-1, 2) if value < 0 else Fraction(1, 2)),
        )
    if number.is_integer and value >= 0:
        yield "base", rf"\boxed{{{n}_{{7}}}}", Fraction(int(n, 7)) if max(n) < "7" else None
        yield "choose", rf"\boxed{{\binom{{{n}}}{{2}}}}", Fraction(math.comb(int(n), 2))


def _several(number: Number) -> Iterator[Shape]:
    """Put the number among several, or make it an end or a bound."""
    n, next_, text, text_after = number.latex, _after(number).latex, number.text, _after(number).text
    yield "or", rf"\boxed{{{n} \text{{ or }} {next_}}}", None
    yield "or, in words", f"The answer is {text} or {text_after}.", None
    yield "and", f"The answer is {text} and {text_after}.", None
    yield "plus or minus", rf"\boxed{{{n} \pm 1}}", None
    yield "list", rf"\boxed{{{n}, {next_}}}", None
    yield "pair", rf"\boxed{{({n}, {next_})}}", None
    yield "set", rf"\boxed{{\{{{n}, {next_}\}}}}", None
    yield "vector", rf"\boxed{{\begin{{pmatrix}} {n} \\ {next_} \end{{pmatrix}}}}", None
    yield "two boxes", rf"The solutions are $\boxed{{{n}}}$ and $\boxed{{{next_}}}$.", None
    yield "closed interval", rf"\boxed{{[{_before(number).latex}, {n}]}}", None
    yield "half-open interval", rf"\boxed{{({n}, \infty)}}", None
    yield "greater", rf"\boxed{{x > {n}}}", None
    yield "at most", rf"\boxed{{x \le {n}}}", None
    yield "unequal", rf"\boxed{{x \ne {n}}}", None
    yield "double inequality", rf"\boxed{{{n} < x < {next_}}}", None
    yield "absolute value", rf"\boxed{{|x| = {n}}}", None if number.value else Fraction(0)
    yield "more than, in words", f"more than {text}", None
    yield "at least, in words", f"The answer is at least {text}.", None
    yield "between", f"It lies between {_before(number).text} and {text}.", None
    if not number.is_fraction:
        yield "ratio's first term", f"{text}:7", number.value / 7
        yield "ratio's second term", f"The ratio is 7:{text}.", 7 / number.value if number.value else None


def _others(number: Number) -> Iterator[Shape]:
    """Make other numbers that look like it."""
    value, text = number.value, number.text
    yield "sign", rf"\boxed{{{_negated(number)}}}", -value
    yield "one more", rf"\boxed{{{_after(number).latex}}}", value + 1
    yield "one less", f"The answer is {_before(number).text}.", value - 1
    yield "million", f"The answer is {text} million.", value * 10**6
    if number.is_fraction:
        yield "turned round", rf"\boxed{{{fraction(1 / value).latex}}}", 1 / value
        more = value + Fraction(1, value.denominator)
        yield "one part more", fraction(more).text, more
        return
    digits = text.lstrip("-")
    sign, step = text[: -len(digits)], Fraction(Decimal(1).scaleb(int(str(Decimal(digits).as_tuple().exponent))))
    yield "last digit", f"The answer is {_written(value + step, text)}.", value + step
    for name, other in {
        "reversed": digits[::-1],
        "first digit lost": digits[1:],
        "last digit lost": digits[:-1],
        "a digit before": "7" + digits,
        "a digit behind": digits + "7",
        "behind a point": f"3.{digits.replace('.', '')}",
        "hundredth": str(Decimal(digits) / 100) if Decimal(digits) > 1 else "",
    }.items():
        if other.strip(".") == other != "":
            yield name, rf"\boxed{{{sign}{other}}}", Fraction(sign + other)
    if number.is_integer and len(digits) == 3 and value > 0:
        yield "behind a comma", rf"\boxed{{1{{,}}{digits}}}", value + 1000
        yield "behind a thin space", rf"\boxed{{1\,{digits}}}", value + 1000
        yield "behind a space", f"The answer is 1 {digits}.", value + 1000
        yield "behind an apostrophe", f"The answer is 1'{digits}.", value + 1000


def _sentences(number: Number) -> Iterator[Shape]:
    """Mention the number in the sentence of another answer."""
    text, latex, other = number.text, number.latex, _after(number)
    yield "not", f"The answer is not {text}.", None
    yield "not, in Chinese", f"答案不是{text}。", None
    yield "step", f"In step {text} we find that the answer is {other.text}.", other.value
    yield "on the way", rf"First we get ${latex}$, and then \boxed{{{other.latex}}}.", other.value
    yield "check behind a box", f"\\boxed{{{other.latex}}}\n\n**Check:** this must not be {text}.", other.value
    yield (
        "taken back",
        rf"\boxed{{{latex}}}. Wait, one is missing. So the answer is \boxed{{{other.latex}}}.",
        other.value,
    )
    yield "refused", f"The answer is {other.text}, not {text}.", other.value
    yield "thought", f"<think>\nIt may be {text}.\n</think>\n<answer>\n{other.text}\n</answer>", other.value
    yield "confidence", f"Answer: {other.text}\nConfidence: {text}", other.value
    yield "empty box", rf"\boxed{{}} (in {text} steps)", None
    yield "undecided", f"It cannot be determined; it may be {text}.", None
    if number.is_integer and number.value > 0:
        yield "name", f"The answer is A{text}.", None
        yield "time", f"{text}:30", None


def right_spellings(number: Number) -> dict[str, str]:
    """Return, by name, texts that mean the number."""
    text, latex = number.text, number.latex
    spellings = {
        "bare": text,
        "boxed": rf"\boxed{{{latex}}}",
        "sentence": f"The answer is {text}.",
        "bold": f"**{text}**",
        "dollars": f"${latex}$",
        "inline brackets": rf"\({latex}\)",
        "display": f"\\[\n\\boxed{{{latex}}}\n\\]",
        "tags": f"<answer>\n{text}\n</answer>",
        "thought and tags": f"<think>\nIt may be 17.\n</think>\n<answer>{text}</answer>",
        "heading": f"### Final Answer\n\n{text}",
        "GSM8K's mark": f"We count them all.\n#### {text}",
        "x =": f"x = {text}",
        "x =, boxed": rf"\boxed{{x = {latex}}}",
        "unit": rf"\boxed{{{latex}\text{{ cm}}}}",
        "unit, in a sentence": f"It weighs {text} kg.",
        "full-width digits": _with_digits(text, "０"),
        "check behind": f"The answer is {text}.\n\n**Check:** both sides agree.",
        "steps before": rf"First 17 + 2 = 19, and then \boxed{{{latex}}}.",
        "Chinese": f"答案是{text}。",
        "Minerva's sentence": rf"The final answer is $\boxed{{{latex}}}$. I hope it is correct.",
        "box in a box": rf"\boxed{{\boxed{{{latex}}}}}",
        "closing phrase": f"The total is **{text}**.\n\nLet me know if you have any questions!",
        "code marks": f"`{text}`",
    }
    if number.value < 0:
        spellings["minus of typesetting"] = text.replace("-", "−")
    if number.is_fraction:
        return spellings | _fraction_spellings(number)
    return spellings | (_integer_spellings(number) if number.is_integer else _decimal_spellings(number))


def _integer_spellings(number: Number) -> dict[str, str]:
    value = int(number.value)
    commas = f"{value:,}"
    spellings = {
        "zero behind a point": f"{value}.0",
        "half of twice as much": rf"\boxed{{\frac{{{2 * value}}}{{2}}}}",
        "commas": f"The answer is {commas}.",
        "commas of LaTeX": rf"\boxed{{{commas.replace(',', '{,}')}}}",
        "thin spaces": rf"\boxed{{{commas.replace(',', chr(92) + ',')}}}",
        "spaces": f"The answer is {commas.replace(',', ' ')}.",
        "scientific": _scientific(number),
        "exponent": f"{Decimal(value):E}".replace("E+", "e"),
        "as text": rf"\boxed{{\text{{{value}}}}}",
    }
    if value >= 0:
        spellings |= {
            "Arabic digits": _with_digits(number.text, "٠"),
            "sign": f"+{value}",
            "amount": f"It costs ${commas}.",
        }
    return spellings


def _decimal_spellings(number: Number) -> dict[str, str]:
    spellings = {
        "zero behind": f"{number.text}0",
        "as a fraction": rf"\boxed{{{fraction(number.value).latex}}}",
        "slash": str(number.value),
        "scientific": _scientific(number),
        "percent": rf"\boxed{{{(Decimal(number.text) * 100).normalize():f}\%}}",
    }
    if len(number.text.partition(".")[2]) != 3:
        spellings["decimal comma"] = f"Die Antwort ist {number.text.replace('.', ',')}."
    if abs(number.value) < 1:
        spellings["no zero before the point"] = number.text.replace("0.", ".", 1)
    return spellings


def _fraction_spellings(number: Number) -> dict[str, str]:
    value, sign = number.value, "-" if number.value < 0 else ""
    top, bottom = abs(value.numerator), value.denominator
    spellings = {
        "LaTeX": number.latex,
        "display fraction": number.latex.replace("frac", "dfrac"),
        "sign above": rf"\boxed{{\frac{{{sign}{top}}}{{{bottom}}}}}",
        "not reduced": rf"\boxed{{{sign}\frac{{{3 * top}}}{{{3 * bottom}}}}}",
        "spaces": f"{sign}{top} / {bottom}",
    }
    if top > bottom:
        whole, rest = divmod(top, bottom)
        spellings["mixed"] = rf"\boxed{{{sign}{whole}\frac{{{rest}}}{{{bottom}}}}}"
        spellings["mixed, plain"] = f"The answer is {sign}{whole} {rest}/{bottom}."
    return spellings


def _after(number: Number) -> Number:
    return _shifted(number, 1)


def _before(number: Number) -> Number:
    return _shifted(number, -1)


def _shifted(number: Number, by: int) -> Number:
    """Write the number plus `by` in the same form."""
    value = number.value + by
    if number.is_fraction:
        return fraction(value)
    return decimal(_written(value, number.text)) if "." in number.text else integer(int(value))


def _written(value: Fraction, like: str) -> str:
    """Write a value with as many decimals as a text has."""
    places = len(like.partition(".")[2])
    return f"{Decimal(int(value * 10**places)).scaleb(-places):f}"


def _negated(number: Number) -> str:
    return number.latex.removeprefix("-") if number.value < 0 else f"-{number.latex}"


def _scientific(number: Number) -> str:
    mantissa, _, exponent = f"{Decimal(number.text):E}".partition("E")
    return rf"\boxed{{{mantissa} \times 10^{{{int(exponent or 0)}}}}}"


def _with_digits(text: str, zero: str) -> str:
    """Write the text with the decimal digits of another script."""
    return text.translate({ord("0") + digit: ord(zero) + digit for digit in range(10)})
