r"""Reads answers that are not mathematics: words, truth values, codes, lists and data, also within a sentence.

A sentence gives an answer if its main clause says just that ("It was Marie Curie.") and nothing in it denies or doubts
it or names another one ("not Paris", "Paris or London", "Lyon, although many believe it is Paris"). A string that only
looks like mathematics (`555-1234`, `H2O`) is compared as a string.
"""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from toolkit.answers.final_answer import sentences
from toolkit.answers.plain_text import STYLED, plain_text
from toolkit.answers.qualifiers import NO_ANSWER
from toolkit.answers.sentences import without_delimiters
from toolkit.answers.vocabulary import DETERMINERS, HENCE, IS_ABROAD, IS_OR_ARE_ABROAD, IS_WITHOUT_SPACES, MAYBE, NOT

LONGEST = 1_000
"""Most characters of a sentence that is taken apart."""
_DENIAL = re.compile(
    rf"(?<!\bit )\b(?:is|was|are) {NO_ANSWER}|"
    r"\b(?:is|was|are) (?:wrong|incorrect|too "
    r"(?:early|late))\b"
    rf"|\b(?:{NOT}|neither|nor|cannot|isn't|aren't|wasn't|don't|doesn't|can't|won't|kein\w*|não|non è)\b|n't\b"
    r"|不是|不(?!等|同|定|变|妨)|ではない|ではありません|아니|ليس|नहीं|نیست|değil|không phải",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    rf"\b(?:{MAYBE}|either|cannot be "
    r"determined|unclear|unknown|used to|once was|formerly|previously|"
    r"originally|until recently|yesterday|(?:some|many|most|people)\b(?: \w+){0,2} "
    r"(?:say|think|believe|argue)|opposite|converse|inverse|"
    r"contrary)\b|\b(?:before|until|prior to)\s+\d|\bif\b.*\bwould\b|\bfor\b.*,.*\bfor\b|\bdepends\b",
    re.IGNORECASE,
)
_OVERTAKEN = re.compile(r"\b(?:but|yet)\b.*\b(?:now|later|then|today|actually|no longer)\b", re.IGNORECASE)
_SUBORDINATE = re.compile(
    r"[,;]?\s+(?:although|though|even though|while|whereas|however|some (?:people "
    r")?(?:would |might )?(?:say|think|argue|believe)|"
    r"many (?:people )?(?:say|believe|think))\b.*$",
    re.IGNORECASE | re.DOTALL,
)
_CONDITION = re.compile(
    r"^\s*(?:if|when|since|because|as|given that|(?:between|(?:out )?of|comparing) \S+ (?:and|or)(?= )|"
    r"wenn|si|se)\b[^,]*,\s*(?:then\s+)?",
    re.IGNORECASE,
)
"""A condition, or the options to choose from, before the main clause."""
_RESULT = re.compile(rf"[,.]\s+(?:{HENCE})\s+(?:the (?:answer|choice) is\s+)?(?=\S)", re.IGNORECASE)
_ASIDE = re.compile(
    r"(?:,|;|:| -| —)?\s+(?:because|since|as|for|which|who|where|whose|so that|given|by|according "
    r"to|after|due to)\b(?!\s+(?:next|last)\b).*$"
    r"|,\s+(?:the|a|an|not|and "
    r"not|but|it|this|that|they|we|at|in|with|\d|i|his|her|its|because)\b.*$|\s*\([^()]*\)\s*$|\s+—\s.*$"
    r"|,\s*(?:因为|因為|[\u4e00-\u9fff]{3}).*$",
    re.IGNORECASE | re.DOTALL,
)
_COPULA = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals|becomes?|reads?|says?|prints?|outputs?|returns?|called|named|call|"
    rf"{IS_OR_ARE_ABROAD}|war|это|являются?|namely|therefore|pick|choose|select|heißt|heisst|s'appelle|se llama|si chiama|"
    r"(?:written|painted|discovered|invented|composed|directed|founded|created|built|made) "
    rf"by)\b(?!-)|[:=]|\s—\s|{IS_WITHOUT_SPACES}|选|選)\s*",
    re.IGNORECASE,
)
_NO_RELATIVE = r"(?:(?!\b(?:that|which|who|where)\b).)*"
_TWO_CLAUSES = re.compile(
    rf"\b(?:is|are|was|were)\b{_NO_RELATIVE}\sand\s{_NO_RELATIVE}\b(?:is|are|was|were)\b", re.IGNORECASE | re.DOTALL
)
"""`Alice is a knight and Bob is a knave`: two statements."""
_BACK = re.compile(
    rf"^(.{{1,200}}?)\s+(?:(?:is|are|was|were)\s+(?:{DETERMINERS}|his|her|what|who|where|right|correct|"
    r"better|best)"
    r"|has|had|travel+ed|r[au]n|runs|g[eo]ts?|ma(?:kes?|de)|scored|earns?|earned|sells?|sold|received|wins?|finished|came|comes|wrote|painted|discovered|invented|composed|directed|founded|created|built|won)\b.*$",
    re.DOTALL | re.IGNORECASE,
)
_LEADING = re.compile(
    rf"^(?:{HENCE}|then|and|well|ok|okay|there (?:is|are|was)|it(?:'s| is| was)|this "
    r"is|that is|these are|they are|he is|she is|"
    r"(?:he|she|it|they|we) (?:has|have|had|gets?|got|needs?)|i (?:think|say|choose|pick|guess)|"
    r"i(?:'d|'ll| would| will) (?:go (?:with|for)|choose|pick|say)|exactly|simply|option|choice|answer|letter"
    r"|(?:the|a|an) (?:city|town|country|state|river|element|number|word|planet|colou?r|letter|year) "
    r"(?:of|is)|at|it|they|he|she|the|an?(?=\s+\w{2}))\b[\s,:]*",
    re.IGNORECASE,
)
_TRAILING = re.compile(r"(?:です|でした|だ|입니다|이다|است|है)\s*$")
_FOLLOWING = re.compile(r"(?:it|they|this|that|he|she|its|there)\b(?!\s+(?:is|are|was|were)\b)", re.IGNORECASE)
_TRUTHS = dict.fromkeys(
    ["yes", "true", "ja", "oui", "sí", "si", "sim", "да", "是", "对", "是的", "はい", "예", "네", "نعم", "हाँ"], True
) | dict.fromkeys(
    ["no", "false", "nein", "non", "não", "нет", "否", "不是", "错", "いいえ", "아니요", "لا", "नहीं"], False
)
_TRUTHS_SAID = dict.fromkeys(["t", "yeah", "yep", "correct", "always true", "not false"], True) | dict.fromkeys(
    ["f", "nope", "incorrect", "never true", "not true"], False
)
"""Whole answers that are truth values if one is expected."""
_TRUTH_WORD = "|".join(sorted(_TRUTHS, key=len, reverse=True))
_TRUTH_FIRST = re.compile(
    rf"\W*(?:(?:indeed|certainly|well|actually|of course),?\s+)?({_TRUTH_WORD})(?=\W*$|\s*[.,;:!—-])", re.IGNORECASE
)
_TRUTH_LAST = re.compile(
    rf"(?:\b(?:is|are|was|be|{IS_ABROAD})|'s|([:=])|\b(?:is|are|was)n't)\s+(not\s+)?({_TRUTH_WORD})\W*$",
    re.IGNORECASE,
)
_DENIED_NEXT = re.compile(r"(?:\bnot|n['’]t|\bnever)\W*$", re.IGNORECASE)
"""Before a colon, a denial of what stands behind it."""
_EXCEPT = re.compile(r"\W*(?:but\s+|and\s+)?(?:unless|except)\b", re.IGNORECASE)
_ON_CONDITION = re.compile(
    r"\W*(?:but\s+|and\s+|provided\s+)?(?:only (?:if|for|when|in|with|where)\b|unless\b|except\b|if\b|not "
    r"(?:always|necessarily|for all)\b|sometimes\b"
    r"|part(?:ly|ially)\b|in (?:some|certain) cases\b|nur (?:wenn|für)\b|seulement si\b|solo si\b|但只|只有)",
    re.IGNORECASE,
)
"""Words after a yes that restrict it to some cases."""
_CODE = re.compile(r"(?<![^\s\"'`,;()])[^\s\"'`,;()\d]*\d[^\s\"'`,;()]*")


def plain_words(text: str) -> str:
    """Reduce a text to lower case without styles, quotes, articles and surrounding punctuation."""
    text = STYLED.sub(r" \1 ", without_delimiters(text)).replace("\\ ", " ").replace("~", " ")
    text = re.sub(r"\s*(\\[A-Za-z]+)\s*", r" \1 ", unicodedata.normalize("NFKC", text).casefold())
    text = re.sub(r"[\"`*“”‘《》「」]+|(?<!\w)_|_(?!\w)", "", text).strip(" \t\n.,;:!?。'…")
    return " ".join(re.sub(r"^(?:the|an?)\s+", "", text).split())


def without_style(text: str) -> str:
    r"""Strip `\text{…}`, `\textbf{…}` and the like, and the delimiters of mathematics around a text."""
    return STYLED.sub(r"\1", without_delimiters(text)).replace("\\ ", " ").strip()


def without_aside(text: str) -> str:
    """Strip the reason or remark after a clause."""
    return _ASIDE.sub("", text) or text


def says_otherwise(text: str) -> bool:
    """Return whether a clause denies or doubts what it names."""
    return bool(_DENIAL.search(text) or _DOUBT.search(text))


def main_clauses(text: str) -> list[str]:
    """Return a final answer's own statements, without others' beliefs, the past and reasons; the last result first."""
    if len(text) > LONGEST:
        return []
    told = _last_told(text)
    if _OVERTAKEN.search(told):
        return []
    clause = _RESULT.split(_SUBORDINATE.sub("", _CONDITION.sub("", told)))[-1]
    clauses = [clause, re.sub(r",\s*(?:and |but )?not\b.*$", "", clause)]
    return [clause for clause in dict.fromkeys(clauses) if clause.strip() and not says_otherwise(without_aside(clause))]


def _last_told(text: str) -> str:
    """Return the last sentence, or its part after a semicolon, that does more than add to the one before it."""
    told = [clause for sentence in sentences(text) or [text] for clause in re.split(r";\s", sentence)]
    while len(told) > 1 and (not told[-1].strip() or _FOLLOWING.match(told[-1])):
        told.pop()
    return told[-1]


def said_in(text: str) -> Iterator[str]:
    """Yield what a final answer may mean, from the whole of it to the shortest part of its sentence."""
    text = STYLED.sub(r" \1 ", without_delimiters(text)).strip()
    if text.endswith("?"):
        return
    yield text
    if len(text) > LONGEST:
        return
    seen, queue = {text}, [clause for clause in main_clauses(text) if not _TWO_CLAUSES.search(clause)]
    while queue:
        clause = queue.pop(0).strip(" \t,;")
        if clause not in seen:
            yield clause
        seen.add(clause)
        if len(seen) < 40:
            queue += [
                shorter for shorter in _shorter(clause) if shorter.strip(" \t,;") and shorter.strip(" \t,;") not in seen
            ]


def _shorter(text: str) -> Iterator[str]:
    yield _LEADING.sub("", text)
    yield _TRAILING.sub("", text.rstrip(" .。"))
    if (aside := _ASIDE.search(text)) and aside.start():
        yield text[: aside.start()]
    for copula in _COPULA.finditer(text):
        if text[copula.end() :].strip(" .!?"):
            yield text[copula.end() :]
    if back := _BACK.match(text):
        yield back[1]


def truth_of(text: str) -> bool | None:
    """Read a whole text as a truth value: yes, true, ja, 是 …"""
    return _TRUTHS.get(plain_words(text))


def truth_in(text: str) -> bool | None:
    """Find an answer's truth value, in its first word or after an "is"; None if it has none, or two."""
    if text.rstrip().endswith("?"):
        return None
    whole = truth_of(text)
    if whole is not None:
        return whole
    if (word := plain_words(text)) in _TRUTHS_SAID:
        return _TRUTHS_SAID[word]
    if _DOUBT.search(text) and "depends" in text:
        return None
    if first := _TRUTH_FIRST.match(text):
        rest = text[first.end() :]
        taken_back = re.search(
            rf"\b(?:wait|actually|rather|correction|hmm)\b.*\b({_TRUTH_WORD})\b", rest, re.IGNORECASE
        )
        truth = _TRUTHS[first[1].casefold()]
        return None if taken_back or (_ON_CONDITION if truth else _EXCEPT).match(rest) else truth
    clause = without_aside(_SUBORDINATE.sub("", _last_told(text)))
    if (last := _TRUTH_LAST.search(clause)) and not _DOUBT.search(clause):
        before, truth = clause[: last.start()], _TRUTHS[last[3].casefold()]
        if last[1] and _DENIAL.search(before):  # "that does not hold: false" says it twice, "is not: false" is unclear
            return False if not truth and not last[2] and not _DENIED_NEXT.search(before) else None
        said_here = re.split(r"[:;]", clause[: last.start(3)])[-1] if not last[1] else ""
        return truth != bool(last[2] or _DENIAL.search(said_here))
    return None


# Codes, lists, data


def plain_code(text: str) -> str:
    """Strip LaTeX from a code, and write hexadecimal digits in lower case."""
    text = re.sub(r"_\{([^{}]*)\}|_(?=\d)", r"\1", without_style(text)).strip(" `\"'")
    return text.casefold() if re.fullmatch(r"(?:0x|#)[0-9A-Fa-f]+", text) else text


def codes_in(text: str) -> set[str]:
    """Find all strings with a digit that stand alone between white space or quotes."""
    return {plain_code(found.rstrip(".!?:")) for found in _CODE.findall(without_style(text[:LONGEST]))}


def data_of(text: str) -> Any:
    """Read a bracketed text as a JSON or Python value; None if it is none, or holds no quotes."""
    text = text.strip().rstrip(".")
    if text[:1] not in ("{", "[", "(") or not re.search(r"[\"']|^\[\s*\]$|^\{\s*\}$", text) or len(text) > 20_000:
        return None
    try:
        return _plain_data(json.loads(text))
    except (ValueError, RecursionError):
        pass
    try:
        return _plain_data(ast.literal_eval(text))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def data_in(text: str) -> Any:
    """Read the last bracketed value of a text."""
    text = re.sub(r"^[ \t]*(?:```|~~~).*$", "", plain_text(text), flags=re.MULTILINE)
    for opening in list(re.finditer(r"[\[{(]", text))[:20]:
        end = max(text.rfind("]"), text.rfind("}"), text.rfind(")")) + 1
        if (value := data_of(text[opening.start() : end])) is not None:
            return value
    return None


def _plain_data(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_data(item) for item in value]
    return plain_words(value) if isinstance(value, str) else value


def list_of(text: str) -> list[str] | None:
    """Return the items of `apple, banana and cherry` or of `['a', 'b']`; None if the text is not a list of words."""
    text = without_style(text).strip().rstrip(".")
    data = data_of(text)
    if isinstance(data, list):
        return [str(item) for item in data]
    bare = text[1:-1] if text[:1] in "[(" and text[-1:] in "])" else text
    items = re.split(r"\s*[,;]\s*(?:and\s+)?|\s+(?:and|und|et|y|e)\s+", bare)
    if len(items) < 2 or not all(re.fullmatch(r"[^\W_](?:[\w'.-]| (?! )){0,40}", item) for item in items):
        return None
    return [plain_words(item) for item in items]


def listed_lines(text: str) -> list[str] | None:
    """Return the items of a numbered or bulleted list at the end of a text."""
    items: list[str] = []
    for line in reversed(plain_text(text).strip().split("\n")):
        found = re.fullmatch(r"\s*(?:[-*•+]|\d{1,3}[.)])\s+(\S.*)", line)
        if not found:
            break
        items.insert(0, plain_words(found[1]))
    return items if len(items) > 1 else None
