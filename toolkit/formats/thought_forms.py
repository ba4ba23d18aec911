"""Splits a model's text into thought and answer, in the forms in which models write their thoughts.

    <think> … </think> answer            also with other names: thinking, thought, reasoning, seed:think …
    … </think> answer                    the template opened the thought (DeepSeek-R1)
    [THINK] … [/THINK] answer            Magistral
    ◁think▷ … ◁/think▷ answer            Kimi
    <|begin_of_thought|> … <|end_of_thought|> <|begin_of_solution|> answer <|end_of_solution|>      Sky-T1
    <|START_THINKING|> … <|END_THINKING|> <|START_RESPONSE|> answer <|END_RESPONSE|>                Command A
    <|channel|>analysis<|message|> … <|end|> … <|channel|>final<|message|> answer                   gpt-oss
    Here is my thought process: … Here is my response: answer                                       Granite

It reads one thought before the answer, opened at most once and closed once. Anything else (text before the thought, two
thoughts, nested tags) stays in the answer with its tags, where `has_thought_tags` finds them: which part of such a text
is the answer cannot be told.
"""

from __future__ import annotations

import re

from toolkit.formats.chat_format import CLOSE, OPEN, Completion, split_completion

_NAME = (
    r"(?:\w+[_:])?think(?:ing)?|antthinking|thoughts?|thought_process|reasoning(?:_process)?|rationale|scratchpad|"
    r"analysis|reflection|chain_of_thought|thinking_process|cot|(?:inner_)?monologue|inner_thoughts?"
)
"""Names of a thought's tags: `<think>`, `<seed:think>`, `<longcat_think>`, `<scratchpad>` …"""
_BRACKETED = "THINK|THINKING|THOUGHT|REASONING"
_OPENING = re.compile(
    rf"<\s*(?:{_NAME})(?:\s[^<>/]*)?>|(?-i:\[(?:{_BRACKETED})\])|◁think▷|"
    r"<\|(?:begin_of_thought|START_THINKING|inner_prefix|think)\|>",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    rf"<\s*/\s*(?:{_NAME})\s*>|(?-i:\[/(?:{_BRACKETED})\])|◁/think▷|<\|(?:end_of_thought|END_THINKING|inner_suffix|/think)\|>",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"<\|channel\|?>|<channel\|>")
_BROKEN_TAG = re.compile(
    rf"</?(?:think(?:ing)?|thought|reasoning)\b(?!-)|&lt;\s*/?\s*(?:{_NAME})\s*&gt;", re.IGNORECASE
)
"""Half a tag, or one that a server escaped as HTML."""

_SPOKEN = tuple(
    re.compile(rf"\A\s*(?:{opening})(?P<thought>.*?)(?:{closing})(?P<answer>.*)\Z", re.DOTALL)
    for opening, closing in (
        (
            r"(?:<\|start\|>assistant)?<\|channel\|>analysis<\|message\|>",
            r"<\|end\|>(?:<\|start\|>assistant)?<\|channel\|>final(?: ?<\|constrain\|>\w+)?<\|message\|>",
        ),
        (r"(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>", r""),
        (r"analysis(?=[A-Z])", r"assistant\s*final"),  # gpt-oss from a server that drops special tokens
        (r"(?:Here is|Here's) my thought process:", r"(?:Here is|Here's) my response:"),
        (r"## Thinking\n", r"\n## Final Response\n"),  # HuatuoGPT-o1
        (r"<\|im_start\|>think\n", r"<\|im_start\|>answer\n"),  # s1
        (r"<\|channel>thought\n", r"<channel\|>"),  # Gemma
    )
)
"""Forms whose marks are more than a tag; each mark must occur once."""
_SPOKEN_OPEN = re.compile(
    r"\A\s*(?:(?:<\|start\|>assistant)?<\|channel\|>analysis<\|message\|>|analysis(?=[A-Z])|"
    r"(?:Here is|Here's) my thought process:|<\|im_start\|>think\n|<\|channel>thought\n)"
)
_WRAPPED = re.compile(
    r"\A\s*(?:<\|begin_of_solution\|>(.*?)(?:<\|end_of_solution\|>)?|<\|START_RESPONSE\|>(.*?)(?:<\|END_RESPONSE\|>)?|"
    r"<(?P<tag>answer|final_answer|response|output|solution)>((?:(?!</?(?P=tag)>).)*)</(?P=tag)>)\s*\Z",
    re.DOTALL | re.IGNORECASE,
)
_TURN_ENDS = re.compile(
    r"(?:\s*(?:<\|(?:im_end|eot_id|eom_id|end|return|endoftext|end_of_text|END_OF_TURN_TOKEN)\|>|"
    r"<｜end▁of▁sentence｜>|<end_of_turn>|<turn\|>|<eos>|</s>))+\s*\Z"
)

_TURN_STARTS = re.compile(
    r"\A[\s\ufeff\u200b]*(?:(?:<s>|<bos>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>|<｜Assistant｜>|<start_of_turn>model\n|"
    r"<\|im_start\|>assistant\n|<\|start_header_id\|>assistant<\|end_header_id\|>)\s*)*(?=<)"
)


def has_thought_tags(text: str) -> bool:
    """Whether a text still holds a tag with which some model opens or closes its thoughts."""
    return _may_have_tags(text) and any(p.search(text) for p in (_OPENING, _CLOSING, _CHANNEL, _BROKEN_TAG))


def read_text(text: str, *, opened: bool = False) -> Completion:
    """Split a whole turn; `opened`: the prompt ended with the opening tag of `toolkit.formats.chat_format`.

    A text that cannot be split is all answer. Tokens of the turn's beginning and end that a server left are removed.
    """
    if text.rstrip().endswith(">"):
        text = _TURN_ENDS.sub("", text)
    text = _TURN_STARTS.sub("", text)
    if opened:
        return split_completion(text, opened=True)
    return _read_spoken(text) or _read_tags(text)


def without_thoughts(text: str) -> str:
    """Return a text without its thoughts: those between tags, before a lone closing tag, or after a lone opening
    one."""
    said, depth, end = "", 0, 0
    tags = sorted([*_OPENING.finditer(text), *_CLOSING.finditer(text)], key=lambda tag: tag.start())
    for tag in tags:
        said += "" if depth else text[end : tag.start()]
        end = tag.end()
        if _OPENING.fullmatch(tag.group()):
            depth += 1
        elif depth:
            depth -= 1
        else:
            said = ""
    return said if depth else said + text[end:]


def tagged(thought: str, answer: str) -> str:
    """Join a thought and its answer in the first form."""
    return f"{OPEN}\n{thought}\n{CLOSE}\n\n{answer}"


def _may_have_tags(text: str) -> bool:
    """Whether a text holds a sign that every tag has, which is much faster than to search for tags."""
    return any(sign in text for sign in "<[◁&")


def _read_tags(text: str) -> Completion:
    unsplit = Completion(reasoning="", answer=text, closed=True)
    if not _may_have_tags(text):
        return unsplit
    openings, closings = list(_OPENING.finditer(text)), list(_CLOSING.finditer(text))
    while len(openings) > 1 and not text[openings[0].end() : openings[1].start()].strip():
        del openings[0]  # the template's tag, which the model wrote again
    if len(openings) > 1 or len(closings) > 1 or not (openings or closings) or _CHANNEL.search(text):
        return unsplit
    begin = openings[0].end() if openings else 0
    if openings and _OPENING.sub("", text[:begin]).strip():
        return unsplit
    if not closings:
        return Completion(reasoning=text[begin:].strip("\n"), answer="", closed=False)
    return (
        _split(text[begin : closings[0].start()], text[closings[0].end() :])
        if closings[0].start() >= begin
        else unsplit
    )


def _read_spoken(text: str) -> Completion | None:
    for form in _SPOKEN:
        found = form.match(text)
        if found and not form.match(found["answer"]) and not any(map(has_thought_tags, found.groups())):
            return _split(found["thought"], found["answer"])
    opening = _SPOKEN_OPEN.match(text)
    if opening and not has_thought_tags(text[opening.end() :]):
        return Completion(reasoning=text[opening.end() :].strip("\n"), answer="", closed=False)
    return None


def _split(thought: str, answer: str) -> Completion:
    return Completion(reasoning=thought.strip("\n"), answer=without_wrapping(answer).strip("\n"), closed=True)


def without_wrapping(answer: str) -> str:
    """Return an answer without tags around all of it."""
    wrapped = _WRAPPED.match(answer)
    return next((inner for inner in wrapped.group(1, 2, 4) if inner is not None), "").strip() if wrapped else answer
