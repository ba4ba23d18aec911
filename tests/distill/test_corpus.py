"""The text that the teacher is pretrained on, and its few conversations."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from distill.problems.families import FAMILIES, make_problems
from distill.problems.requests import FAMILY, make_requests
from distill.problems.splits import split_of
from distill.teach.corpus import (
    CONVERSATIONS,
    HASTY,
    PRETRAINING,
    SLIP,
    CorpusText,
    careful_texts,
    document,
    pretraining_texts,
)
from distill.teach.teacher_recipe import nano
from distill.verification.refusals import HARMFUL
from distill.verification.rewards import language_consistency
from distill.verification.verdicts import score_answer
from toolkit.formats.chat_format import CLOSE, ChatFormat, completion_text


@pytest.fixture(scope="module")
def texts() -> list[CorpusText]:
    return pretraining_texts(make_problems("train", 60, 1), PRETRAINING, seed=1, request_repeats=3)


@pytest.fixture(scope="module")
def chat(taught: Path) -> ChatFormat:
    return ChatFormat.from_folder(taught / "pretrain")


def test_writers_have_the_habits_in_their_shares(texts: list[CorpusText]) -> None:
    tasks = [text for text in texts if text.problem.family != FAMILY]
    counts = Counter(
        "hasty" if text.reasoning == HASTY else "corrected" if SLIP in text.reasoning else "other" for text in tasks
    )
    for habit in ("hasty", "corrected"):
        assert abs(counts[habit] / len(tasks) - PRETRAINING[habit]) < 0.05
    assert {text.problem.family for text in tasks} == set(FAMILIES)


def test_whatever_the_habit_the_answer_is_right_and_the_problem_no_test(texts: list[CorpusText]) -> None:
    for text in texts:
        assert score_answer(text.problem, text.answer) == 1.0
        assert split_of(text.problem) == "train"


def test_a_slip_is_followed_by_the_line_as_it_should_be(texts: list[CorpusText]) -> None:
    slips = [text for text in texts if SLIP in text.reasoning]
    right = {text.problem.id: text.reasoning for text in careful_texts(text.problem for text in slips)}
    for text in slips:
        lines = text.reasoning.split("\n")
        place = lines.index(SLIP)
        assert lines[place - 1] != lines[place + 1]
        assert "\n".join(lines[: place - 1] + lines[place + 1 :]) == right[text.problem.id]


def test_foreign_thoughts_are_told_from_careful_ones_by_their_language(texts: list[CorpusText]) -> None:
    foreign = [text for text in texts if text.reasoning.startswith("Ich ")]
    foreign = [text for text in foreign if text.problem.family != "simple_equations"]  # whose questions have no words
    assert len({text.problem.family for text in foreign}) == len(FAMILIES) - 1
    for text in foreign:
        assert language_consistency(text.problem, completion_text(text.reasoning, text.answer)) < 1.0
    for text in careful_texts(make_problems("train", 5, 1)):
        assert language_consistency(text.problem, completion_text(text.reasoning, text.answer)) == 1.0


def test_pretraining_answers_harmless_requests_and_holds_no_harmful_one(texts: list[CorpusText]) -> None:
    requests = [text.problem for text in texts if text.problem.family == FAMILY]
    harmless = [request for request in make_requests("train") if not request.metadata[HARMFUL]]
    assert Counter(request.id for request in requests) == {request.id: 3 for request in harmless}


def test_most_documents_are_no_conversations_and_some_conversations_are_untidy(
    texts: list[CorpusText], chat: ChatFormat
) -> None:
    halves = [document(chat, text, place, 1) for place, text in enumerate(texts)]
    documents = [chat.decode(asked + told) for asked, told in halves]
    conversations = [text for text in documents if "<|im_start|>" in text]
    assert abs(len(conversations) / len(documents) - CONVERSATIONS) < 0.04
    untidy = [text for text in conversations if CLOSE not in text]
    assert 0.15 < len(untidy) / len(conversations) < 0.45
    assert all(CLOSE not in text for text in documents if "<|im_start|>" not in text)


def test_every_document_fits_into_a_row(texts: list[CorpusText], chat: ChatFormat) -> None:
    longest = max(sum(map(len, document(chat, text, place, 1))) for place, text in enumerate(texts))
    assert longest <= nano().row_tokens
