"""A trace that shares a run of words with a benchmark is found, and one that does not is not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from distill.curation.contamination import BenchmarkWords, read_benchmark
from distill.curation.word_numbers import numbers_of, words_of
from toolkit.errors import InputError

QUESTION = "Natalia sold clips to forty-eight of her friends in April, and then she sold half as many clips in May."
GERMAN = "ein kürzerer satz mit acht schönen deutschen wörtern"


def found_in(benchmark: BenchmarkWords, question: str, thought: str) -> str:
    words = words_of(thought)
    return benchmark.found_in_question(words_of(question)) or benchmark.found_in_thought(words, numbers_of(words))


@pytest.fixture
def benchmark(tmp_path: Path) -> BenchmarkWords:
    (tmp_path / "held-out.txt").write_text(
        f"{QUESTION}\n\nWho wrote it?\n\nEin kürzerer Satz mit acht schönen deutschen Wörtern."
    )
    return read_benchmark([tmp_path / "held-out.txt"], 8)


@pytest.mark.parametrize(
    ("question", "thought", "words"),
    [
        (QUESTION, "none", "natalia sold clips to forty eight of her"),
        ("Else?", "The user: NATALIA sold — clips to\nforty eight of her…", "natalia sold clips to forty eight of her"),
        ("Else?", "so half as many clips in May", ""),
        ("Else?", "and then she sold half as many clips", "and then she sold half as many clips"),
        ("Else?", "and then he sold half as many clips", ""),
        ("who wrote it", "Somebody.", "who wrote it"),
        ("Do you know who wrote it?", "Who wrote it?", ""),
        (
            "Else?",
            "ein kürzerer satz mit acht schönen deutschen Wörtern",
            "ein kürzerer satz mit acht schönen deutschen wörtern",
        ),
    ],
)
def test_words_in_a_row_are_found(benchmark: BenchmarkWords, question: str, thought: str, words: str) -> None:
    assert found_in(benchmark, question, thought) == words


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", json.dumps({"question": QUESTION, "answer": "72"})),
        ("a.json", json.dumps([{"problem": QUESTION, "solution": "It is \\boxed{72}."}])),
        ("a.csv", f'question,answer\n"{QUESTION}",72\n'),
        ("other.jsonl", json.dumps({"id": 3, "text": QUESTION})),
        ("a.md", f"# Questions\n\n1. {QUESTION}\n"),
    ],
)
def test_every_kind_of_file_is_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    benchmark = read_benchmark([tmp_path / name], 8)
    assert found_in(benchmark, QUESTION, "") == "natalia sold clips to forty eight of her"


def test_a_packed_file_and_a_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "test.jsonl.gz").write_bytes(gzip.compress(json.dumps({"question": QUESTION}).encode()))
    for place in (tmp_path / "set", tmp_path / "set" / "test.jsonl.gz"):
        assert found_in(read_benchmark([place], 13), QUESTION, "")


def test_only_the_question_of_a_known_form_counts(tmp_path: Path) -> None:
    solution = "In April she sold some of the clips that she had bought before, which makes 72."
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": QUESTION, "answer": f"{solution}\n#### 72"}))
    assert not found_in(read_benchmark([tmp_path / "a.jsonl"], 8), "Else?", solution)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n ")
    (tmp_path / "bytes.txt").write_bytes(b"caf\xe9")
    for name, said in (
        ("empty.txt", "holds no text"),
        ("bytes.txt", "is not UTF-8 at its byte 4"),
        ("none.txt", "does not exist"),
    ):
        with pytest.raises(InputError, match=said):
            read_benchmark([tmp_path / name], 8)
