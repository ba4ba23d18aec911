r"""Finds where a text states its final answer, for the chat's page and for the verdicts alike.

    <answer>…</answer>  >  the last \boxed{…} that is not empty  >  #### …  >  "the answer is …"  >  the last sentence

The place further left counts, wherever it is in the text, so that a check or a doubt after a stated answer does not
replace it; of several of one kind the last one counts. An empty box (`\boxed{}`, a repeated instruction) and a statement
that only points ("see above") or denies ("is not 5") are skipped. Boxes side by side are one list. Marks of mathematics
are kept in the result; Markdown emphasis is not. The places come from the prompts and graders of GSM8K (####), MATH
(\boxed) and open-r1 (<answer>), and from what models write that know none of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from toolkit.answers.boxes import boxes, formula_around
from toolkit.answers.plain_text import plain_text, without_emphasis
from toolkit.answers.vocabulary import AND_OR, IS_ABROAD, IS_OR_ARE_ABROAD, IS_WITHOUT_SPACES, NOT

Place = Literal["tag", "box", "####", "statement", "end"]


@dataclass(frozen=True)
class FinalAnswer:
    """The answer that a text gives, and the place where it gives it."""

    text: str
    """One line, or as many as a bracket or display that begins in it spans; empty if the text gives no answer."""
    place: Place
    rest: str
    """The rest of the text (of the tag, of the box) from there, for answers of several lines."""

    @property
    def is_stated(self) -> bool:
        """Whether the text itself calls this its answer."""
        return self.place != "end"


_TAG = re.compile(
    r"<(?:final[-_]?)?answer>(.*?)(?:</(?:final[-_]?)?answer>|\Z)|\[answer\](.*?)(?:\[/answer\]|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_TAG_END = re.compile(r"(?:(?<=[^\s\"'`])|\n\s*)</(?:final[-_]?)?answer>", re.IGNORECASE)
"""The end of an answer whose opening tag is in the prompt; after a blank or a quote the tag is only mentioned."""
_IN_JSON = re.compile(
    r'^\s*(?:```\w*\s*)?\{[^{}]*"(?:final_?)?answer"\s*:\s*("(?:[^"\\\n]|\\.)*"|[^,{}\n]+)', re.IGNORECASE
)
_EMPTY_BOX = re.compile(r"\\boxed\s*\{\s*\}")
_PLACEHOLDER = re.compile(
    r"(?:\\text(?:bf|it|rm)?\s*\{)?\s*[<\[(]?(?:\.{2,}|\\[lc]?dots|\?+|_+|(?:your|the|final|insert)?[ "
    r"_]*(?:final[ _]*)?answer"
    r"(?: here)?|your[ _]result|result|\\cdots?|\\ldots)[>\])]?\s*\}?\s*",
    re.IGNORECASE,
)
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;&()\[\].:]|\\[(),;:!\]\[ "
    rf"]|\\q?quad|\\\\|\\text\{{\s*(?:and|or)\s*\}}|(?:{AND_OR}|和|或|与)\b"
    r"|[a-zA-Z](?:_\{?\w+\}?)?\s*=)*"
)
_HASHES = re.compile(
    r"(?:^[ \t]*####[ \t]+|(?<!#)####[ \t]*(?=[-+$€£]{0,2}\.?\d[\d.,/]*%?[ \t.]*$))(\S(?:(?!####).)*)$", re.MULTILINE
)
"""The marks on a line of their own, or with a number after them where the text has lost its line ends."""

_NOUNS = (
    r"\b(?:final |correct |right |best )?(?:answers?|ans)\b|\b(?:correct|right|best) (?:option|choice|statement)\b"
    r"|\b(?:antwort|ergebnis|l[öo]sung lautet|r[ée]ponse|r[ée]sultat|respuesta|resultado|resposta|risposta|risultato)\b"
    r"|\b(?:ответ\w*|результат)\b|(?:最终|正确)?(?:答案|结果|結果)|答え|解答|正解|回答|(?:최종 ?)?(?:정답|답)"
    r"|(?:الإجابة|الاجابة|الجواب|الناتج|النتيجة)|(?:उत्तर|जवाब)"
)
_COPULA = (
    r":|=|\b(?:is|are|was|would be|will be|should be|must be|equals|comes to"
    rf"|{IS_OR_ARE_ABROAD}|lautet|w[äa]re|beträgt|sería|são|sono|является|равен|равно|составляет)\b(?!-)"
    rf"|{IS_WITHOUT_SPACES}|即|が|이"
)
_STATEMENT = re.compile(
    rf"(?:{_NOUNS})(?:\s+(?!(?:is|are|was|{IS_ABROAD}|no|não|non|not|nicht|pas|ne|n'est|không|не)\b)[\w'()\"-]+){{0,8}}?\s*(?:{_COPULA})(?:\s*(?::|=))?",
    re.IGNORECASE,
)
_DASHED = re.compile(rf"(?:{_NOUNS})\s+(?:—|-)\s+(?=\S)", re.IGNORECASE)
_HINDI = re.compile(r"(?:उत्तर|जवाब)\s+(?=\d)")
_NO_COPULA = re.compile(r"答\s*[:：]|답\s*[:：]|^[ \t]*A\s*:(?=\s)", re.MULTILINE)
_HEADING = re.compile(
    r"^[ \t>#*_\d.)-]*(?:the |my |our |die |la |le |il |o |a )?(?:final |correct |short |endgültige |respuesta )?"
    rf"(?:{_NOUNS}|final result)(?: finale?| correcta?)?[ \t]*[:：]?[ \t#*_]*$",
    re.IGNORECASE | re.MULTILINE,
)
_BACKWARD = re.compile(
    r"^(?P<answer>[^\n]*?\S)\s+(?:is|are)\s+(?:the|my|our)\s+(?:final\s+|correct\s+|right\s+|best\s+)?"
    r"(?:answer|option|choice)\b(?!\s+(?:to|of|for)\s+\w+\s+(?:is|are)\b)",
    re.IGNORECASE | re.MULTILINE,
)
_POINTER = re.compile(
    r"(?:(?:as\s+)?(?:see|seen|shown|given|stated|written|boxed|found|derived|calculated|computed|noted|above|below|mentioned)\b"
    r"|(?:in|inside)\s+the\s+box|the\s+same\b|what\s+(?:we|i|was|is)\b|correct\b|right\b(?!\s+angle)|incorrect\b|wrong\b"
    r"|clear(?:ly)?\b|obvious\b|therefore\b\W*$|indeed\b\W*$|thus\b\W*$)[^\d\\]*$",
    re.IGNORECASE,
)
_FOLLOWS = re.compile(r"(?:as follows|the following|below|given by|therefore|thus)\s*[:.]?\s*$", re.IGNORECASE)
_DENIAL = re.compile(rf"(?:{NOT}|n't|unlikely|no longer)\b", re.IGNORECASE)
_COURTESY = re.compile(
    r"\W*(?:(?:i )?hope\b|let me know|please (?:let|note|feel|ask)|feel free|if you "
    r"(?:have|need|want|would)|is there anything|"
    r"(?:let me|let's|let us|to|we can|you can|i(?:'ll| will| can)?|i should) (?:double[- "
    r"]?check|check|verify|re-?check|confirm)|"
    r"(?:double[- ]?check|check|verification|verify|checking|note|explanation|proof|qed|done)\s*[:.!]|"
    r"(?:done|great|good luck|have a|thank|happy to|so yes|that's it|that is "
    r"it|q\.?e\.?d)\b|this (?:is|can be) (?:verified|checked))",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(
    r"\b(?:that|this|which|it)(?:'s|\s+is|\s+was|\s+isn't|\s+wasn't)?\s+(?:actually\s+|also\s+)?(?:(?:wrong|incorrect)\b|not (?:right|correct|it)\b|(?:is|was) "
    r"(?:wrong|incorrect)\b)|\bi made an? (?:error|mistake)|\bfails the check\b|\bthe correct "
    r"(?:value|answer|result) is\b|\bactually,? no\b",
    re.IGNORECASE,
)
"""What takes back the answer before it."""
_LIST_MARK = re.compile(r"^\s*(?:[-*•>]\s+|\d{1,2}[.)]\s+(?=[^\d\s]))")
_SENTENCE_END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"')\]$]))\s+(?=[^\s=+*/^<>])|(?<=[。！？])\s*(?=\S)|(?<=[.!?])(?=[A-ZÀ-Þ][a-zß-ÿ])"
)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:st|dr|mr|mrs|ms|prof|no|nr|vs|e\.g|i\.e|approx|ca|mt|ft|jr|sr|eq|fig|cf|etc|u\.s|[a-z])\.$",
    re.IGNORECASE,
)
_MOST_LINES = 40


@lru_cache(maxsize=4_096)
def find_final_answer(text: str) -> FinalAnswer:
    """Find the final answer of a text, from which the reasoning has been removed."""
    plain = plain_text(text)
    found = _find(plain)
    tail = plain[plain.rfind(found.text) :] if found.text in plain else plain[-400:] if found.place == "box" else ""
    if found.text and found.place != "tag" and _TAKEN_BACK.search(tail):
        return FinalAnswer("", found.place, "")
    return found


def sentences(line: str) -> list[str]:
    """Split a line into sentences; a decimal point or an abbreviation ends none."""
    found: list[str] = []
    for piece in _SENTENCE_END.split(line):
        end = found[-1] if found else ""
        abbreviated = _ABBREVIATION.search(end[-12:])
        single = re.search(r"(?:^|\s)[A-Za-z]\.$", end)
        if abbreviated and not single:
            found[-1] += " " + piece
        else:
            found.append(piece)
    return [sentence for sentence in found if has_content(sentence)]


def has_content(text: str) -> bool:
    """Whether a text holds anything but punctuation."""
    return any(character.isalnum() for character in text) or "\\" in text.strip("\\[]() \n")


def _find(text: str) -> FinalAnswer:
    for tagged in map("".join, reversed(_TAG.findall(text))):
        if has_content(tagged) and not _PLACEHOLDER.fullmatch(tagged):
            inner = _find_marked(tagged) or FinalAnswer(_whole(without_emphasis(tagged)), "tag", tagged.strip("\n"))
            return FinalAnswer(inner.text, "tag", inner.rest)
    closings = [] if _TAG.search(text) else list(_TAG_END.finditer(text))
    if closings and has_content(text[: closings[-1].start()]):
        text = text[: closings[-1].start()]
    if (marked := _find_marked(text)) is not None:
        return marked
    if said := _IN_JSON.search(text):
        return FinalAnswer(said[1].strip('"'), "tag", said[1].strip('"'))
    if _EMPTY_BOX.search(text):
        return FinalAnswer("", "box", "")
    return _end(without_emphasis(text))


def _find_marked(text: str) -> FinalAnswer | None:
    """Find the answer in a box, after hashes or in a statement."""
    if "\\" in text and (boxed := _boxed(text)) is not None:
        return FinalAnswer(boxed, "box", boxed)
    if found := list(_HASHES.finditer(text)):
        last = found[-1]
        if not has_content(text[last.end() :]) and not _HEADING.match(last[0]):
            return FinalAnswer(without_emphasis(last[1]).strip(), "####", without_emphasis(last[1]))
    return _stated(without_emphasis(text))


def _boxed(text: str) -> str | None:
    """Return the content of the last box, with the formula that it is a part of; adjacent boxes are joined by commas."""
    filled = [box for box in boxes(text) if has_content(box[2])]
    real = [box for box in filled if not _PLACEHOLDER.fullmatch(box[2])] or filled
    if not real:
        return None
    group = [real[-1]]
    for box in reversed(real[:-1]):
        between = text[box[1] : group[0][0]]
        if "\n\n" in between or len(between) > 60 or not _BETWEEN_BOXES.fullmatch(between):
            break
        group.insert(0, box)
    held = [box[2] for box in group]
    if len(group) == 1 and (around := formula_around(text, *group[0])) is not None:
        return around
    return held[-1] if len(set(held)) == 1 else ", ".join(held)


def _stated(text: str) -> FinalAnswer | None:
    """Return the last statement that gives an answer; a doubtful one only if there is no other."""
    matches = [(found.end(), found.end()) for found in _STATEMENT.finditer(text)]
    for pattern in (_HEADING, _HINDI, _NO_COPULA, _DASHED):
        matches += [(found.end(), found.end()) for found in pattern.finditer(text)]
    matches += [(found.start("answer"), found.end("answer")) for found in _BACKWARD.finditer(text)]
    doubtful = None
    for start, end in sorted(set(matches), reverse=True):
        said = text[start:end] if end > start else _content(text[start:])
        if end > start:
            said = sentences(said)[-1] if sentences(said) else ""
            said = re.sub(r"^\W*(?:so|thus|hence|therefore|then|and)\b,?\s*", "", said, flags=re.IGNORECASE)
        said = said.strip()
        if not has_content(said) or _POINTER.match(said):
            continue
        answer = FinalAnswer(said, "statement", text[start:].strip("\n") if end == start else said)
        if _DENIAL.match(said) or "?" in said[-2:]:
            doubtful = doubtful or answer
            continue
        return answer
    return doubtful


def _content(text: str) -> str:
    """Return the first line with content, extended to where its brackets close."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if has_content(line) and not (_FOLLOWS.fullmatch(line.strip()) and any(map(has_content, lines[number + 1 :]))):
            return _closed(lines[number : number + _MOST_LINES], is_item=number > 0)
    return ""


def _closed(lines: list[str], *, is_item: bool = True) -> str:
    """Join the first line with those after it for as long as a bracket or an environment is open."""
    said = _LIST_MARK.sub("", lines[0]) if is_item else lines[0]
    for line in lines[1:]:
        opened = said.count("[") - said.count("]") + said.count("{") - said.count("}")
        if opened <= 0 and said.count(r"\begin{") <= said.count(r"\end{"):
            break
        said += " " + line.strip()
    return said.strip()


def _whole(text: str) -> str:
    """Return the answer in a text that is nothing else: its line, or the last sentence of several lines."""
    lines = [line for line in text.split("\n") if has_content(line)]
    return lines[0].strip() if len(lines) == 1 else _end(text).text


def _end(text: str) -> FinalAnswer:
    """Return the last line whose sentences are neither courtesies nor checks."""
    lines = text.split("\n")
    kept = [i for i, line in enumerate(lines) if has_content(line)]
    told = [i for i in kept if not all(map(_COURTESY.match, sentences(line_of(lines[i]))))] or kept
    if not told:
        return FinalAnswer("", "end", "")
    last = told[-1]
    while last > 0 and _is_inside(lines[: last + 1]):
        last -= 1
    said = _closed(lines[last : told[-1] + 1])
    kept_sentences = [sentence for sentence in sentences(said) if not _COURTESY.match(sentence)] or [said]
    return FinalAnswer(" ".join(kept_sentences), "end", text.strip("\n"))


def line_of(line: str) -> str:
    """Return a line without the mark of a list item."""
    return _LIST_MARK.sub("", line).strip()


def _is_inside(lines: list[str]) -> bool:
    """Whether the last of these lines closes a bracket or an environment that an earlier one opened."""
    last = lines[-1]
    closes = last.count("]") > last.count("[") or last.count(r"\end{") > last.count(r"\begin{")
    return closes and len(lines) > 1 and len(lines[-1]) < 2_000
