"""Rules choose from facts: by verdicts, by the majority, the best, in wished-for shares; each trace has one fate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from distill.curation.facts import FACTS, NO_REFERENCE, RIGHT, UNJUDGED, WRONG, empty_signatures
from distill.curation.reasons import CODES, DROPS, KEPT
from distill.curation.selection import Rules, Selection, difficulty_of, select

NAMES = ["kept", *DROPS]


def facts_of(*rows: Mapping[str, object]) -> np.ndarray:
    facts = np.zeros(len(rows), dtype=FACTS)
    for i, row in enumerate(rows):
        for name, value in ({"known": RIGHT, "tokens": 100, "thought": 1000 + i, "answer": 7} | dict(row)).items():
            facts[name][i] = value
    return facts


def chosen(facts: np.ndarray, rules: Rules | None = None, **more: np.ndarray) -> Selection:
    given = {
        "is_test": np.zeros(int(facts["problem"].max(initial=-1)) + 1, dtype=bool),
        "in_majority": np.ones(len(facts), dtype=bool),
        "signatures": empty_signatures(len(facts)),
    }
    return select(facts, rules or Rules(), **(given | more))


def fates(facts: np.ndarray, rules: Rules | None = None, **more: np.ndarray) -> list[str]:
    return [NAMES[code] for code in chosen(facts, rules, **more).reasons]


def test_what_is_right_is_kept_by_verified_and_anything_by_all() -> None:
    facts = facts_of({}, {"known": WRONG}, {"known": NO_REFERENCE}, {"known": UNJUDGED})
    assert fates(facts) == ["kept", "wrong", "no_reference", "unjudged"]
    assert fates(facts, Rules(keep="all")) == ["kept"] * 4
    most = np.array([False, True, True, False])
    assert fates(facts, Rules(keep="majority"), in_majority=most) == ["minority", "kept", "kept", "minority"]


def test_the_first_reason_that_holds_is_the_one_that_counts() -> None:
    facts = facts_of(
        {"problem": -1, "fault": CODES["truncated"]},
        {"problem": 1, "fault": CODES["looping"]},
        {"fault": CODES["looping"], "shares": True, "known": WRONG},
        {"language": b"fr", "shares": True},
        {"shares": True, "known": WRONG},
        {"known": WRONG, "tokens": 10**6},
    )
    rules = Rules(languages=("en", "de"), max_tokens=1000)
    found = fates(facts, rules, is_test=np.array([False, True]))
    assert found == ["unknown_problem", "test_split", "looping", "language", "contaminated", "wrong"]


def test_a_language_that_is_too_short_to_tell_is_allowed() -> None:
    assert fates(facts_of({"language": b""}, {"language": b"en"}), Rules(languages=("en",))) == ["kept", "kept"]


def test_lengths_are_kept_between_both_ends() -> None:
    facts = facts_of(*({"tokens": tokens} for tokens in (9, 10, 20, 21)))
    assert fates(facts, Rules(min_tokens=10, max_tokens=20)) == ["too_short", "kept", "kept", "too_long"]


def test_the_best_of_each_problem_is_its_shortest_right_trace_that_fits() -> None:
    facts = facts_of(
        {"tokens": 50},
        {"tokens": 30},
        {"tokens": 10, "known": WRONG},
        {"tokens": 20, "shares": True},
        {"problem": 1, "tokens": 90},
    )
    assert fates(facts, Rules(keep="best-of")) == ["surplus", "kept", "wrong", "contaminated", "kept"]


def test_the_best_by_score_has_the_highest_score_and_then_the_fewest_tokens() -> None:
    facts = facts_of(
        {"score": 0.7, "tokens": 10}, {"score": 0.9, "tokens": 50}, {"score": 0.9, "tokens": 40}, {"score": 0.8}
    )
    assert fates(facts, Rules(keep="best-of", best_by="score")) == ["surplus", "surplus", "kept", "surplus"]


def test_of_equal_thoughts_the_preferred_one_stays() -> None:
    facts = facts_of({"thought": 5, "tokens": 50}, {"thought": 5, "tokens": 40}, {"thought": 6, "problem": 1})
    assert fates(facts) == ["kept", "duplicate", "kept"]
    selection = chosen(facts, Rules(keep="best-of"))
    assert [NAMES[code] for code in selection.reasons] == ["duplicate", "kept", "kept"]
    assert selection.stands_for.tolist() == [1, -1, -1]


def test_near_duplicates_go_across_problems_and_for_traces_that_are_kept() -> None:
    rng = np.random.default_rng(0)
    signatures = rng.integers(2**16, size=(4, 128), dtype=np.uint16)
    signatures[2:] = signatures[0]
    facts = facts_of({"known": WRONG}, {}, {"problem": 1}, {"problem": 2})
    selection = chosen(facts, Rules(near_duplicates=0.8), signatures=signatures)
    assert [NAMES[code] for code in selection.reasons] == ["wrong", "kept", "kept", "near_duplicate"]
    assert selection.stands_for[3] == 2


def test_a_problem_has_at_most_so_many_traces() -> None:
    facts = facts_of(*({"problem": i % 2} for i in range(7)))
    assert fates(facts, Rules(per_problem=2)) == ["kept"] * 4 + ["surplus"] * 3


def test_pass_rates_count_faults_as_failures() -> None:
    facts = facts_of({}, {"fault": CODES["truncated"], "known": WRONG}, {"known": WRONG}, {}, {"problem": 2})
    rates = chosen(facts).pass_rates
    assert rates[0] == 0.5 and np.isnan(rates[1]) and rates[2] == 1.0
    assert difficulty_of(np.array([1.0, 0.75, 0.74, 0.25, 0.24, 0.0])).tolist() == [0, 0, 1, 1, 2, 2]


def mixed(counts: tuple[int, int, int]) -> np.ndarray:
    """Traces of easy, medium and hard problems: 4 of 4, 2 of 4, 1 of 8 are right."""
    rows, problem = [], 0
    for count, (right, wrong) in zip(counts, ((4, 0), (2, 2), (1, 7)), strict=True):
        for _ in range(count):
            rows += [{"problem": problem, "known": RIGHT}] * right + [{"problem": problem, "known": WRONG}] * wrong
            problem += 1
    return facts_of(*rows)


def test_difficulties_come_in_the_wished_for_shares() -> None:
    facts = mixed((100, 100, 100))
    selection = chosen(facts, Rules(difficulty={"easy": 0.2, "medium": 0.5, "hard": 0.3}))
    kept = facts["problem"][selection.reasons == KEPT]
    assert Counter(difficulty_of(selection.pass_rates[kept]).tolist()) == {0: 67, 1: 167, 2: 100}
    assert not selection.unmet
    assert selection.scarce == "100 of 700 traces are hard"


def test_a_share_of_none_drops_the_difficulty() -> None:
    facts = mixed((10, 10, 10))
    found = Counter(fates(facts, Rules(difficulty={"medium": 1.0})))
    assert found == {"kept": 20, "mix": 50, "wrong": 90}


def test_a_mix_that_cannot_be_had_is_said() -> None:
    unmet = chosen(mixed((10, 10, 0)), Rules(difficulty={"easy": 0.2, "medium": 0.5, "hard": 0.3})).unmet
    assert unmet == "none of the 60 traces that are left is hard"


@pytest.mark.parametrize(("share", "long", "short"), [(0.2, 25, 100), (0.5, 100, 100), (0.8, 100, 25), (0.0, 0, 100)])
def test_long_thoughts_have_the_wished_for_share(share: float, long: int, short: int) -> None:
    facts = facts_of(*({"thought_tokens": tokens, "thought": tokens} for tokens in range(200)))
    kept = chosen(facts, Rules(long_share=share)).reasons == KEPT
    assert (int(kept[100:].sum()), int(kept[:100].sum())) == (long, short)


def test_the_limit_of_long_thoughts_can_be_given() -> None:
    facts = facts_of(*({"thought_tokens": tokens, "thought": tokens} for tokens in range(200)))
    kept = chosen(facts, Rules(long_share=0.5, long_tokens=150)).reasons == KEPT
    assert (int(kept[150:].sum()), int(kept[:150].sum())) == (50, 50)


def test_both_mixes_hold_together_and_a_seed_chooses() -> None:
    facts = mixed((100, 100, 100))
    facts["thought_tokens"] = np.random.default_rng(0).integers(1000, size=len(facts))
    rules = Rules(difficulty={"easy": 0.5, "medium": 0.5}, long_share=0.25, long_tokens=500)
    selection = chosen(facts, rules)
    kept = facts[selection.reasons == KEPT]
    bins = difficulty_of(selection.pass_rates[kept["problem"]])
    assert (bins == 0).mean() == pytest.approx(0.5, abs=0.02)
    for number in (0, 1):
        assert (kept["thought_tokens"][bins == number] >= 500).mean() == pytest.approx(0.25, abs=0.02)
    assert (chosen(facts, rules).reasons == selection.reasons).all()
    assert (chosen(facts, replace(rules, seed=1)).reasons != selection.reasons).any()


def test_nothing_can_be_chosen_from() -> None:
    assert fates(facts_of(), Rules(near_duplicates=0.8, per_problem=1, difficulty={"easy": 1.0})) == []
