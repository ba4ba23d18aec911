"""Curation at size writes a training set and a reason for every other trace, and measures nothing twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.curation.at_size import curation_stage, measured_pieces, shard_pieces
from distill.curation.at_size.curation_stage import CurationConfig, curate_traces
from distill.curation.reasons import DROPS, Dropped
from distill.curation.selection import Rules
from distill.endpoints import chat_requests
from tests.distill.curation.made_runs import problems, thought, trace, write_run
from tests.distill.test_judge import Rater, rater
from toolkit.errors import InputError
from toolkit.records import Example, Problem, Trace, Verdict, read_records

__all__ = ["rater"]


def curated(out: Path, *traces: Path, **options: Any) -> Path:
    rules = options.pop("rules", Rules())
    return curate_traces(CurationConfig(traces=traces, rules=rules, **options), out)


def kept_in(folder: Path) -> list[tuple[str, int]]:
    return [(example.problem_id, example.sample) for example in read_records(folder / "train.jsonl", Example)]


def reasons_in(folder: Path) -> dict[tuple[str, int], str]:
    return {(each.problem_id, each.sample): each.reason for each in read_records(folder / "dropped.jsonl", Dropped)}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The pieces that were measured, by what they hold."""
    done: list[str] = []
    measure = measured_pieces._measured

    def noting(piece: Any, begin: int, content: bytes, worker: Any) -> Any:
        done.append(content.decode())
        return measure(piece, begin, content, worker)

    monkeypatch.setattr(measured_pieces, "_measured", noting)
    yield done


EVERY = Rules(near_duplicates=0.8, min_tokens=20, max_tokens=400, languages=("en",), per_problem=2, long_share=0.0)
ENGLISH = (
    "First we look at the numbers and then we add them together, because the question asks for their sum and nothing "
    "else is of any importance here, as far as I can tell from what was said above. "
)


def one_of_each() -> tuple[list[Problem], list[Trace], dict[str, str]]:
    """Traces of which each has its own fate: problems, traces, and the fate by the problem's family."""
    made: list[tuple[str, dict[str, Any]]] = [
        ("kept", {}),
        ("truncated", {"finish_reason": "length"}),
        ("filtered", {"finish_reason": "content_filter"}),
        ("tool_call", {"finish_reason": "tool_calls"}),
        ("broken_off", {"finish_reason": "error"}),
        ("empty", {"answer": " \n"}),
        ("thought_tags", {"answer": "It is 3. <think> No, 7."}),
        ("no_thought", {"reasoning": ""}),
        ("control_tokens", {"answer": "7<|im_end|>"}),
        ("broken_text", {"answer": "7 \x00"}),
        ("copied", {"reasoning": "7", "answer": "7"}),
        ("looping", {"reasoning": "So the answer must be seven. " * 40}),
        ("language", {"reasoning": "Nous devons ajouter les deux nombres, puis vérifier le résultat encore une fois."}),
        ("contaminated", {"reasoning": f"{ENGLISH} a train leaves the station at noon with sixty people"}),
        ("no_reference", {}),
        ("wrong", {"answer": "The answer is 8."}),
        ("too_long", {"completion_tokens": 500}),
        ("too_short", {"completion_tokens": 2}),
        ("mix", {"reasoning_tokens": 1000}),
    ]
    asked, traces, fates = [], [], {}
    for number, (fate, changes) in enumerate(made):
        problem = Problem.create(
            family=fate,
            question=f"What is {number} + {7 - number}?",
            answer="" if fate == "no_reference" else "7",
            split="train",
        )
        said: dict[str, Any] = {"reasoning": f"{ENGLISH}{thought(number)}", "reasoning_tokens": number} | changes
        asked.append(problem)
        traces.append(trace(problem, **said))
        fates[problem.id] = fate
    base, first = asked[0], traces[0]
    tested = Problem.create(family="test_split", question="Held out?", answer="7", split="test")
    asked.append(tested)
    traces += [
        trace(tested),
        replace(first, sample=1),
        replace(first, sample=2, reasoning=f"{first.reasoning} indeed"),
        replace(first, sample=3, reasoning=f"{ENGLISH}{thought(100)}"),
        replace(first, sample=4, reasoning=f"{ENGLISH}{thought(101)}"),
        replace(first, problem_id="0123456789abcdef"),
    ]
    fates |= {tested.id: "test_split", "0123456789abcdef": "unknown_problem"}
    fates |= {
        f"{base.id}/{i}": name for i, name in enumerate(("duplicate", "near_duplicate", "kept", "surplus"), start=1)
    }
    return asked, traces, fates


def test_every_reason_is_reachable_and_every_trace_has_one_fate(tmp_path: Path, rater: type[Rater]) -> None:
    asked, traces, fates = one_of_each()
    run = write_run(tmp_path / "run", asked, traces)
    (tmp_path / "held-out.txt").write_text("A train leaves the station at noon with sixty people.")
    out = curated(tmp_path / "out", run, rules=EVERY, decontaminate=(tmp_path / "held-out.txt",), run_words=8)
    found = reasons_in(out) | dict.fromkeys(kept_in(out), "kept")
    wanted = {(t.problem_id, t.sample): fates.get(f"{t.problem_id}/{t.sample}") or fates[t.problem_id] for t in traces}
    assert found == wanted
    counts = json.loads((out / "drops.json").read_text())
    assert counts["kept"] + sum(counts["drops"].values()) == counts["traces"] == len(traces)
    assert {name: count for name, count in counts["drops"].items() if count} == {
        name: count for name, count in Counter(wanted.values()).items() if name != "kept"
    }
    reached = set(wanted.values())
    rater.faults[:] = ["no idea"]
    judged = curated(tmp_path / "judged", run, rules=EVERY, judge=f"{rater.url}#judge")  # type: ignore[attr-defined]
    reached |= set(reasons_in(judged).values())
    votes = [trace(asked[0], i, answer=f"It is {7 + (i == 2)}.") for i in range(3)]
    voted = curated(tmp_path / "voted", write_run(tmp_path / "votes", asked[:1], votes), rules=Rules(keep="majority"))
    reached |= set(reasons_in(voted).values())
    assert reached == {"kept", *DROPS}


def test_a_dropped_trace_says_what_and_where(tmp_path: Path) -> None:
    asked, traces, _ = one_of_each()
    run = write_run(tmp_path / "run", asked, traces)
    (tmp_path / "held-out.txt").write_text("A train leaves the station at noon with sixty people.")
    out = curated(tmp_path / "out", run, rules=EVERY, decontaminate=(tmp_path / "held-out.txt",), run_words=8)
    details = {each.reason: each.detail for each in read_records(out / "dropped.jsonl", Dropped)}
    assert details["contaminated"] == "a train leaves the station at noon with"
    assert details["language"] == "fr"
    assert details["wrong"] == "expected number: 7; answered number: 8"
    assert details["too_long"] == "510 tokens"
    assert details["near_duplicate"] == details["duplicate"] == f"problem {asked[0].id} sample 0 is kept"
    sources = {(each.problem_id, each.sample): each.source for each in read_records(out / "dropped.jsonl", Dropped)}
    lines = (run / "traces.jsonl").read_text().splitlines()
    for (problem_id, sample), source in sources.items():
        name, _, number = source.rpartition(" line ")
        values = json.loads(lines[int(number) - 1])
        assert name == str(run / "traces.jsonl") and (values["problem_id"], values["sample"]) == (problem_id, sample)


def test_the_page_shows_reasons_and_traces_of_each(tmp_path: Path) -> None:
    asked, traces, _ = one_of_each()
    traces[1] = replace(traces[1], answer="<script>alert(1)</script>")
    page = (
        curated(tmp_path / "out", write_run(tmp_path / "run", asked, traces), rules=EVERY) / "report.html"
    ).read_text()
    assert "<script>" not in page and "&lt;script&gt;alert(1)" in page
    assert all(f"<h3>{name}" in page for name in ("kept", "truncated", "looping", "duplicate", "surplus", "mix"))
    assert page.count("<svg") == 3 and "default-src 'none'" in page
    assert ", languages en, " in page and "long share 0.0" in page


def test_the_most_frequent_answer_counts_by_its_meaning_with_and_without_a_reference(tmp_path: Path) -> None:
    said = ["It is 1/2.", "The answer is 0.5.", "So 3.", "3 it is: 3", "\\boxed{\\frac{1}{2}}", "I get 4."]
    for answer in ("", "3"):
        (problem,) = [Problem.create(family="user", question="What?", answer=answer, split="train")]
        traces = [trace(problem, i, answer=text) for i, text in enumerate(said)]
        run = write_run(tmp_path / f"run{answer}", [problem], traces)
        out = curated(tmp_path / f"out{answer}", run, rules=Rules(keep="majority"))
        assert [sample for _, sample in kept_in(out)] == [0, 1, 4]
        assert set(reasons_in(out).values()) == {"minority"}


def test_programs_that_pass_their_tests_are_one_answer(tmp_path: Path) -> None:
    tests = [{"call": "add", "args": [2, 3], "returns": 5}]
    problem = Problem.create(
        family="user", question="Write add.", answer="add", metadata={"tests": tests}, split="train"
    )
    bodies = ["a - b", "a + b", "b + a", "a - b", "sum((a, b))"]
    traces = [
        trace(problem, i, answer=f"```python\ndef add(a, b):\n    return {body}\n```") for i, body in enumerate(bodies)
    ]
    out = curated(tmp_path / "out", write_run(tmp_path / "run", [problem], traces), rules=Rules(keep="majority"))
    assert [sample for _, sample in kept_in(out)] == [1, 2, 4]


def test_of_equally_frequent_answers_the_first_counts(tmp_path: Path) -> None:
    (problem,) = problems(1)
    traces = [trace(problem, i, answer=f"It is {text}.") for i, text in enumerate(("9", "8", "8", "9"))]
    out = curated(tmp_path / "out", write_run(tmp_path / "run", [problem], traces), rules=Rules(keep="majority"))
    assert [sample for _, sample in kept_in(out)] == [0, 3]


def test_a_judge_rates_what_has_no_reference_and_is_not_asked_twice(
    tmp_path: Path, rater: type[Rater], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_requests, "FIRST_PAUSE_S", 0.001)
    unknown, known = Problem.create(family="user", question="Why?", answer="", split="train"), problems(1)[0]
    said = ["e" * 9, "e" * 3, "e" * 7, "e" * 7]
    traces = [*(trace(unknown, i, answer=text) for i, text in enumerate(said)), trace(known)]
    run = write_run(tmp_path / "run", [unknown, known], traces)
    judge = f"{rater.url}#judge"  # type: ignore[attr-defined]
    out = curated(tmp_path / "out", run, judge=judge)
    assert kept_in(out) == [(unknown.id, 0), (unknown.id, 2), (unknown.id, 3), (known.id, 0)]
    assert len(rater.prompts) == 3, "equal answers are rated once, and what has a reference never"
    verdicts = read_records(out / "verdicts.jsonl", Verdict)
    assert [(v.correct, v.score) for v in verdicts[:2]] == [(True, 0.9), (False, 0.3)]
    assert verdicts[0].verifier == f"judge:{judge}"
    best = curated(tmp_path / "best", run, judge=judge, judge_least=2.0, rules=Rules(keep="best-of", best_by="score"))
    assert kept_in(best) == [(unknown.id, 0), (known.id, 0)]
    assert len(rater.prompts) == 3, "other rules ask nothing again"


def test_several_shards_and_runs_are_one_set_in_their_order(tmp_path: Path) -> None:
    asked = problems(9)
    one = write_run(tmp_path / "one", asked[:6], [trace(p) for p in asked[:3]], shard="traces-a.jsonl")
    write_run(one, asked[:6], [trace(p) for p in asked[3:6]], shard="traces-b.jsonl")
    two = write_run(tmp_path / "two", asked[6:], [trace(p) for p in asked[6:]])
    out = curated(tmp_path / "out", one, two / "traces.jsonl")
    assert kept_in(out) == [(p.id, 0) for p in asked]
    assert len(read_records(out / "problems.jsonl", Problem)) == 9


@pytest.mark.parametrize("piece_bytes", [1, 97, 1000, 10**6])
def test_pieces_cut_no_line_and_double_none(tmp_path: Path, piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_pieces, "PIECE_BYTES", piece_bytes)
    asked = problems(20)
    run = write_run(
        tmp_path / "run", asked, [trace(p, answer=f"É 漢 7 {'x' * (i % 5)} = 7") for i, p in enumerate(asked)]
    )
    out = curated(tmp_path / "out", run, rules=Rules(keep="all"))
    assert kept_in(out) == [(p.id, 0) for p in asked]


def test_a_pool_of_processes_finds_what_one_process_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_pieces, "PIECE_BYTES", 4000)
    asked, traces, _ = one_of_each()
    run = write_run(tmp_path / "run", asked, traces)
    rules = replace(EVERY, keep="majority")
    one = curated(tmp_path / "a" / "out", run, rules=rules)
    two = curated(tmp_path / "b" / "out", run, rules=rules, processes=2)
    for name in ("train.jsonl", "dropped.jsonl", "verdicts.jsonl", "drops.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_other_rules_measure_nothing_again_and_grown_files_only_what_is_new(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_pieces, "PIECE_BYTES", 2000)
    asked = problems(12)
    run = write_run(tmp_path / "run", asked, [trace(p) for p in asked[:9]])
    curated(tmp_path / "out", run)
    first = len(measured)
    assert first > 2
    curated(tmp_path / "other", run, rules=Rules(keep="all", max_tokens=100))
    curated(tmp_path / "out", run)
    assert len(measured) == first
    with (run / "traces.jsonl").open("ab") as file:
        file.write((write_run(tmp_path / "more", [], [trace(p) for p in asked[9:]]) / "traces.jsonl").read_bytes())
    out = curated(tmp_path / "grown", run)
    assert kept_in(out) == [(p.id, 0) for p in asked]
    assert len(measured) - first < first


def test_a_damaged_piece_is_measured_again(tmp_path: Path, measured: list[str]) -> None:
    asked = problems(3)
    run = write_run(tmp_path / "run", asked, [trace(p) for p in asked])
    curated(tmp_path / "out", run)
    (piece,) = (tmp_path / ".verdicts").glob("*/*.npz")
    piece.write_bytes(piece.read_bytes()[:300])
    assert kept_in(curated(tmp_path / "other", run, rules=Rules(keep="all"))) == [(p.id, 0) for p in asked]
    assert len(measured) == 2


def test_a_line_that_is_being_written_is_left_out_of_a_run_and_refused_in_a_file(tmp_path: Path) -> None:
    asked = problems(3)
    run = write_run(tmp_path / "run", asked, [trace(p) for p in asked])
    whole = (run / "traces.jsonl").read_bytes()
    (run / "traces.jsonl").write_bytes(whole[:-20])
    assert kept_in(curated(tmp_path / "out", run)) == [(p.id, 0) for p in asked[:2]]
    with pytest.raises(InputError, match=r"traces.jsonl line 3 is not a trace: it must be JSON"):
        curated(tmp_path / "file", run / "traces.jsonl")
    (run / "traces.jsonl").write_bytes(whole[:-1])
    assert len(kept_in(curated(tmp_path / "whole", run / "traces.jsonl"))) == 3


def test_students_tokens_are_counted_as_training_counts_them(tmp_path: Path, tiny_student: Path) -> None:
    from toolkit.voice.student_format import write_student_format

    asked = problems(4)
    traces = [trace(p, reasoning=thought(i, 20 + 10 * i)) for i, p in enumerate(asked)]
    run = write_run(tmp_path / "run", asked, traces)
    (tmp_path / "format").mkdir()
    chat_format = write_student_format(tiny_student, tmp_path / "format")
    lengths = [
        len(chat_format.training_ids(p.messages, t.reasoning, t.answer)[0]) for p, t in zip(asked, traces, strict=True)
    ]
    rules = Rules(min_tokens=lengths[1], max_tokens=lengths[2])
    assert lengths == sorted(lengths)
    assert kept_in(curated(tmp_path / "out", run, rules=rules, student=str(tiny_student))) == [
        (p.id, 0) for p in asked[1:3]
    ]


def test_problems_of_the_user_take_the_place_of_those_beside(tmp_path: Path) -> None:
    asked = [Problem.create(family="user", question=f"How many is {i}?", answer=str(i)) for i in range(40)]
    learned = [problem for problem in asked if problem.split is None][:40]
    (tmp_path / "mine.jsonl").write_text(
        "".join(json.dumps({"question": p.question, "answer": p.answer}) + "\n" for p in learned)
    )
    write_run(tmp_path / "run", [], [trace(p, answer=f"It is {p.answer}.") for p in learned])
    out = curated(tmp_path / "out", tmp_path / "run", problems=tmp_path / "mine.jsonl")
    assert set(reasons_in(out).values()) == {"test_split"} and len(kept_in(out)) > 25


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("traces.jsonl", "no json\n", "traces.jsonl line 1 must be JSON"),
        ("traces.jsonl", '{"question": "?"}\n', "traces.jsonl line 1: Trace has no key 'question'"),
        ("traces.jsonl", "[]\n", "traces.jsonl line 1 must be a JSON object, not list"),
        ("traces.jsonl", "", "hold no traces"),
        ("other.txt", "x", "run holds no traces*.jsonl; name a file of traces, or a run folder"),
    ],
)
def test_what_holds_no_traces_is_refused_at_once(tmp_path: Path, name: str, text: str, said: str) -> None:
    run = write_run(tmp_path / "run", problems(1), [])
    (run / "traces.jsonl").unlink()
    (run / "asked.json").write_text("{}")
    (run / name).write_text(text)
    with pytest.raises(InputError) as error:
        curated(tmp_path / "out", run)
    assert said in str(error.value)


def test_a_row_that_lacks_a_field_is_named_with_its_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_pieces, "PIECE_BYTES", 2000)
    asked = problems(12)
    run = write_run(tmp_path / "run", asked, [trace(p) for p in asked])
    lines = (run / "traces.jsonl").read_text().splitlines()
    values = json.loads(lines[7])
    del values["closed"]
    lines[7] = json.dumps(values)
    (run / "traces.jsonl").write_text("\n".join(lines) + "\n")
    for processes in (1, 2):
        with pytest.raises(
            InputError, match=r"run/traces.jsonl line 8 is not a trace: Trace is incomplete: .*'closed'"
        ):
            curated(tmp_path / f"out{processes}", run, processes=processes)


def test_what_is_missing_or_leaves_nothing_is_said(tmp_path: Path) -> None:
    asked = problems(2)
    run = write_run(tmp_path / "run", asked, [trace(p, answer="8") for p in asked])
    with pytest.raises(InputError, match=r"none of the teacher's 2 traces .*: 2 wrong .*; choose an abler teacher"):
        curated(tmp_path / "out", run)
    with pytest.raises(InputError, match="none of the 2 traces that are left is easy or medium; collect more"):
        curated(tmp_path / "out", run, rules=Rules(keep="all", difficulty={"easy": 0.5, "medium": 0.5}))
    with pytest.raises(InputError, match="does not exist; name a file of traces, or a run folder"):
        curated(tmp_path / "out", tmp_path / "nowhere")
    write_run(tmp_path / "else", problems(9)[5:], [trace(p) for p in asked])
    with pytest.raises(
        InputError, match="none of the 2 traces answers one of the problems; name theirs with --problems"
    ):
        curated(tmp_path / "out", tmp_path / "else")
    (run / "problems.jsonl").unlink()
    with pytest.raises(InputError, match=r"run has no problems.jsonl beside its traces; name them with --problems"):
        curated(tmp_path / "out", run)
    assert not (tmp_path / "out").exists()


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = problems(2)
    run = write_run(tmp_path / "run", asked, [trace(p) for p in asked])
    select = curation_stage.select  # type: ignore[attr-defined]

    def changing(*args: Any, **options: Any) -> Any:
        write_run(run, asked, [trace(p, answer="changed to 7") for p in asked])
        return select(*args, **options)

    monkeypatch.setattr(curation_stage, "select", changing)
    with pytest.raises(InputError, match=r"traces.jsonl changed while it was curated; run the same command again"):
        curated(tmp_path / "out", run)
