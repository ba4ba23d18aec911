"""Near duplicates are found, others are not, and the same text has the same signature in every process."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import numpy as np
import pytest

from distill.curation.near_duplicates import NUMBERS, RUN_WORDS, bands_for, near_duplicates, signature_of
from distill.curation.word_numbers import numbers_of, words_of
from tests.house.modules import ROOT


def text(seed: int, words: int = 400) -> list[str]:
    source = random.Random(seed)
    return [f"w{source.randrange(10**6)}" for _ in range(words)]


def changed(words: list[str], places: list[int]) -> list[str]:
    return [f"new{place}" if place in places else word for place, word in enumerate(words)]


def similarity(one: list[str], other: list[str]) -> float:
    """The Jaccard similarity of runs of words, by sets."""
    runs = [{tuple(words[i : i + RUN_WORDS]) for i in range(len(words) - RUN_WORDS + 1)} for words in (one, other)]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def signatures(texts: list[list[str]]) -> np.ndarray:
    return np.array([signature_of(numbers_of(words_of(" ".join(words)))) for words in texts])


def test_planted_near_duplicates_are_found_and_others_are_not() -> None:
    originals = [text(seed) for seed in range(400)]
    near = [changed(words, random.Random(i).sample(range(400), 7)) for i, words in enumerate(originals[:200])]
    alike = [similarity(one, other) for one, other in zip(originals, near, strict=False)]
    assert min(alike) > 0.8
    stays_for = near_duplicates(signatures([*originals, *near]), 0.8)
    assert (stays_for[:400] == -1).all(), "no original is taken for a duplicate"
    assert np.mean(stays_for[400:] == np.arange(200)) >= 0.95


def test_texts_that_are_half_alike_stay() -> None:
    originals = [text(seed) for seed in range(200)]
    halves = [[*words[:267], *text(10**6 + i, 133)] for i, words in enumerate(originals)]
    alike = [similarity(one, other) for one, other in zip(originals, halves, strict=True)]
    assert min(alike) > 0.45 and max(alike) < 0.55
    assert (near_duplicates(signatures([*originals, *halves]), 0.8) == -1).mean() >= 0.99


def test_the_estimate_is_the_jaccard_similarity() -> None:
    one = text(1, 1000)
    for places in (range(10), range(0, 1000, 40), range(0, 1000, 10)):
        other = changed(one, list(places))
        first, second = signatures([one, other])
        assert np.mean(first == second) == pytest.approx(similarity(one, other), abs=4 * 0.045)


def test_a_trace_goes_only_for_one_that_stays() -> None:
    one = text(3, 300)
    chain = [one]
    for step in range(1, 12):
        chain.append(changed(chain[-1], [step * 20, step * 20 + 9]))
    stays_for = near_duplicates(signatures(chain), 0.85)
    kept = set(np.flatnonzero(stays_for < 0).tolist())
    assert 0 in kept and len(kept) > 1, "the end of a chain is no near duplicate of its beginning"
    assert set(stays_for[stays_for >= 0].tolist()) <= kept


def test_many_equal_texts_leave_one() -> None:
    stays_for = near_duplicates(signatures([text(1)] * 500 + [text(2)]), 0.9)
    assert stays_for[0] == stays_for[500] == -1
    assert (stays_for[1:500] == 0).all()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
def test_bands_fit_into_the_signature_and_find_pairs_at_the_threshold(threshold: float) -> None:
    bands, rows = bands_for(threshold)
    assert bands * rows <= NUMBERS
    assert 1 - (1 - threshold**rows) ** bands >= 0.99


def test_short_and_empty_texts_have_signatures() -> None:
    found = signatures([["one"], ["one"], ["two", "words"], []])
    assert (found[0] == found[1]).all() and (found[0] != found[2]).any() and len(found[3]) == NUMBERS


def test_another_process_makes_the_same_signature() -> None:
    program = (
        "import json; from distill.curation.near_duplicates import signature_of\n"
        "from distill.curation.word_numbers import numbers_of, words_of\n"
        "print(json.dumps(signature_of(numbers_of(words_of('Zwölf große Äpfel, 3 × 4; 漢字 and more'))).tolist()))"
    )
    printed = {
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True, text=True).stdout
        for _ in range(2)
    }
    assert len(printed) == 1
    here = signature_of(numbers_of(words_of("Zwölf große Äpfel, 3 × 4; 漢字 and more"))).tolist()
    assert json.loads(printed.pop()) == here
