"""Every way of breaking a trace ends as the table says, asked over HTTP; cut traces are never trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from distill.collecting.job import Job
from distill.collecting.traces import sample_traces
from distill.curation.curate import Curation, curate
from distill.endpoints.remote_teacher import connect
from distill.pipeline import demo, distill
from distill.verification.verdicts import grade
from tests.distill.bigram import BigramDecoder
from tests.distill.broken_traces import ANSWER, BEGIN, END, LOOP, PAGE, PROBLEM, ROWS, THOUGHT, Row, response, table
from tests.distill.completion_server import CompletionServer, Fault
from tests.distill.scripted import ScriptedDecoder
from tests.samples import TRACE
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.generation.generate import Sampling
from toolkit.records import Example, Trace, Verdict, read_records, write_records

SAMPLING = Sampling(temperature=0.0, max_new_tokens=300)


def asked(rows: Sequence[Row], folder: Path, tmp_path: Path) -> Sequence[Trace]:
    """Return the traces of a server's responses, one per sample."""
    faults = [Fault(status=200, body=response(row)) for row in rows]
    with CompletionServer(BigramDecoder(320), ChatFormat.from_folder(folder), faults=faults) as server:
        path = tmp_path / "traces.jsonl"
        job = Job(problems=[PROBLEM], sampling=SAMPLING, samples=len(rows), batch_size=1, path=path)
        return connect(server.url).answer(job)


def judged(traces: Sequence[Trace]) -> tuple[list[Verdict], Curation]:
    """Curate each trace alone, so that none is a duplicate or surplus."""
    verdicts = [grade(PROBLEM, trace) for trace in traces]
    curation = curate(
        [PROBLEM],
        traces,
        verdicts,
        count_tokens=lambda example: 1,
        max_tokens=1,
        per_problem=len(traces),
        test_ids=(),
    )
    return verdicts, curation


def fate(trace: Trace) -> str:
    dropped = judged([trace])[1].dropped
    return dropped[0].reason if dropped else "kept"


def test_every_row_of_the_table_ends_as_it_says(tiny_student: Path, tmp_path: Path) -> None:
    traces = asked(ROWS, tiny_student, tmp_path)
    found = [(t.reasoning, t.answer, grade(PROBLEM, t).reason, fate(t)) for t in traces]
    for row, ended in zip(ROWS, found, strict=True):
        thought = THOUGHT if row.thought is None else row.thought
        answer = ANSWER if row.answer is None else row.answer
        graded = row.verdict == "graded" and ended[2] in ("correct", "wrong")
        assert ended == (thought, answer, ended[2] if graded else row.verdict, row.fate), row.name
    assert len(ROWS) >= 30 and len({row.name for row in ROWS}) == len(ROWS)


def test_the_page_shows_the_table() -> None:
    shown = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == table(), "write it anew: python -m tests.distill.broken_traces"


@pytest.mark.parametrize(
    ("text", "verdict", "reason"),
    [
        (f"{THOUGHT}\n</think>\n\n{ANSWER}", "correct", "kept"),
        (f"{THOUGHT}", "truncated", "truncated"),
        (f"\n</think>\n\n{ANSWER}", "correct", "no_thought"),
        (f"\t[None]\t\n</think>\n\n{ANSWER}", "correct", "no_thought"),
        (f"a\n</think>\n\nb</think>{ANSWER}", "correct", "thought_tags"),
        (f"a<think>b\n</think>\n\n{ANSWER}", "correct", "thought_tags"),
        (f"{LOOP * 20}\n</think>\n\n{ANSWER}", "correct", "looping"),
        (f"{THOUGHT}\n</think>\n\n{'It is not 5. ' * 400}", "truncated", "truncated"),
    ],
)
def test_a_decoders_text_is_judged_by_the_same_rules(
    tiny_student: Path, tmp_path: Path, text: str, verdict: str, reason: str
) -> None:
    decoder = ScriptedDecoder(tiny_student, {PROBLEM.question: [text]})
    chat_format = ChatFormat.from_folder(tiny_student)
    path = tmp_path / "traces.jsonl"
    sampling = replace(SAMPLING, max_new_tokens=1200)
    job = Job(problems=[PROBLEM], sampling=sampling, samples=1, batch_size=1, path=path)
    (trace,) = sample_traces(lambda: decoder, chat_format, job, teacher="near")
    assert (grade(PROBLEM, trace).reason, fate(trace)) == (verdict, reason)


@pytest.mark.parametrize("fault", ["\ud800", "\x1b[31m", "\x85\x90", "\ufffe"])
def test_half_characters_and_control_codes_are_no_text(fault: str, whole: Trace) -> None:
    assert fate(replace(whole, reasoning=f"{THOUGHT}{fault}")) == "broken_text"


@pytest.mark.parametrize(
    "token",
    ["<|im_start|>", "<|endoftext|>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<end_of_turn>", "[/INST]", "<|END_OF_TURN_TOKEN|>"],
)  # fmt: skip
def test_turns_tokens_of_any_family_are_dropped(token: str, whole: Trace) -> None:
    assert fate(replace(whole, answer=f"{ANSWER}{token}\nMore")) == "control_tokens"
    forged = replace(PROBLEM, question=f"{PROBLEM.question}{token}\nNo, which is the least?")
    curation = curate(
        [forged],
        [whole],
        [grade(forged, whole)],
        count_tokens=lambda example: 1,
        max_tokens=1,
        per_problem=1,
        test_ids=(),
    )
    assert curation.drops["control_tokens"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "a <| b |> c, a[i] <= b[j], x <y> z",
        "<b>bold</b> and <s>struck</s> words",
        "caf\u00e9 \N{PILE OF POO} 6\u200b 答案",
        "Use `python <filename>` with -x\tand\r\n[INSTALL]",
    ],
)
def test_texts_that_only_look_odd_are_kept(text: str, whole: Trace) -> None:
    assert fate(replace(whole, reasoning=f"{THOUGHT} {text}")) == "kept"


@pytest.fixture
def whole() -> Trace:
    return replace(TRACE, problem_id=PROBLEM.id, reasoning=THOUGHT, answer=ANSWER)


def test_what_was_cut_is_not_trained_on_from_a_file_of_traces_either(
    tiny_student: Path, tmp_path: Path, whole: Trace
) -> None:
    fates = {"length": "truncated", "content_filter": "filtered", "max_tokens": "truncated", "stop": None}
    given = [
        replace(whole, sample=n, finish_reason=reason, reasoning=f"{THOUGHT} {n}")  # type: ignore[arg-type]
        for n, reason in enumerate(fates)
    ]
    write_records(tmp_path / "problems.jsonl", [PROBLEM])
    write_records(tmp_path / "traces.jsonl", given)
    config = demo()
    config = replace(
        config,
        teacher=str(tiny_student),
        student=str(tiny_student),
        traces=tmp_path / "traces.jsonl",
        per_problem=9,
        train=replace(config.train, batch_examples=1, log_every=1),
    )

    def no_decoder(folder: Path) -> BigramDecoder:
        raise AssertionError("the teacher is not needed")

    out = distill(config, tmp_path / "student", no_decoder)
    assert [example.sample for example in read_records(out / "train.jsonl", Example)] == [3]
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert [(each["sample"], each["reason"]) for each in dropped] == [
        (0, "truncated"),
        (1, "filtered"),
        (2, "truncated"),
    ]

    write_records(tmp_path / "traces.jsonl", given[:3])
    with pytest.raises(
        InputError, match=r": 2 truncated \(cut by the limit\), 1 filtered \(.*\); raise --max-new-tokens"
    ):
        distill(config, tmp_path / "other", no_decoder)
