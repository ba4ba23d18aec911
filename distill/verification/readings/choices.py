r"""Reads the letter that a text chooses of a multiple choice: `(B)`, `B) Paris`, `\textbf{(B)}\ 16`, "Option B",
`选B`."""

from __future__ import annotations

import re

from distill.verification.readings.strings import main_clauses, plain_words, said_in, without_aside, without_style
from toolkit.answers.qualifiers import DOUBT, NO_ANSWER

LETTERS = "ABCDEFGHIJ"
_JOINED = r"\s*(?:,|&|/|;|\band\b|\bor\b|\bund\b|\boder\b|\bet\b|\bou\b|或|和|、|,\s*(?:and|or))\s*"
_SEVERAL = re.compile(rf"(?<![\w'])\(?[{LETTERS}]\)?{_JOINED}\(?[{LETTERS}]\)?(?![\w'])")
_CHOICE = re.compile(
    rf"(?:(?:the\s+)?(?:correct\s+|right\s+|best\s+)?(?:option|choice|answer|letter)s?\s+)?(?:选[项择]?|選択?)?\s*"
    rf"(?:\(([{LETTERS}])\)|([{LETTERS}])(?=\s*$|[.):,;]|\s+[-—]|\s*[项項])|\[([{LETTERS}])\])[.):,;项項]*\s*(?:[-—]\s+)?(.*)",
    re.IGNORECASE | re.DOTALL,
)


_LETTER_BEHIND = re.compile(rf"(\S.*?)(?<! than),?\s+(?:\(|option \(?)([{LETTERS}])\)?[.。!]?")
"""`Jupiter (B)`"""
_ALONE = re.compile(rf"(?<![\w'])\(?([{LETTERS}])\)?(?![\w'])(?!\s+(?!(?:are|is|and|or)\b)[a-z]{{2,}})")
_VARIABLE = re.compile(
    rf"[{LETTERS.lower()}] is (?!(?:the |my |our )?(?:correct|right|best|better|answer|option|choice|final)\b)"
    rf"|[{LETTERS}] is (?:the|a) (?:variable|unknown)\b"
)
"""A letter that is mentioned but not chosen."""
_OTHER_IS_RIGHT = re.compile(
    rf"^\W*(?:(?i:however|but|although|though|yet|no|on second thought)\b[^.]*?"
    rf"(?<![\w'])\(?([{LETTERS}])\)?\s+(?:is|was)\s+"
    rf"|.*?(?<![\w'])\(?([{LETTERS}])\)?\s+is\s+(?=(?:also|actually|really|in fact|equally|just as)\b))"
    r"(?:(?:also|actually|really|in fact|the|equally|just as)\s+)*(?:right|correct|better|best|answer)\b",
    re.DOTALL,
)
"""Words after a letter that choose another one; an option may itself say "A is correct, but B is not"."""
_TAKEN_BACK = re.compile(rf"\b(?:wait|actually|should be|correction)\b|^\W*(?:or\s+)?{DOUBT}\b", re.IGNORECASE)
_REFUSED = re.compile(
    rf"(?:(?:it|this|that) )?(?:is |are )?(?:{NO_ANSWER}|(?:wrong|incorrect|false|not)\b)|"
    r"(?:can|could|must) be (?:ruled out|eliminated|excluded)|cannot|错误|不对|不正确",
    re.IGNORECASE,
)


def choice_of(text: str) -> tuple[str, str] | None:
    """Return (letter, text after it); None if the text does not begin with the letter of a choice."""
    text = re.sub(r"[*`\"]", "", without_style(text)).strip().rstrip(".。!")
    found = _CHOICE.fullmatch(text)
    return None if not found else ((found[1] or found[2] or found[3]).upper(), found[4].strip())


def choice_in(text: str, question: str = "") -> str | None:
    """Return the letter that a final answer chooses, by name or by the text of an option; "" if it names two."""
    options = options_in(question)
    if any(_SEVERAL.search(without_aside(without_style(clause))) for clause in main_clauses(text)):
        return ""
    if any(_VARIABLE.match(clause) for clause in main_clauses(without_style(text))):
        return None
    for said in said_in(text):
        behind = _LETTER_BEHIND.fullmatch(said)
        if choice := choice_of(said) or (behind and (behind[2], behind[1])):
            letter, content = choice
            if _REFUSED.match(content):
                continue
            other = _OTHER_IS_RIGHT.match(content)
            if (other and letter not in other.groups()) or _TAKEN_BACK.search(content):
                return ""
            others = [other for other, option in options.items() if option and option == plain_words(content)]
            return "" if others and letter not in others else letter
        named = [letter for letter, option in options.items() if option and option == plain_words(said)]
        if len(named) == 1:
            return named[0]
    return None


def choices_of(text: str) -> frozenset[str] | None:
    """Read a whole text as two or more letters: `A, C`, `(B) and (D)` or, in alphabetical order, `BD`."""
    bare = without_style(text).strip(" .")
    if re.fullmatch(rf"[{LETTERS}]{{2,5}}", bare) and list(bare) == sorted(set(bare)):
        return frozenset(bare)
    if not re.fullmatch(rf"(?:both\s+)?\(?[{LETTERS}]\)?(?:{_JOINED}\(?[{LETTERS}]\)?)+", bare):
        return None
    return frozenset(re.findall(rf"(?<![A-Za-z])[{LETTERS}](?![A-Za-z])", bare))


def choices_in(text: str) -> frozenset[str]:
    """Return all letters that a final answer chooses: both of `BD`, none of `B or D`."""
    if re.search(r"\b(?:or|oder|ou)\b|或", text):
        return frozenset()
    for said in said_in(text):
        bare = without_style(said).strip(" .")
        if letters := choices_of(bare):
            return letters
        if re.fullmatch(rf"[{LETTERS}]{{1,6}}", bare):
            return frozenset(bare)
    for clause in main_clauses(text):
        if found := _ALONE.findall(without_aside(without_style(clause))):
            return frozenset(found)
    return frozenset()


def options_in(question: str) -> dict[str, str]:
    """Return the choices that a question lists, one per line, by their letters."""
    found = re.findall(rf"^\s*\(?([{LETTERS}])[.):]\s+(\S.*?)\s*$", question, re.MULTILINE)
    return {letter: plain_words(said) for letter, said in found}
