"""Finds the number that a sentence gives as its answer.

A sentence may hold other numbers: "The greatest common divisor of 12 and 18 is 6." The reference answer never decides
between them, but their places (right after "the answer is", after the last "is", before the first) and the question: a
number that the question holds is context, as often as it holds it. If nothing decides, the sentence gives no answer, and
the result says why.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from toolkit.answers.final_answer import FinalAnswer, sentences
from toolkit.answers.number_notation import FUNCTIONS, NUMBER_WORDS, WITH_COMMAS, number_in_words
from toolkit.answers.plain_numbers import plain_number
from toolkit.answers.qualifiers import DOUBT, says_another
from toolkit.answers.vocabulary import AND_OR, DETERMINERS, HENCE, IS_ABROAD, IS_OR_ARE_ABROAD

_NO_WORDS = FUNCTIONS | frozenset(["pi", "mod", "inf", "infinity", "root", "choose"])
"""Words that belong to a formula and not to the sentence around it."""
LONGEST = 2_000
"""The most characters of a sentence that is read; nobody's answer is longer."""
_WORD = re.compile(
    r"(?<![\\\w])[A-Za-z\u00c0-\u024f]{2,}(?:['-][^\W\d_]+)*\d{0,2}(?![\w{])|\b[aAI]\b(?=\s+[^\W\d_]{2})|\by (?:en )?a\b|[^\x00-\x7f]+"
)
_MEANING = re.compile(r"\d|\\(?:pi|infty|sqrt|frac)")
_REFERENCES = re.compile(
    r"\b(?:steps?|questions?|problems?|figures?|fig\.|equations?|eq\.|parts?|cases?|examples?|sections?|chapters?|lines?|tables?|"
    r"options?|exercises?)\s+\(?\d+\)?(?:\s*(?:and|,|-)\s*\d+)*(?![\w%])",
    re.IGNORECASE,
)
_PLACE = re.compile(
    r"(?<!this )(?<!that )(?<!each )(?<!every )(?<!any )(?<!either )\b"
    r"(step|question|problem|figure|fig\.|equation|eq\.|part|case|example|section|chapter|line|table|"
    r"exercise)\s+\(?\d+\)?(?![\w%])",
    re.IGNORECASE,
)
"""References that name a place in the text, which answer only a question for that place."""
_PRECISION = re.compile(
    r",?\s*\(?(?:rounded |correct |accurate )?(?:to|up to) (?:\d+|one|two|three|four|five|six) (?:decimal "
    r"places?|decimals|significant (?:figures|digits)|"
    r"digits?|d\.?p\.?|s\.?f\.?)\)?",
    re.IGNORECASE,
)
_QUOTED = re.compile(r'"([^"\n]*)"')
_BRACKET = re.compile(rf"\s*\((?!\s*(?:or\s+)?{DOUBT}\b[^()]*\d)([^()]*[^\W\d_]{{2,}}[^()]*)\)", re.IGNORECASE)
"""A remark in brackets, unless it names another possible number."""
_ASIDE = re.compile(
    r",?\s+(?:which|because|since|where|as (?:it|they|we|there|the)|given "
    r"that|after|da|weil|denn|car|parce que|puisque|porque|ya que|"
    r"perché|poiché|so dass|так как|потому что|поскольку)\b.*$"
    r"|\s+by\s+\w+ing\b.*$|,?\s+of (?:whom|which|them)\b.*$|\s+for "
    r"(?:the|each|every|all)\b.*$|\s+in (?:the )?\d+ words\b.*$"
    r"|,\s*(?:and )?not\b.*$|, (?:其中|因为).*$|\s+— .*$|;.*$",
    re.IGNORECASE | re.DOTALL,
)
_COMPOUND = (
    r"(?:hours?|hrs?|h|minutes?|mins?|days?|weeks?|years?|months?|feet|foot|ft|yards?|pounds?|lbs?|kg|kilograms?|km|kilometers?|"
    r"m|meters?|metres?|dollars?|degrees?|gallons?|quarts?)"
)
_COMPOUND_RUN = re.compile(
    rf"\b(?:one|an?|\d[\d,.]*)\s*{_COMPOUND},?(?:\s+and)?\s+(?:\d[\d,.]*|{NUMBER_WORDS.pattern})\s*[a-zA-Z]+\b",
    re.IGNORECASE,
)
_ALTERNATIVE = re.compile(
    rf"(?:\b(?:{AND_OR}|o|either|plus|minus|times|over|versus|vs|{DOUBT})|或|和|、|또는|와)"
    rf"(?:\s*\b(?:{DOUBT}|even|also|be)\b)*\s*\W*$",
    re.IGNORECASE,
)
_RANGE = re.compile(r"^\s*(?:to|through|until|bis|a|à|~|-)\s*$", re.IGNORECASE)
_OPENING = re.compile(
    r"^\W*(?:(?:exactly|precisely|simply|just|only|therefore|thus|so|equal "
    r"to|approximately|about|around|roughly|nearly|a total of|"
    r"the number|the integer|the value|the sum of|that|there (?:are|is)|it is|we "
    r"have|an?|the|in total|clearly)\b[\s,:]*)*\W*$",
    re.IGNORECASE,
)
_COPULA_BEFORE = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?|makes?|made|gets?|gives?|leaves?|leaving|has|have|had|becomes?|yields?|costs?|total(?:s|ling)?|"
    rf"to|{IS_OR_ARE_ABROAD}|são|sono|get|obtain|left "
    r"with|totals|pays?|earns?|spends?|needs?|takes?)\b|[:=]|是|为|有|は|равно|равен)"
    r"\W*(?:(?:exactly|only|just|now|then|therefore|thus|also|a total of|equal "
    r"to|about|approximately|the number)\b\W*)*$",
    re.IGNORECASE,
)
_COPULA_AFTER = re.compile(
    rf"^\W*(?:is|are|was|would be|will be|must be|{IS_ABROAD})\s+(?:therefore |thus |indeed |also )?"
    rf"(?:{DETERMINERS}|how|what|that|equal|greatest|largest|der|die|das|le|la|el|o|il)\b",
    re.IGNORECASE,
)
_END = re.compile(r"^\W*(?:[^\W\d_]+\W*){0,4}$")
_NEGATIVE = re.compile(r"(?:\b(?:negative|minus|menos|moins|минус)\s+|负|負|マイナス)\s*$", re.IGNORECASE)
_UNFINISHED = re.compile(
    r"\b(?:so far|partial (?:count|sum|result)|(?:not|n't) finish|remaining cases|up to now|still need|more cases)\b",
    re.IGNORECASE,
)
_CONDITION = re.compile(
    r",?\s+(?:attained|achieved|reached|when|with "
    r"equality|with|for|at|if|as)\b[^.=]{0,24}?(?<![^\W\d_])[A-Za-z]\s*(?:=|is|\\to|->|approaches)\s*[^,.;]*(?=[.,;]|$)"
    r"|^(?:At|When|For|If|With)\s+\$?[A-Za-z]\s*(?:=|is)\s*[^,]+,\s*"
)
"""Where a value is attained, "attained at x = 2": this number is not the answer."""
_WORKED_OUT = re.compile(r"[-+*/].*=\s*(?P<number>[$€£]?\s*-?\d[\d.,]*)(?P<behind>\s*(?:[^\W\d_]+\W*){0,3})$")
"""A calculation with its result at the end: `9 eggs * $2 = $18`."""
_CONDITIONAL = re.compile(r"\b(?:otherwise|unless|else|if not)\b|\bif\b.*\bif\b|\bwhen\b.*\bwhen\b", re.IGNORECASE)
_RESULT = re.compile(rf"[,;.]\s+(?:{HENCE}|which (?:means|makes|leaves|gives))\s+(?=\S)", re.IGNORECASE)
_JOINED = re.compile(rf"\W*(?:{AND_OR}|o|&|{DOUBT})(?:\W*\b(?:{DOUBT}|even|also|be)\b)*\W*", re.IGNORECASE)
_ASSIGNED = re.compile(r"[A-Za-z]\s*=\s*-?[\d.,/]+")
_IN_BOTH = re.compile(rf"({NUMBER_WORDS.pattern})\s*\((\d[\d,]*)\)", re.IGNORECASE)
"""A number in words and in digits: `twelve (12)`."""
_OF_A_WHOLE = re.compile(r"\s+(?:\w+\s+)?of\s+(?:the|these|those|all|his|her|its|their|our|my)\s+(?:\w+\s+)?")
"""The words between a count and its total, `3 of the 5 boxes`."""
_TIMES_WORDS = {"once": 1, "twice": 2, "thrice": 3}
_TIMES_WORD = re.compile(r"\b(?:once|twice|thrice)\b", re.IGNORECASE)
_FRACTION_WORDS = re.compile(
    r"\b(?:(?:\d+|[a-z]+(?:-[a-z]+)?) and "
    r")?(?:an?|\d+|one|two|three|four|five|seven|nine)[\s-](?:hal(?:f|ves)|thirds?|quarters?|fourths?|fifths?|"
    r"sixths?|sevenths?|eighths?|ninths?|tenths?)\b(?! of an?\b)",
    re.IGNORECASE,
)
_BEFORE_MATHEMATICS = re.compile(r"(?:(?!(?<=[\s'\":(])\.\d)[,;:.?!'\"&#\s])*")
"""Marks before a stretch of mathematics, but for a point between a space, a quote or a colon and a digit."""
_LETTERS = re.compile(r"(?<=\d)\s+(?:[\"'][A-Za-z][\"']s?|[A-Za-z]'s)(?!\w)")
"""A letter that is counted, `3 r's`, which is not a prime mark."""


@dataclass(frozen=True)
class Said:
    """A number in a sentence: its formula, and the words before and after it."""

    text: str
    before: str
    behind: str


@dataclass(frozen=True)
class Unclear:
    """Says to a person why a sentence gives no answer."""

    why: str


def without_delimiters(text: str) -> str:
    r"""Remove the delimiters of mathematics, `$…$`, `\(…\)`, `\[…\]`; a `$` before an amount stays."""
    if "\\" in text:
        text = re.sub(r"\\[()]|\\[\[\]]", " ", text.replace("\\\\[", "\\\\ [")).replace(r"\$", "\ue000")
    if "$" in text:
        text = text.replace("$$", "$")
        position, pieces = 0, []
        while (start := text.find("$", position)) >= 0:
            end = text.find("$", start + 1)
            if end < 0 or _is_amount(text[start + 1 : end]):
                pieces.append(text[position : start + 1])
                position = start + 1
            else:
                pieces += [text[position:start], " ", text[start + 1 : end], " "]
                position = end + 1
        text = "".join(pieces) + text[position:]
        text = re.sub(r"\$(?![\s]*[-\d.])", "", text)
    return text.replace("\ue000", "$").strip()


def number_in(text: str, question: str = "", *, stated: bool = False) -> Said | Unclear:
    """Find the number that a sentence gives; `stated`: whether the text calls it the answer."""
    if len(text) > LONGEST:
        return Unclear(f"a sentence of {len(text)} characters, more than {LONGEST}")
    if _CONDITIONAL.search(text):
        return Unclear("it depends on something")
    if _UNFINISHED.search(text):
        return Unclear("it is not finished")
    for prepared in _preparations(without_delimiters(text), question):
        runs = _runs(prepared)
        if runs:
            said = _chosen(prepared, runs, question, stated=stated)
            if isinstance(said, Unclear) and (result := _WORKED_OUT.search(prepared)):
                said = Said(result["number"].strip(" .,"), "", result["behind"])
            if isinstance(said, Said) and says_another(said.before, said.behind):
                return Unclear(f"{prepared.strip()!r} does not say that it is {said.text}")
            return said
    if (times := _TIMES_WORD.search(text)) and not says_another(text[: times.start()], ""):
        return Said(str(_TIMES_WORDS[times[0].casefold()]), text[: times.start()], "")
    return Unclear("no number")


def number_said(found: FinalAnswer, question: str = "") -> tuple[str, Said | Unclear]:
    """Return (the sentence that was read, the number in it): the first sentence of a statement, else the last one; if
    it gives none, all of the text."""
    told = [sentence for sentence in sentences(found.text) if not sentence.rstrip().endswith("?")]
    if not told:
        return found.text, Unclear("a question") if "?" in found.text else number_in(found.text, question)
    sentence = told[0] if found.is_stated else _RESULT.split(told[-1])[-1]
    said = number_in(sentence, question, stated=found.is_stated)
    if isinstance(said, Unclear) and len(parts := _RESULT.split(sentence)) > 1:
        said = number_in(parts[-1], question)
    if isinstance(said, Unclear) and len(told) > 1:
        whole = " ".join(told)
        return whole, number_in(whole, question, stated=found.is_stated)
    return sentence, said


def plain_number_said(found: FinalAnswer, question: str = "") -> str:
    """Return the number that a final answer gives, as `plain_number` writes it; empty if it gives none."""
    if whole := plain_number(without_delimiters(found.text)):
        return whole
    _, said = number_said(found, question)
    return "" if isinstance(said, Unclear) else plain_number(said.text)


def _is_amount(between: str) -> bool:
    """Whether the text between two `$` follows a dollar sign of money, and so is not mathematics."""
    if not re.match(r"\s*[-\d.]", between):
        return not between.strip()
    words = re.sub(r"\\[A-Za-z]+(?:\{[^{}]*\})?", "", between)
    return bool(re.search(r"[^\W\d_]{2,}", words)) or between[-1:].isspace()


def _preparations(text: str, question: str) -> list[str]:
    """Return the sentence without its explanations, then with more and more of them, in case no number is left."""
    text = _IN_BOTH.sub(_once, _FRACTION_WORDS.sub(_fraction, text))
    text = re.sub(r"\\(?:text|mbox|textbf|mathrm)\s*\{([^{}]*)\}", r" \1 ", text)
    text = _LETTERS.sub(" letters", text)
    text = _CONDITION.sub("", text) if re.search(r"\d", _CONDITION.sub("", text)) else text
    text = re.sub(r"^\s*\(?(?:[a-j]|i{1,3}|\d{1,2})[.)]\s+(?=\S)", "", text) if re.search(r"\d", text[3:]) else text
    without = _PRECISION.sub("", _REFERENCES.sub(" ", text))
    unquoted = _QUOTED.sub(lambda found: f" {found[1]} " if re.fullmatch(r"[-+]?[\d.,]+", found[1]) else " ", without)
    without_brackets = _BRACKET.sub(" ", unquoted)
    whole = _PLACE.sub(lambda found: found[0] if found[1].casefold() in question.casefold() else " ", text)
    return [_ASIDE.sub("", without_brackets), without_brackets, unquoted, without, whole]


def _once(found: re.Match[str]) -> str:
    """Write a number that is given in words and in digits in digits only, if both are the same."""
    value = number_in_words(found[1])
    return found[0] if value is None or str(value) != plain_number(found[2]) else found[2]


def _fraction(found: re.Match[str]) -> str:
    """Write a fraction in words in digits; words before it that are no number stay."""
    text = found[0]
    while (value := number_in_words(text)) is None and " and " in text:
        text = text.split(" and ", 1)[1]
    return found[0] if value is None else f"{found[0].removesuffix(text)}{value.numerator}/{value.denominator}"


@dataclass(frozen=True)
class _Run:
    text: str
    start: int
    end: int


def _runs(text: str) -> list[_Run]:
    """Return the stretches of mathematics between the words of a sentence."""
    compounds = [found.span() for found in _COMPOUND_RUN.finditer(text)]
    borders = [(0, 0)]
    for found in _WORD.finditer(text):
        inside = any(start <= found.start() < end for start, end in compounds)
        if not inside and found[0].casefold() not in _NO_WORDS:
            borders.append(found.span())
    borders.append((len(text), len(text)))
    runs = []
    for (begin, start), (end, finish) in pairwise(borders):
        if finish > end and (value := number_in_words(text[end:finish])) is not None and _is_count(text, end, finish):
            runs.append(_Run(str(value), end, finish))
        piece = text[start:end]
        if begin is not None and _MEANING.search(piece):
            trimmed = _trimmed(piece if start else f" {piece}")
            if trimmed and trimmed[0] not in "^_" and _MEANING.search(trimmed):
                at = start + piece.index(trimmed)
                runs.append(_Run(trimmed, at, at + len(trimmed)))
    return _merged_words(text, sorted(runs, key=lambda run: run.start))


def _is_count(text: str, start: int, end: int) -> bool:
    """Whether a number word is a number: "one" often only points ("the one that", "one of")."""
    if text[start:end].casefold() != "one":
        return True
    return not re.match(r"\s*(?:of|that|who|which|can|way|has|must)\b", text[end:]) and not re.search(
        r"\b(?:the|this|that|no|any|each|every|which)\s*$", text[:start], re.IGNORECASE
    )


def _merged_words(text: str, runs: list[_Run]) -> list[_Run]:
    """Merge number words that follow each other into one number: "one hundred and five"."""
    merged: list[_Run] = []
    for run in runs:
        if merged and re.fullmatch(
            r"[\d.,]+\s+(?:hundred|thousand|million|billion|trillion)", text[merged[-1].start : run.end], re.IGNORECASE
        ):
            merged[-1] = _Run(text[merged[-1].start : run.end], merged[-1].start, run.end)
            continue
        if merged and not re.match(r"[\d\\(]", text[run.start]) and merged[-1].end <= run.start:
            both = text[merged[-1].start : run.end]
            if (value := number_in_words(both)) is not None:
                merged[-1] = _Run(str(value), merged[-1].start, run.end)
                continue
        merged.append(run)
    return merged


def _trimmed(piece: str) -> str:
    """Remove the sentence's own punctuation around a stretch of mathematics; the point of `.5` is not the sentence's."""
    piece = piece.removeprefix(_BEFORE_MATHEMATICS.match(piece)[0]).strip()  # type: ignore[index]
    if re.match(r"-\s", piece) or piece.startswith("- "):
        piece = piece[1:].strip()
    piece = re.sub(
        r"(?:[\s,;:?'\"&#=]|(?<![\d])!|\.(?:\s|$)|(?<=\D)\.)+$",
        "",
        piece.rstrip("!") if piece.endswith(" !") else piece,
    )
    for opening, closing in ("()", "[]", "{}"):
        if piece.startswith(closing) or (piece.count(closing) > piece.count(opening) and piece.endswith(closing)):
            piece = piece.strip(closing).strip()
        if piece.endswith(opening) or (piece.count(opening) > piece.count(closing) and piece.startswith(opening)):
            piece = piece.strip(opening).strip()
    return piece.strip(" ,;")


def _chosen(text: str, runs: list[_Run], question: str, *, stated: bool) -> Said | Unclear:
    """Choose the run in a sentence that is its answer."""
    unclear = Unclear(f"{len(runs)} numbers, {', '.join(run.text for run in runs[:6])}")
    for left, right in pairwise(runs):
        between = text[left.end : right.start]
        if _RANGE.match(between) or (_JOINED.fullmatch(between) and _is_range(text[: left.start])):
            return unclear
    if len({plain_number(run.text) or run.text for run in runs}) == 1:
        return _said(text, runs[0] if stated else runs[-1])
    first, last = runs[0], runs[-1]
    of_a_whole = len(runs) == 2 and first.text.isdecimal() and _OF_A_WHOLE.fullmatch(text[first.end : last.start])
    if of_a_whole and _OPENING.match(text[: first.start]):
        return _said(text, first)
    if stated and _OPENING.match(text[: first.start]):
        return unclear if _ALTERNATIVE.search(text[first.end : runs[1].start]) else _said(text, first)
    assigned = [run for run in runs if _ASSIGNED.fullmatch(run.text)]
    if len(assigned) == 1:
        return _said(text, assigned[0])
    counted = [run for run in runs if re.match(r"\s*times?\b(?!\s*(?:\d|as|more|less))", text[run.end :])]
    if len(counted) == 1:
        return _said(text, counted[0])
    if re.search(r"\d\s*[-+*/].*=", last.text) and _END.match(text[last.end :]):
        return _said(text, last)  # the result of a calculation at the end of the sentence
    at_end = _COPULA_BEFORE.search(text[: last.start]) and _END.match(text[last.end :])
    at_start = _OPENING.match(text[: first.start]) and _COPULA_AFTER.match(text[first.end :])
    if bool(at_end) != bool(at_start):
        return _said(text, last if at_end else first)
    left_over = _not_in(question, runs)
    if len({plain_number(run.text) or run.text for run in left_over}) == 1 and not _is_joined(
        text, runs, left_over[-1]
    ):
        return _said(text, left_over[-1])
    return unclear


def _is_range(before: str) -> bool:
    return bool(
        re.search(r"\b(?:between|from|zwischen|von|entre|de|tra|fra|между|от)\s+[$€£]?$", before, re.IGNORECASE)
    )


def _is_joined(text: str, runs: list[_Run], run: _Run) -> bool:
    """Whether only "and" or "or" is between a number and another one."""
    neighbours = [(one, other) for one, other in pairwise(runs) if run in (one, other)]
    return any(_JOINED.fullmatch(text[one.end : other.start]) for one, other in neighbours)


def _not_in(question: str, runs: list[_Run]) -> list[_Run]:
    """Return the runs whose numbers the question does not hold, or holds fewer times."""
    known = Counter(_digits(found[0]) for found in WITH_COMMAS.finditer(without_delimiters(question)))
    left = []
    for run in runs:
        if known[_key(run)] > 0:
            known[_key(run)] -= 1
        else:
            left.append(run)
    return left


def _key(run: _Run) -> str:
    return plain_number(run.text).lstrip("-") or run.text


def _digits(text: str) -> str:
    return plain_number(text) or text


def _said(text: str, run: _Run) -> Said:
    before = text[: run.start]
    if negative := _NEGATIVE.search(before):
        return Said(f"-{run.text}", before[: negative.start()], text[run.end :])
    return Said(run.text, before, text[run.end :])
