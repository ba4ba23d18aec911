"""Odd messages of servers and models, each with its expected fate: the table of docs/reference/traces.md.

`python -m tests.distill.broken_traces` rewrites the table.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.house.modules import ROOT
from toolkit.figures.tables import markdown_table
from toolkit.records import Problem

PAGE = ROOT / "docs" / "reference" / "traces.md"
BEGIN, END = "<!-- broken traces -->\n", "<!-- end of broken traces -->\n"
PROBLEM = Problem.create(family="user", question="Which is the greatest number that divides 12 and 18?", answer="6")
THOUGHT, ANSWER = "18 is 12 and 6 more, and 6 divides 12.", "The answer is 6."


@dataclass(frozen=True, kw_only=True)
class Row:
    """One message and its fate. A thought or answer of `None` means that of the problem."""

    name: str
    message: dict[str, Any]
    verdict: str
    """A reason of verdicts, or "graded": right or wrong, depending on how the odd answer reads."""
    fate: str
    """A reason of curation, or "kept"."""
    finish_reason: Any = "stop"
    thought: str | None = None
    answer: str | None = None


def kept(name: str, message: dict[str, Any] | str, **kwargs: Any) -> Row:
    return Row(name=name, message=_message(message), verdict="correct", fate="kept", **kwargs)


def dropped(name: str, message: dict[str, Any] | str, verdict: str, fate: str, **kwargs: Any) -> Row:
    return Row(name=name, message=_message(message), verdict=verdict, fate=fate, **kwargs)


def _message(message: dict[str, Any] | str) -> dict[str, Any]:
    return {"content": message} if isinstance(message, str) else message


def parts(*texts: tuple[str, str]) -> dict[str, Any]:
    """Make a content of parts, as Mistral and Anthropic send it."""
    return {"content": [{"type": kind, {"text": "text"}.get(kind, kind): text} for kind, text in texts]}


FIELD = {"reasoning_content": THOUGHT, "content": ANSWER}
LOOP = "Wait, let me check that once more. "
TURN = "<|im_end|>\n<|im_start|>user\nAnd 20?"
# fmt: off
ROWS = [
    # read
    kept("thought in `reasoning_content`", FIELD),
    kept("thought in `reasoning`, an object with a summary", {"reasoning": {"summary": [THOUGHT]}, "content": ANSWER}),
    kept("thought in `reasoning_details`", {"reasoning_details": [{"type": "reasoning.text", "text": THOUGHT}], "content": ANSWER}),
    kept("content in parts, one a thought", parts(("thinking", THOUGHT), ("text", ANSWER))),
    kept("blank `reasoning_content`, thought inline", {"reasoning_content": " \n", "content": f"<think>{THOUGHT}</think>{ANSWER}"}),
    kept("thought in a field and inline, the same", {"reasoning": THOUGHT, "content": f"<think>{THOUGHT}</think>{ANSWER}"}),
    kept("thought in a field, closing tag left in the content", {"reasoning": THOUGHT, "content": f"</think>{ANSWER}"}),
    kept("thought and answer both in the field", {"reasoning_content": f"{THOUGHT}</think>{ANSWER}", "content": None}),
    kept("no opening tag", f"{THOUGHT}</think>{ANSWER}"),
    kept("opening tag twice", f"<think>\n<think>\n{THOUGHT}</think>{ANSWER}"),
    kept("`[THINK]` tags", f"[THINK]{THOUGHT}[/THINK]{ANSWER}"),
    kept("`<thinking>` tags", f"<thinking>{THOUGHT}</thinking>\n{ANSWER}"),
    kept("`<seed:think>` tags", f"<seed:think>{THOUGHT}</seed:think>{ANSWER}"),
    kept("`◁think▷` tags", f"◁think▷{THOUGHT}◁/think▷{ANSWER}"),
    kept("gpt-oss channels", f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}<|return|>"),
    kept("turn-end token left at the end", f"<think>{THOUGHT}</think>{ANSWER}<|eot_id|>"),
    kept("tokens of the turn's beginning left before the thought", f"\ufeff<|im_start|>assistant\n<think>{THOUGHT}</think>{ANSWER}"),
    kept("`<answer>` tags around the content", {"reasoning": THOUGHT, "content": f"<answer>{ANSWER}</answer>"}),
    kept("`finish_reason` missing, a whole answer", FIELD, finish_reason=None),
    kept("`finish_reason` as Python writes it", FIELD, finish_reason="FinishReason.STOP"),
    # not whole
    dropped("limit in the thought, in a field", {"reasoning_content": THOUGHT, "content": ""}, "truncated", "truncated", finish_reason="length", answer=""),
    dropped("limit in the thought, in tags", f"<think>{THOUGHT}", "truncated", "truncated", finish_reason="length", answer=""),
    dropped("limit in the thought, no tag", THOUGHT, "truncated", "truncated", finish_reason="length", thought="", answer=THOUGHT),
    dropped("limit in the answer", {"reasoning": THOUGHT, "content": "The answer is 6, si"}, "truncated", "truncated", finish_reason="length", answer="The answer is 6, si"),
    dropped("the limit by another word", FIELD, "truncated", "truncated", finish_reason="MAX_TOKENS"),
    dropped("turn ended within the thought", f"<think>{THOUGHT}", "truncated", "truncated", answer=""),
    dropped("content filter", FIELD, "filtered", "filtered", finish_reason="content_filter"),
    dropped("call of a tool", {"reasoning": THOUGHT, "content": None, "tool_calls": [{"id": "1"}]}, "tool_call", "tool_call", finish_reason="tool_calls", answer=""),
    dropped("call of a tool as text", {"reasoning": THOUGHT, "content": ('<tool_call>{"name": '
                                                                        '"gcd"}</tool_call> It is 6.')}, "graded", "tool_call", answer='<tool_call>{"name": '
                                                                                                                                       '"gcd"}</tool_call> It is 6.'),
    dropped("server's error or abort", FIELD, "broken_off", "broken_off", finish_reason="abort"),
    dropped("`finish_reason` that nobody knows", FIELD, "broken_off", "broken_off", finish_reason="seven"),
    dropped("`finish_reason` missing, no answer", f"<think>{THOUGHT}", "broken_off", "broken_off", finish_reason=None, answer=""),
    dropped("empty answer", f"<think>{THOUGHT}</think>\n \u200b", "empty", "empty", answer=" \u200b"),
    # whole, but not to learn from
    dropped("no thought", ANSWER, "correct", "no_thought", thought=""),
    dropped("empty tags", f"<think>\n\n</think>{ANSWER}", "correct", "no_thought", thought=""),
    dropped("a thought of dots", f"<think>…</think>{ANSWER}", "correct", "no_thought", thought="…"),
    dropped("encrypted thought", {"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}], "content": ANSWER}, "correct", "no_thought", thought=""),
    dropped("text before the thought", f"Sure. <think>{THOUGHT}</think>{ANSWER}", "graded", "thought_tags", thought="", answer=f"Sure. <think>{THOUGHT}</think>{ANSWER}"),
    dropped("two thoughts", f"<think>a</think>b<think>{THOUGHT}</think>{ANSWER}", "graded", "thought_tags", thought="", answer=f"<think>a</think>b<think>{THOUGHT}</think>{ANSWER}"),
    dropped("tags within tags", f"<think><thought>a</thought></think>{ANSWER}", "graded", "thought_tags", thought="", answer=f"<think><thought>a</thought></think>{ANSWER}"),
    dropped("two closing tags", f"<think>a</think>b</think>{ANSWER}", "graded", "thought_tags", thought="", answer=f"<think>a</think>b</think>{ANSWER}"),
    dropped("thoughts in a field and inline, not the same", {"reasoning": THOUGHT, "content": f"<think>a</think>{ANSWER}"}, "graded", "thought_tags", answer=f"<think>a</think>{ANSWER}"),
    dropped("parts in another order", parts(("text", ANSWER), ("thinking", THOUGHT)), "graded", "thought_tags", thought="", answer=f"{ANSWER}<think>\n{THOUGHT}\n</think>\n\n"),
    dropped("gpt-oss channel of tools", f"<|channel|>commentary<|message|>{ANSWER}", "graded", "thought_tags", thought="", answer=f"<|channel|>commentary<|message|>{ANSWER}"),
    dropped("next turn in the answer", {"reasoning": THOUGHT, "content": f"{ANSWER}{TURN}"}, "graded", "control_tokens", answer=f"{ANSWER}{TURN}"),
    dropped("another family's token in the thought", {"reasoning": f"{THOUGHT}<|eot_id|>", "content": ANSWER}, "correct", "control_tokens", thought=f"{THOUGHT}<|eot_id|>"),
    dropped("replacement character", {"reasoning": f"\ufffd {THOUGHT}", "content": ANSWER}, "correct", "broken_text", thought=f"\ufffd {THOUGHT}"),
    dropped("half a character", {"reasoning": f"\ud83d {THOUGHT}", "content": ANSWER}, "correct", "broken_text", thought=f"\ud83d {THOUGHT}"),
    dropped("NUL", {"reasoning": f"\0{THOUGHT}", "content": ANSWER}, "correct", "broken_text", thought=f"\0{THOUGHT}"),
    dropped("answer copied into the thought's field", {"reasoning": ANSWER, "content": ANSWER}, "correct", "copied", thought=ANSWER),
    dropped("thought that goes round in circles", {"reasoning": LOOP * 20, "content": ANSWER}, "correct", "looping", thought=LOOP * 20),
    dropped("answer that goes round in circles", {"reasoning": THOUGHT, "content": f"{ANSWER} " * 20}, "graded", "looping", answer=f"{ANSWER} " * 20),
    dropped("thought that is the word `None`", {"reasoning": "None", "content": ANSWER}, "correct", "no_thought", thought="None"),
    dropped("thought that is withheld", {"reasoning": "[REDACTED]", "content": ANSWER}, "correct", "no_thought", thought="[REDACTED]"),
    dropped("half a tag in the answer", {"reasoning": THOUGHT, "content": f"{ANSWER}</think"}, "graded", "thought_tags", answer=f"{ANSWER}</think"),
    dropped("next turn in plain words", {"reasoning": THOUGHT, "content": (f"{ANSWER}\nUser: And "
                                                                          "20?\nAssistant: 4.")}, "graded", "control_tokens", answer=f"{ANSWER}\nUser: And "
                                                                                                                                     "20?\nAssistant: 4."),
    dropped("next question in plain words", {"reasoning": THOUGHT, "content": f"{ANSWER}\n\nUser: And 20?"}, "graded", "control_tokens", answer=f"{ANSWER}\n\nUser: And 20?"),
    dropped("what a tool said", {"reasoning": THOUGHT, "content": f"<tool_response>6</tool_response>{ANSWER}"}, "graded", "tool_call", answer=f"<tool_response>6</tool_response>{ANSWER}"),
    dropped("a tokenizer's own spaces", {"reasoning": f"ĠWe Ġtake Ġ6. {THOUGHT}", "content": ANSWER}, "correct", "broken_text", thought=f"ĠWe Ġtake Ġ6. {THOUGHT}"),
    dropped("answer right in its thought alone", "Sure. <think>It is \\boxed{6}.</think>I "
                                                 "do not know.", "wrong", "thought_tags", thought="", answer="Sure. <think>It is "
                                                                                                             "\\boxed{6}.</think>I "
                                                                                                             "do not know."),
    dropped("whole, and wrong", {"reasoning": THOUGHT, "content": "The answer is 7."}, "wrong", "wrong", answer="The answer is 7."),
]
# fmt: on


def response(row: Row) -> str:
    """Make the server's response."""
    return json.dumps(
        {
            "choices": [
                {"index": 0, "message": {"role": "assistant"} | row.message, "finish_reason": row.finish_reason}
            ],
            "usage": {"prompt_tokens": 9, "completion_tokens": 9},
        }
    )


def table() -> str:
    """Render the rows as Markdown."""
    lines = [
        [
            row.name,
            _said(row.thought, "thought"),
            _said(row.answer, "answer"),
            row.verdict.replace("_", " "),
            row.fate if row.fate == "kept" else f"`{row.fate}`",
        ]
        for row in ROWS
    ]
    return markdown_table([["what arrives", "stored thought", "stored answer", "verdict", "training"], *lines])


def _said(text: str | None, name: str) -> str:
    """Say in a word what is stored of a row."""
    if text is None:
        return f"the {name}"
    return "as it came" if text.strip(" \u200b") else "none"


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
