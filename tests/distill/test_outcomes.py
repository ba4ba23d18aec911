"""Which failures are the requests' own: what is recorded, what is sent again, and what ends a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from distill.collecting.outcomes import (
    MOST_AT_FIRST,
    MOST_IN_A_ROW,
    MOST_REFUSED,
    Cause,
    Outcomes,
    Refusal,
    reasons,
)
from distill.store.failure import Failure
from toolkit.errors import InputError
from toolkit.figures.ledger import FAILED
from toolkit.records import AppendLog, read_records


def follow(folder: Path, events: Sequence[Cause | str], *, proven: bool) -> list[str]:
    """Return the causes that are recorded after these events: answers, or failures by their causes."""
    with AppendLog(folder / FAILED) as log:
        outcomes = Outcomes(log, proven=proven)
        for n, event in enumerate(events):
            if event == "answer":
                outcomes.answered()
                continue
            failure = Failure(problem_id=str(n), sample=0, reason=event, message="", request_hash=str(n))
            refusal = Refusal("no", reason=event, cause=event, said="")  # type: ignore[arg-type]
            assert outcomes.failed(failure, refusal) == (event == "connection")
        outcomes.end()
    recorded = [failure.reason for failure in read_records(folder / FAILED, Failure)]
    assert recorded == [failure.reason for failure in outcomes.recorded]
    return recorded


ALL = ["request", "server", "access"]


@pytest.mark.parametrize(
    ("events", "proven", "recorded"),
    [
        ([*ALL, "answer"], False, ALL),
        (["answer", *ALL], False, ALL),
        (["request", "server"], True, ["request", "server"]),
        (["connection", "connection", "answer"], True, []),
        (["answer", "connection", "server", "answer", "answer"], False, ["server"]),
        ((["server"] * (MOST_AT_FIRST - 1) + ["answer"]) * 3, False, ["server"] * 3 * (MOST_AT_FIRST - 1)),
        (["request"] * (MOST_REFUSED - 1), True, ["request"] * (MOST_REFUSED - 1)),
        ((["request"] * 20 + ["answer"]) * 5, True, ["request"] * 100),
    ],
)
def test_a_failure_is_recorded_where_the_server_answered_others(
    tmp_path: Path, events: list[str], proven: bool, recorded: list[str]
) -> None:
    assert follow(tmp_path, events, proven=proven) == recorded


@pytest.mark.parametrize(
    ("events", "proven", "recorded"),
    [
        (["request"], False, 0),
        (["server"], False, 0),
        (["access"], True, 0),
        (["request"] * MOST_AT_FIRST, False, 0),
        (["connection"] * MOST_IN_A_ROW, True, 0),
        (["answer", "server", "answer", *["server"] * MOST_IN_A_ROW], False, 1),
        (["answer", *["access"] * MOST_IN_A_ROW], False, 0),
        (["answer", *["request"] * MOST_REFUSED], False, 0),
    ],
)
def test_a_server_that_is_gone_or_refuses_everybody_ends_the_run_and_is_recorded_for_nobody(
    tmp_path: Path, events: list[str], proven: bool, recorded: int
) -> None:
    with pytest.raises(InputError, match=r"no \(\d+ requests in a row failed and were not recorded\)"):
        follow(tmp_path, events, proven=proven)
    assert len(read_records(tmp_path / FAILED, Failure)) == recorded


def test_reasons_are_counted_the_most_frequent_first() -> None:
    failures = [
        Failure(problem_id="", sample=0, reason=reason, message="", request_hash="")
        for reason in ("HTTP 400", "no chat completion", "no chat completion")
    ]
    assert reasons(failures) == "2 × no chat completion, 1 × HTTP 400"
