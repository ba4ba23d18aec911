"""Claims about trace files: no record is lost, doubled or glued, and nothing depends on batches or interrupts."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from distill.collecting.job import Job, Plan, row_seed
from distill.collecting.traces import count_reasoning, sample_traces
from tests.distill.bigram import BigramDecoder
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.generation.generate import Sampling
from toolkit.records import Problem, Trace, read_records

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=40, seed=3)
PROBLEMS = [
    Problem.create(family="user", question=f"What is {n} and {'x' * (n % 5)}?", answer=str(n)) for n in range(30)
]

CHILD = """
import sys
from pathlib import Path
from tests.distill.bigram import BigramDecoder
from tests.distill.test_traces import sample_all
sample_all(Path(sys.argv[1]), Path(sys.argv[2]), decoder=BigramDecoder(320, step_s=0.001))
"""


def sample_all(
    folder: Path,
    path: Path,
    *,
    batch_size: int = 4,
    samples: int = 2,
    sampling: Sampling = SAMPLING,
    decoder: BigramDecoder | None = None,
) -> Sequence[Trace]:
    job = Job(problems=PROBLEMS, sampling=sampling, samples=samples, batch_size=batch_size, path=path)
    return sample_traces(lambda: decoder or BigramDecoder(320), ChatFormat.from_folder(folder), job, teacher="bigram")


@pytest.fixture(scope="module")
def unbroken(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Sequence[Trace]:
    return sample_all(tiny_student, tmp_path_factory.mktemp("unbroken") / "traces.jsonl")


def test_traces_come_back_problem_by_problem(unbroken: Sequence[Trace]) -> None:
    assert [(t.problem_id, t.sample) for t in unbroken] == [(p.id, sample) for p in PROBLEMS for sample in (0, 1)]
    assert {t.finish_reason for t in unbroken} == {"stop", "length"}
    assert len({t.reasoning for t in unbroken}) > 50


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_batch_size_changes_no_trace(
    tiny_student: Path, tmp_path: Path, unbroken: Sequence[Trace], batch_size: int
) -> None:
    assert sample_all(tiny_student, tmp_path / "traces.jsonl", batch_size=batch_size) == unbroken


def test_kill_9_at_random_moments_loses_doubles_and_glues_nothing(
    tiny_student: Path, tmp_path: Path, unbroken: Sequence[Trace]
) -> None:
    path = tmp_path / "traces.jsonl"
    command = [sys.executable, "-c", CHILD, str(tiny_student), str(path)]
    chance = random.Random(11)
    survived: list[Trace] = []
    kills = 0
    while len(survived) < len(unbroken):
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        goal = (path.stat().st_size if path.exists() else 0) + chance.randrange(1, 6000)
        while child.poll() is None and (not path.exists() or path.stat().st_size < goal):
            time.sleep(0.0005)
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        found = read_records(path, Trace)  # every line is whole: kill -9 tears no single write
        assert found[: len(survived)] == survived, "a finished record was lost or changed"
        survived = found
    assert kills >= 3
    assert len({(t.problem_id, t.sample) for t in survived}) == len(survived) == len(unbroken)
    assert sample_all(tiny_student, path) == unbroken
    assert read_records(path, Trace) == survived, "nothing is sampled again"


def test_a_line_torn_at_any_byte_is_sampled_again(
    tiny_student: Path, tmp_path: Path, unbroken: Sequence[Trace]
) -> None:
    whole = tmp_path / "whole.jsonl"
    sample_all(tiny_student, whole)
    content = whole.read_bytes()
    lines = content.splitlines(keepends=True)
    last = len(lines[-1])
    for torn in (1, 2, last // 2, last - 1):
        path = tmp_path / f"torn-{torn}.jsonl"
        path.write_bytes(content[:-torn])
        assert sample_all(tiny_student, path) == unbroken
        assert path.read_bytes() == content


def test_more_samples_go_on_where_fewer_stopped(tiny_student: Path, tmp_path: Path, unbroken: Sequence[Trace]) -> None:
    path = tmp_path / "traces.jsonl"
    first = sample_all(tiny_student, path, samples=1)
    before = path.read_bytes()
    assert first == unbroken[::2]
    assert sample_all(tiny_student, path, samples=2) == unbroken
    assert path.read_bytes().startswith(before)


def test_a_file_of_another_seed_is_refused_and_left_alone(tiny_student: Path, tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    sample_all(tiny_student, path)
    before = path.read_bytes()
    other = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=40, seed=4)
    chat_format = ChatFormat.from_folder(tiny_student)
    job = Job(problems=PROBLEMS, sampling=other, samples=2, batch_size=4, path=path)
    plan = Plan(chat_format.prompt_ids, job, "bigram")
    held = read_records(path, Trace)[0]
    position = plan.position(held.problem_id, held.sample)
    with pytest.raises(InputError) as caught:
        sample_all(tiny_student, path, sampling=other)
    assert held.request_hash in str(caught.value)
    assert position is not None and plan.hash(position) in str(caught.value)
    assert path.read_bytes() == before


def test_a_prompt_without_room_for_the_limit_is_refused_by_its_length(tiny_student: Path, tmp_path: Path) -> None:
    chat_format = ChatFormat.from_folder(tiny_student)
    longest = max(len(chat_format.question_ids(p.question)) for p in PROBLEMS)
    with pytest.raises(InputError, match=rf"\({longest} tokens.*\(40\) must be at most .*\({longest + 39}\)"):
        sample_all(
            tiny_student, tmp_path / "traces.jsonl", samples=1, decoder=BigramDecoder(320, max_length=longest + 39)
        )
    assert (tmp_path / "traces.jsonl").read_bytes() == b""


def test_seeds_differ_by_problem_sample_and_seed() -> None:
    seeds = {row_seed(seed, p.id, sample) for seed in range(3) for p in PROBLEMS for sample in range(4)}
    assert len(seeds) == 3 * len(PROBLEMS) * 4


def test_reasoning_is_counted_up_to_its_closing_tag(tiny_student: Path) -> None:
    chat_format = ChatFormat.from_folder(tiny_student)
    reasoning, answer = chat_format.encode("one by one\n</think>"), chat_format.encode("\n\n7 </think>")
    assert count_reasoning(chat_format, [*reasoning, *answer, 2]) == len(reasoning)
    assert count_reasoning(chat_format, chat_format.encode("never done")) == len(chat_format.encode("never done"))
