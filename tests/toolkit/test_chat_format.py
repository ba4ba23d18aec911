"""The reasoning format: one split for any chunking, and the ids trained on are the ids served."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from toolkit.errors import InputError
from toolkit.formats.chat_format import (
    CLOSE,
    OPEN,
    REASONING_TEMPLATE,
    TURN_END,
    ChatFormat,
    Completion,
    Delta,
    ReasoningParser,
    completion_text,
    load_tokenizer,
    split_completion,
)
from toolkit.formats.thought_forms import tagged

PIECES = st.lists(
    st.sampled_from(
        [OPEN, CLOSE, "\n", "\r\n", " ", "<", "</", "think", ">", "a", "7 ", "é", "</th", "<think", OPEN, CLOSE]
    )
)


def oracle(text: str, *, opened: bool) -> Completion:
    """Split the whole text with string operations."""
    head = text.lstrip()
    if head.startswith(OPEN):
        text, opened = re.sub(r"\A[ \t]*\r?\n?", "", head.removeprefix(OPEN)), True
    if not opened:
        return Completion(reasoning="", answer=text, closed=True)
    ends = list(re.finditer(rf"(\r\n|\n)?{CLOSE}", text))
    if not ends:
        return Completion(reasoning=text, answer="", closed=False)
    closing = [end for end in ends if text[: end.start()].count(OPEN) + 1 == text[: end.end()].count(CLOSE)]
    end = (closing or ends)[0]
    behind = re.match(rf"(?:\s*{CLOSE})*(?:\s*\n(?=\s\s|[^\S ])|\s*(?=\S)|\s*\Z)", text[end.end() :])
    assert behind
    return Completion(reasoning=text[: end.start()], answer=text[end.end() + behind.end() :], closed=True)


@given(pieces=PIECES, opened=st.booleans(), cuts=st.lists(st.integers(1, 9), max_size=40))
def test_any_chunking_gives_the_same_split(pieces: list[str], opened: bool, cuts: list[int]) -> None:
    text = "".join(pieces)
    parser = ReasoningParser(opened=opened)
    deltas: list[Delta] = []
    rest = text
    for size in [*cuts, len(text)]:
        deltas += parser.feed(rest[:size])
        rest = rest[size:]
    deltas += parser.finish()
    kinds = [delta.kind for delta in deltas]
    assert kinds == sorted(kinds, reverse=True), "an answer came before reasoning"
    assert all(delta.text for delta in deltas)
    assert oracle(text, opened=opened) == Completion(
        reasoning="".join(delta.text for delta in deltas if delta.kind == "reasoning"),
        answer="".join(delta.text for delta in deltas if delta.kind == "answer"),
        closed=parser.closed,
    )


def test_parser_holds_back_only_a_possible_tag() -> None:
    parser = ReasoningParser(opened=True)
    assert [delta.text for delta in parser.feed("6 < 7</thin")] == ["6 < 7"]
    assert [delta.text for delta in parser.feed("gs")] == ["</things"]


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>\nouter <think>inner</think> more\n</think>\n\nDone.", "outer <think>inner</think> more", "Done."),
        ("<think>\n<think>\nhm\n</think>\n</think>\n\nDone.", "<think>\nhm\n</think>", "Done."),
        ("<think>\n<think>\nhm\n</think>\n\nDone.", "<think>\nhm", "Done."),
        ("I write <think> first.\n</think>\n\nDone.", "I write <think> first.", "Done."),
        ("<think> \r\nhm\r\n</think> \r\n\r\n Done.\r\n", "hm", "Done.\r\n"),
        ("hm</think>\tUse `</think>`.", "hm", "Use `</think>`."),
        ("hm\n</think>\n</think>\n\nDone.", "hm", "Done."),
        ("hm</think></think>", "hm", ""),
        ("hm</think>\n\n    return 1\n    # 1", "hm", "    return 1\n    # 1"),
        ("hm</think>    Done.", "hm", "Done."),
        ("hm</think>\n</thi", "hm", "</thi"),
    ],
)
def test_nested_tags_and_blanks_do_not_leak_into_the_answer(text: str, reasoning: str, answer: str) -> None:
    expected = Completion(reasoning=reasoning, answer=answer, closed=True)
    assert split_completion(text, opened=not text.startswith(OPEN)) == split_completion(text, opened=True) == expected


def test_a_tag_that_is_a_token_of_its_own_counts_once_in_a_thought() -> None:
    pieces = ["It is ", "<think>", " and", "</think>", " there.", "\n", "</think>", "\n\n", "Yes."]
    parser = ReasoningParser(opened=True)
    deltas = [delta for piece in pieces for delta in parser.feed(piece)] + [*parser.finish()]
    said = {kind: "".join(delta.text for delta in deltas if delta.kind == kind) for kind in ("reasoning", "answer")}
    assert said == {"reasoning": "It is <think> and</think> there.", "answer": "Yes."}


def test_a_written_completion_splits_into_what_was_written() -> None:
    text = completion_text("2 + 2 = 4", "4")
    assert split_completion(text, opened=True) == Completion(reasoning="2 + 2 = 4", answer="4", closed=True)


def test_an_unclosed_thought_has_no_answer() -> None:
    assert split_completion("2 + 2", opened=True) == Completion(reasoning="2 + 2", answer="", closed=False)


def test_ids_trained_on_are_the_ids_that_inference_renders(tiny_student: Path) -> None:
    chat_format = ChatFormat.from_folder(tiny_student)
    theirs = AutoTokenizer.from_pretrained(tiny_student)
    reasoning, answer = "s t r a w\nr: 3 é", "3"
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is red and sweet?"},
        {"role": "assistant", "content": "A strawberry."},
        {"role": "user", "content": "How many r in it?\n<think>"},
    ]
    ids, mask = chat_format.training_ids(messages, reasoning, answer)
    served: Any = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids[: len(served)] == served
    assert mask == [False] * len(served) + [True] * (len(ids) - len(served))
    assert chat_format.decode(ids[len(served) :]) == completion_text(reasoning, answer)
    assert ids[-1] in chat_format.stop_ids
    assert theirs.decode(ids[len(served) : -1]) == completion_text(reasoning, answer)


@given(question=st.text(max_size=40), system=st.text(max_size=20), answer=st.text(max_size=40))
def test_template_renders_as_transformers_does(question: str, system: str, answer: str) -> None:
    from tokenizers import Tokenizer, models
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": question},
        {"role": "assistant", "content": tagged("earlier", answer)},
        {"role": "user", "content": "And now?"},
    ]
    chat_format = ChatFormat(Tokenizer(models.BPE()), REASONING_TEMPLATE, frozenset({0}), {})
    rendered: Any = render_jinja_template([messages], chat_template=REASONING_TEMPLATE, add_generation_prompt=True)
    assert [chat_format.render(messages)] == rendered[0]


def test_earlier_reasoning_is_left_out_of_later_turns(tiny_student: Path) -> None:
    chat_format = ChatFormat.from_folder(tiny_student)
    turns = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": tagged("secret", "one")}]
    text = chat_format.render([*turns, {"role": "user", "content": "2?"}])
    assert "secret" not in text
    assert "<|im_start|>assistant\none<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\n<think>\n")


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (tagged("secret", "one"), "one"),
        (tagged("", "one"), "one"),
        ("<think>\nsecret\n</think>\n\none </think> two", "one </think> two"),
        ("A model closes its thought with </think>.\nThen it answers.", None),
        ("```\n</think>\n```\n\nends a thought", None),
        ("Write:\n\n<think>\nx\n</think>\n\nthen the answer", None),
        ("```\n<think>\nx\n</think>\n\nthe answer\n```\nis the form", None),
        ("Line\n</think>\n\nand more", None),
        ("</think>\n\nand more", None),
        ("<think> opens a thought.", None),
    ],
)
def test_an_earlier_answer_that_mentions_a_tag_is_whole_in_the_history(said: str, kept: str | None) -> None:
    chat_format = ChatFormat(Tokenizer(models.BPE()), REASONING_TEMPLATE, frozenset({0}), {})
    text = chat_format.render([{"role": "assistant", "content": said}])
    assert text.startswith(f"<|im_start|>assistant\n{said if kept is None else kept}<|im_end|>\n")


@pytest.mark.parametrize("ending", ["<think>", "<think>\n", "<think>\n\n"])
def test_a_prompt_that_ends_in_the_opening_tag_is_seen_to_open_the_thought(ending: str) -> None:
    assert ChatFormat(Tokenizer(models.BPE()), "{{ messages[0].content }}" + ending, frozenset(), {}).opens_reasoning
    assert not ChatFormat(
        Tokenizer(models.BPE()), ending + "{{ messages[0].content }}", frozenset(), {}
    ).opens_reasoning


@pytest.mark.parametrize("thought", ["", "So", "So\n", "So\n\n"])
def test_a_thought_closed_from_outside_reads_as_a_trained_one(tiny_student: Path, thought: str) -> None:
    chat_format = ChatFormat.from_folder(tiny_student)
    written = chat_format.encode(thought)
    text = chat_format.decode(written + chat_format.closing_ids(written))
    assert text == completion_text(thought.removesuffix("\n"), "")


def test_a_folder_without_template_is_refused_by_name(tiny_student: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_student / name).read_bytes())
    with pytest.raises(InputError, match=f"{tmp_path} has no chat template"):
        ChatFormat.from_folder(tmp_path)


def test_a_broken_tokenizer_file_is_one_line(tiny_student: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(InputError, match=r"tokenizer\.json must be a tokenizer"):
        ChatFormat.from_folder(tmp_path)


def test_truncation_and_padding_that_a_tokenizer_file_stores_are_off(tiny_student: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_student / "tokenizer.json")
    text = "How many times does the letter appear in the text?"
    expected = tokenizer.encode(text).ids
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=1000)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids) == 1000
    assert load_tokenizer(tmp_path / "tokenizer.json").encode(text).ids == expected


def test_a_hostile_template_cannot_reach_python(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    with pytest.raises(InputError, match="cannot render"):
        ChatFormat(Tokenizer(models.BPE()), "{{ ''.__class__.__mro__[1].__subclasses__() }}", frozenset({0}), {})


def test_the_name_of_a_special_token_in_a_completion_is_text(tiny_student: Path) -> None:
    chat_format = ChatFormat.from_folder(tiny_student)
    special = {id for id, token in chat_format.tokenizer.get_added_tokens_decoder().items() if token.special}
    names = "".join(token.content for token in chat_format.tokenizer.get_added_tokens_decoder().values())
    ids, mask = chat_format.training_ids([{"role": "user", "content": "?"}], f"a{names}", f"{names}b")
    completion = [id for id, is_trained in zip(ids, mask, strict=True) if is_trained]
    assert special and special.isdisjoint(completion[:-1]) and completion[-1] in special
    assert chat_format.tokenizer.decode(completion[:-1]) == completion_text(f"a{names}", f"{names}b")
    plain, _ = chat_format.training_ids([{"role": "user", "content": "?"}], "a 12\n", "**é**")
    assert plain[-len(chat_format.encode(completion_text("a 12\n", "**é**") + TURN_END)) :] == chat_format.encode(
        completion_text("a 12\n", "**é**") + TURN_END
    )
