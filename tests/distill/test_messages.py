"""A server's message and a model's text: thought and answer apart where the form is known, all answer elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from distill.endpoints.messages import ENDS, read_message
from toolkit.formats.thought_forms import has_thought_tags, read_text, without_thoughts

THOUGHT, ANSWER = "6 divides 12, and it divides 18.", "The answer is 6."
TEXTS = [
    "<think>{}</think>{}",
    "{}</think>{}",
    "<think>\n<think>\n{}\n</think>\n\n{}",
    "<Thinking>\n{}\n</Thinking>\n{}",
    "<thought>{}</thought>\n<output>\n{}\n</output>",
    "<seed:think>{}</seed:think>{}",
    "<scratchpad>{}</scratchpad><answer>{}</answer>",
    '<reasoning effort="high">{}</reasoning>{}',
    "[THINK]{}[/THINK]{}",
    "◁think▷{}◁/think▷{}",
    "<|begin_of_thought|>\n{}\n<|end_of_thought|>\n\n<|begin_of_solution|>\n{}\n<|end_of_solution|>",
    "<|START_THINKING|>{}<|END_THINKING|><|START_RESPONSE|>{}<|END_RESPONSE|>",
    "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
    "Here is my thought process:\n\n{}\n\nHere's my response:\n\n{}",
    "## Thinking\n\n{}\n\n## Final Response\n\n{}",
    "<|im_start|>think\n{}\n<|im_start|>answer\n{}<|im_end|>",
    "<|channel>thought\n{}<channel|>{}<turn|>",
]
PARTS: list[dict[str, Any]] = [
    {"reasoning_content": THOUGHT, "content": ANSWER},
    {"reasoning_content": " \n", "reasoning": THOUGHT, "content": ANSWER},
    {"thinking": f"\n{THOUGHT}\n", "content": ANSWER},
    {"reasoning": {"content": [{"type": "reasoning_text", "text": THOUGHT}]}, "content": ANSWER},
    {"reasoning": {"summary": [{"type": "summary_text", "text": THOUGHT}]}, "content": ANSWER},
    {"reasoning_details": [{"type": "reasoning.text", "text": THOUGHT}, {"data": "x"}], "content": ANSWER},
    {
        "content": [
            {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]},
            {"type": "text", "text": ANSWER},
        ]
    },
    {"content": [{"type": "thinking", "thinking": THOUGHT}, ANSWER]},
    {"content": [{"text": THOUGHT, "thought": True}, {"text": ANSWER}]},
    {"reasoning_content": "\n", "content": f"<think>{THOUGHT}</think>{ANSWER}"},
    {"reasoning_content": THOUGHT, "content": f"<think>{THOUGHT}</think>{ANSWER}"},
    {"reasoning_content": THOUGHT, "content": f"</think>\n\n{ANSWER}"},
    {"reasoning_content": f"<think>{THOUGHT}</think>", "content": ANSWER},
    {"reasoning_content": f"{THOUGHT}</think>{ANSWER}", "content": None},
]
UNREADABLE = [
    "Sure.\n<think>{}</think>{}",
    "<think>{}</think>{}<think>once more</think>",
    "<think>a<think>{}</think>b</think>{}",
    "<think>{}</think>{}</think>",
    "{}<think>{}",
    "</think>{}<think>{}",
    "<|channel|>commentary<|message|>{}<|end|>{}",
]


@pytest.mark.parametrize("form", TEXTS)
def test_a_thought_is_read_in_the_forms_of_models(form: str) -> None:
    read = read_text(form.format(THOUGHT, ANSWER))
    assert (read.reasoning.strip(), read.answer.strip(), read.closed) == (THOUGHT, ANSWER, True)


@pytest.mark.parametrize("message", PARTS, ids=range(len(PARTS)))
def test_a_thought_is_read_in_the_fields_and_parts_of_servers(message: dict[str, Any]) -> None:
    read = read_message(message, "stop")
    assert (read.reasoning, read.answer, read.closed, read.finish_reason) == (THOUGHT, ANSWER, True, "stop")


@pytest.mark.parametrize("form", UNREADABLE)
def test_a_text_that_cannot_be_split_keeps_its_tags_in_the_answer(form: str) -> None:
    text = form.format(THOUGHT, ANSWER)
    read = read_text(text)
    assert (read.reasoning, read.answer, has_thought_tags(read.answer)) == ("", text, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Sure. <think>a</think>b", "Sure. b"),
        ("<think>a</think>b<think>c</think>d", "bd"),
        ("<think>a<think>b</think>c</think>d", "d"),
        ("<think>a</think>b</think>c", "c"),
        ("a<think>b", "a"),
        ("a [/THINK] b", " b"),
        ("a < b", "a < b"),
    ],
)
def test_what_is_said_outside_of_thoughts(text: str, said: str) -> None:
    assert without_thoughts(text) == said


@pytest.mark.parametrize("text", ["6 </think", "<think/> 6", "&lt;think&gt; 6", "< think > 6", "6 </ Thinking >"])
def test_half_and_escaped_tags_are_seen(text: str) -> None:
    assert has_thought_tags(text)


@pytest.mark.parametrize("text", ["I think > you", "<thinkpad>", "a<b and reasoning>c", "[thinking](a.html)"])
def test_words_are_no_tags(text: str) -> None:
    assert not has_thought_tags(text)


def test_two_thoughts_that_differ_are_not_made_one() -> None:
    read = read_message({"reasoning_content": THOUGHT, "content": f"<think>other</think>{ANSWER}"}, "stop")
    assert read.reasoning == THOUGHT and has_thought_tags(read.answer)


@pytest.mark.parametrize("opening", ["<think>", "[THINK]", "<|channel|>analysis<|message|>", "◁think▷", "analysis"])
def test_a_thought_that_is_not_closed_has_no_answer(opening: str) -> None:
    read = read_text(opening + "The first step")
    assert (read.reasoning, read.answer, read.closed) == ("The first step", "", False)


@pytest.mark.parametrize(
    "text", ["The answer is 6.", "a < b and [1, 2]", "if x <y> z", "## Thinking\nlong and hard", ""]
)
def test_a_text_without_a_thought_is_all_answer(text: str) -> None:
    assert vars(read_text(text)) == {"reasoning": "", "answer": text, "closed": True}


def test_every_known_word_for_an_end_is_read_whatever_its_case_and_an_unknown_one_is_not_whole() -> None:
    for reason, words in ENDS.items():
        for word in words:
            for said in (word, word.upper(), word.replace("_", "-")):
                assert read_message({"content": ANSWER}, said).finish_reason == reason
    assert read_message({"content": ANSWER}, "the cat").finish_reason == "error"
    assert read_message({"content": ANSWER, "tool_calls": [{}]}, "stop").finish_reason == "tool_calls"


def test_a_missing_reason_counts_as_the_models_own_end_only_where_an_answer_fits_the_limit() -> None:
    for missing in (None, ""):
        assert read_message({"content": ANSWER}, missing).finish_reason == "stop"
        assert read_message({"content": ANSWER}, missing, reached_limit=True).finish_reason == "length"
        assert read_message({"content": f"<think>{THOUGHT}"}, missing).finish_reason == "error"
        assert read_message({"content": None}, missing).finish_reason == "error"


@pytest.mark.parametrize("content", [7, [7], True])
def test_a_content_without_text_is_an_error(content: Any) -> None:
    with pytest.raises(TypeError, match="content must be a text"):
        read_message({"content": content}, "stop")
