"""Recognizes words that make a number beside them another, or none: denials, bounds, parts and multiples.

"not 42", "mindestens 42", "42 or more" and "twice 42" name 42 but do not say that the answer is 42. "about 42" and
"exactly 42" do. Only words right before or right after the number count; a denial elsewhere in the sentence does not.
"""

from __future__ import annotations

import re

from toolkit.answers.vocabulary import MAYBE, NOT

_FILLERS = r"(?:(?:be|been|equal|to|exactly|the|number|simply|just|always|answer|value|of|is|das|die|der|la|le|el|il|een|de|là)\s+)*"
_NOT = (
    rf"{NOT}|cannot|no|nor|neither|hardly|unequal|different from|instead of|rather "
    r"than|kein\w*|niemals|jamais|"
    r"não(?: é)?|non(?: è)?|nunca|ни|nie|niet|geen|inte|ikke|bukan|tidak|không(?: "
    r"phải)?|değil|wrongly|incorrectly|falsely|n't"
)
_DOUBT = rf"{MAYBE}|vielleicht|peut-être|quizás?|talvez|forse|может быть|возможно"
DOUBT = rf"(?:{_DOUBT})"
"""Words of doubt, as a pattern."""
NO_ANSWER = (
    r"(?:(?:only|just|merely|really|actually|clearly)\s+)?(?:(?:an?|one of the)\s+(?:\w+\s+)?"
    r"(?:distractors?|decoys?|traps?|red herrings?|mistakes?|typos?|placeholders?)"
    r"|(?:an?|the)\s+(?:wrong|incorrect|false)\s+(?:answer|option|choice|value|result))\b"
)
"""What an answer is said to be, after "is", when it is none, as a pattern."""
_BOUND = (
    r"(?:more|less|fewer|greater|larger|smaller|bigger|higher|lower|other|rather|older|younger)\s+than(?:\s+or\s+equal\s+to)?"
    r"|at\s+(?:least|most)|over|under|above|below|up\s+to|exceeds?|exceeding|beyond|(?:minimum|maximum)\s+of|almost|nearly|close\s+to"
    r"|just\s+(?:under|over|short\s+of)|between|from|(?:\w+er|mehr|weniger)\s+als|mindestens|höchstens|wenigstens|über|unter|bis\s+zu|fast|"
    r"beinahe|knapp|zwischen|au\s+(?:moins|plus)|plus\s+de|moins\s+de|presque|près\s+de|entre|jusqu'à|al\s+menos|(?:como|a\s+lo)\s+(?:máximo|mucho|sumo)"
    r"|más\s+de|menos\s+de|casi|hasta|pelo\s+menos|no\s+(?:máximo|mínimo)|mais\s+de|quase|até|almeno|al\s+(?:massimo|minimo)|più\s+di|meno\s+di|quasi|"
    r"не\s+(?:менее|более|меньше|больше)|более|менее|больше|меньше|почти|около|до|между"
    r"|أكثر\s+من|أقل\s+من|على\s+الأقل|بیش\s+از|کمتر\s+از|حداقل"
)
_TIMES = (
    r"twice|thrice|half(?:\s+of)?|double|triple|(?:a\s+)?(?:third|quarter|tenth)\s+of|(?:square|cube)\s+root\s+of|square\s+of|\d\s*(?:times|%\s+of)"
    r"|percent\s+of|multiple\s+of|factors?\s+of|divisors?\s+of|doppelt|die\s+hälfte\s+von"
)
_BEFORE = re.compile(
    r"(?:(?:^|\b(?:was|is|were|started|ended|came|happened|occurred)\s+)(?:before|after|until|since|by)\s+"
    r"|\b(?:but|except(?: for)?|other than|besides|excluding|log(?:arithm)?(?: (?:to the )?base)?|base|so far)\s+"
    r"|(?:\b(?:not|never)|n't)\s+(?:appear|occur|contain|have|include|equal|exceed|show "
    r"up|add up to|come to|make)\w*\s+"
    r"|\bnone of (?:these|those|them|the (?:above|options|choices))\b[^;,.]*\s"
    r"|\bif\b[^;,.\d]*\b(?:were|was|had been)\s+"
    r"|\b(?:suppos(?:e|ing)|assum(?:e|ing)|whether|(?:check|see|verify) if)\b[^;,.\d]*[\s=]"
    r"|\b(?:one|none|some|most|many|few|several|half|part|neither|any) of "
    r"(?:the|these|those|his|her|its|their|our|my)\s+"
    rf"|(?:\b(?:{_NOT})|(?<=n)'t)\s+{_FILLERS}|\b(?:{_DOUBT})(?:\s+(?:also|well|be|have|been|sein|être|ser))*\s+|\b(?:{_BOUND})\s+|\b(?:{_TIMES})\s+"
    r"|(?:不是|不等于|并非|至少|至多|最多|最少|超过|超過|大于|小于|少于|多于|不到|将近|接近|百分之|ليس)\s*)[$€£¥]?\s*$",
    re.IGNORECASE,
)
_BEHIND = re.compile(
    r"\s*(?:\w+\s+)??(?:at\s+(?:most|least)|or\s+(?:more|less|fewer|greater|so\s+more|above|below|higher)|and\s+(?:above|up)|minimum|max(?:imum)?|plus\b"
    r"|oder\s+(?:mehr|weniger)|ou\s+(?:plus|moins)|o\s+(?:más|menos)|au\s+(?:moins|plus)|или\s+(?:более|менее|больше))\b"
    r"|\s*(?:\w+\s+)??(?:less|more|fewer|greater|larger|smaller|higher|lower)\s+than\b"
    r"|\s*(?:doesn't|does not|didn't|can't|cannot|can not|fails|不对|不正确|错|est "
    r"(?:faux|incorrect)|es (?:falso|incorrecto)|so far)"
    rf"|\s*(?:\w+\s+)?(?:is|was|are|were)\s+{NO_ANSWER}"
    r"|[\s,]*(?:\w+\s+)?(?:is|was|are|would "
    r"be)\s*(?:n't|not\b|never\b|wrong\b|incorrect\b|false\b|impossible\b|too\b|neither\b)"
    r"|\s*(?:\w+\s+)??(?:divided by|multiplied by|to the power|remainder\b|times (?:as|the|\d)|out "
    r"of\b|of\s+\$?\d|mod(?:ulo)?\b|choose\b|over \d"
    r"|short of|off\b|way from|if\b|unless\b|when\b)"
    r"|\s*(?:st|nd|rd|th)\b|\s+times\s+[b-hj-zB-HJ-Z](?!\w)"
    r"|\s*(?:squared|cubed|factorial|below zero|times (?:as|more|less)|n'est\b|no "
    r"es\b|não é\b|non è\b|ist (?:nicht|falsch)\b|nicht\b)"
    r"|\s*(?:‰|分之|を超|到\s*\d|至\s*\d|から\s*\d|倍|以上|以下|未満|以内|不足|ではな|じゃな|でな|이\s*아|가\s*아|은\s*아|는\s*아|이상|이하|미만|초과|보다|से\s+(?:अधिक|कम|ज़्यादा)|नहीं|नही|نیست|değil)"
    r"|\s*[^\s\d]{0,3}\s*(?:ではありません|ではない|じゃない|아닙니다|아니|이상|이하|미만|以上|以下|未満|倍|नहीं|نیست|değil)",
    re.IGNORECASE,
)


def says_another(before: str, behind: str) -> bool:
    """Whether the words before or behind a number say that the answer is not this number."""
    return bool(_BEFORE.search(before) or _BEHIND.match(behind))
