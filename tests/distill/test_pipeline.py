"""The distill stage ends in one run folder, resumes where it stopped, and refuses bad input before it works."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from distill.pipeline import DistillConfig, demo, distill
from distill.problems.splits import split_of
from distill.trained_on import question_digest, trained_questions
from tests.distill.scripted import ScriptedDecoder
from toolkit.errors import FolderConflict, InputError
from toolkit.formats.chat_format import ChatFormat, completion_text
from toolkit.generation.generate import Decoder, Sampling
from toolkit.records import Example, Problem, Split, Trace, read_records, write_records
from toolkit.runs import read_manifest


class Reciter(ScriptedDecoder):
    """Recites the completion of each prompt; is interrupted after `patience` prompts."""

    max_length = 512

    def __init__(self, folder: Path, problems: Sequence[Problem], *, patience: int = 1000) -> None:
        super().__init__(
            folder, {p.question: [completion_text(f"{p.question} is {p.answer}", p.answer)] for p in problems}
        )
        self._patience = patience

    def next_line(self, prompt: Sequence[int]) -> list[int]:
        self._patience -= 1
        if self._patience < 0:
            raise KeyboardInterrupt
        return super().next_line(prompt)


PROBLEMS = [Problem.create(family="user", question=f"{i}+{i}", answer=str(2 * i)) for i in range(10, 40)]
TRAINABLE = [problem for problem in PROBLEMS if split_of(problem) != "test"]
"""The problems that are asked; traces of the validation split are not trained on."""
TRAINED = [problem for problem in PROBLEMS if split_of(problem) == "train"]


def write_problems(path: Path, problems: Sequence[Problem] = PROBLEMS) -> Path:
    path.write_text("".join(json.dumps({"question": p.question, "answer": p.answer}) + "\n" for p in problems))
    return path


def recipe(student: Path, problems: Path | None) -> DistillConfig:
    config = demo()
    return replace(
        config,
        teacher=str(student),
        student=str(student),
        problems=problems,
        sampling=Sampling(temperature=0.0, max_new_tokens=60),
        batch_size=8,
        train=replace(config.train, batch_examples=8, log_every=1),
    )


def no_decoder(folder: Path) -> Decoder:
    raise AssertionError("the teacher is not needed")


def test_a_run_folder_holds_the_student_and_what_it_learned_from(
    tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe(tiny_student, write_problems(tmp_path / "problems.jsonl"))
    out = tmp_path / "student"
    assert distill(config, out, lambda folder: Reciter(folder, PROBLEMS)) == out

    examples = read_records(out / "train.jsonl", Example)
    assert [example.problem_id for example in examples] == [problem.id for problem in TRAINED]
    held_out = read_records(out / "validation.jsonl", Example)
    watching = f"curation: {len(TRAINED)} of those kept are trained on; {len(held_out)} of the validation split watch"
    assert watching in capsys.readouterr().err
    assert {example.problem_id for example in held_out} == {p.id for p in TRAINABLE} - {p.id for p in TRAINED} != set()
    assert len(TRAINABLE) < len(PROBLEMS)
    counts = json.loads((out / "drops.json").read_text())
    assert counts["problems_in_test_split"] == len(PROBLEMS) - len(TRAINABLE)
    assert counts["traces"] == counts["kept"] == len(TRAINABLE)

    names = {path.name for path in out.iterdir()}
    assert names >= {"problems.jsonl", "traces.jsonl", "verdicts.jsonl", "loss.jsonl", "chat_template.jinja"}
    manifest = read_manifest(out)
    assert manifest is not None
    measured = manifest["measured"]
    assert measured["teacher_correct"] == len(TRAINABLE)
    assert (measured["trained_on"], measured["validation"]) == (len(TRAINED), len(held_out))
    assert measured["train_validation_loss"] > 0
    assert measured["train_chosen_update"] == measured["train_updates"] == -(-len(TRAINED) // 8)
    assert (
        measured["train_chosen_by"]
        == f"the last, since a choice by the validation loss needs 16 traces of that split, not {len(held_out)}"
    )
    assert measured["train_changed_tensors"] > 10
    assert trained_questions(out) == {question_digest(problem) for problem in (*TRAINED, *held_out)}
    assert set(manifest["outputs"]) == names - {"manifest.json", "README.md"}
    assert ChatFormat.from_folder(out).opens_reasoning
    AutoModelForCausalLM.from_pretrained(out)

    distill(config, out, no_decoder)  # complete: nothing to do
    with pytest.raises(FolderConflict, match=r"config\.max_tokens \(\d+\) must equal this run's \(200\)"):
        distill(replace(config, max_tokens=200), out, no_decoder)


def test_an_interrupted_run_keeps_its_traces(tiny_student: Path, tmp_path: Path) -> None:
    config = recipe(tiny_student, write_problems(tmp_path / "problems.jsonl"))
    out = tmp_path / "student"
    with pytest.raises(KeyboardInterrupt):
        distill(config, out, lambda folder: Reciter(folder, PROBLEMS, patience=17))
    assert not out.exists()
    (kept,) = tmp_path.glob(".traces/*/traces-*.jsonl")
    assert len(read_records(kept, Trace)) == 16
    distill(config, out, lambda folder: Reciter(folder, PROBLEMS, patience=len(TRAINABLE) - 16))
    assert len(read_records(out / "traces.jsonl", Trace)) == len(TRAINABLE)


def test_traces_from_before_are_learned_from_without_the_teacher(tiny_student: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    config = recipe(tiny_student, write_problems(tmp_path / "problems.jsonl"))
    distill(config, first, lambda folder: Reciter(folder, PROBLEMS))
    second = replace(config, problems=None, traces=first / "traces.jsonl")
    distill(second, tmp_path / "second", no_decoder)
    assert f"by the reasoning of `{tiny_student.name}`" in (tmp_path / "second" / "README.md").read_text()
    assert (tmp_path / "second" / "train.jsonl").read_text() == (first / "train.jsonl").read_text()
    assert (tmp_path / "second" / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()

    stranger = replace(second, problems=write_problems(tmp_path / "few.jsonl", TRAINABLE[:1]))
    with pytest.raises(InputError, match=rf"a trace of an unknown problem: {TRAINABLE[1].id}"):
        distill(stranger, tmp_path / "third", no_decoder)
    (tmp_path / "traces.jsonl").write_text("")
    with pytest.raises(InputError, match=r"traces\.jsonl is empty; give the traces\.jsonl of a run of toolkit traces"):
        distill(replace(second, traces=tmp_path / "traces.jsonl"), tmp_path / "third", no_decoder)


def test_traces_of_problems_without_a_reference_are_left_out_and_counted(
    tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, mixed = tmp_path / "first", tmp_path / "mixed"
    config = recipe(tiny_student, write_problems(tmp_path / "problems.jsonl"))
    distill(config, first, lambda folder: Reciter(folder, PROBLEMS))
    asked, made = read_records(first / "problems.jsonl", Problem), read_records(first / "traces.jsonl", Trace)
    mixed.mkdir()
    open_question = Problem.create(family="user", question="How are you?", answer="")
    write_records(mixed / "problems.jsonl", [open_question, *asked])
    write_records(mixed / "traces.jsonl", [replace(made[0], problem_id=open_question.id), *made])
    distill(replace(config, problems=None, traces=mixed / "traces.jsonl"), tmp_path / "second", no_decoder)
    assert (tmp_path / "second" / "train.jsonl").read_text() == (first / "train.jsonl").read_text()
    said = capsys.readouterr().err
    assert "left out: without a reference (1)" in said
    assert "traces: 1 trace of problems without a reference, which cannot be verified, left out" in said


def test_a_teacher_that_is_never_right_is_an_error_and_leaves_no_student(tiny_student: Path, tmp_path: Path) -> None:
    config = recipe(tiny_student, write_problems(tmp_path / "problems.jsonl", TRAINABLE[:4]))
    wrong = [replace(problem, answer="1") for problem in TRAINABLE]
    with pytest.raises(InputError, match="none of the teacher's 4 traces is correct"):
        distill(config, tmp_path / "student", lambda folder: Reciter(folder, wrong))
    assert not (tmp_path / "student").exists()


def test_a_run_without_validation_problems_says_so(
    tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe(tiny_student, write_problems(tmp_path / "problems.jsonl", TRAINED[:4]))
    config = replace(config, train=replace(config.train, evaluate_every=1))
    out = distill(config, tmp_path / "student", lambda folder: Reciter(folder, PROBLEMS))
    measured = (read_manifest(out) or {})["measured"]
    assert measured["validation"] == 0
    assert measured["train_chosen_by"] == "the last, since there is no trace of the validation split to choose by"
    assert "train_validation_loss" not in measured
    assert measured["train_changed_tensors"] > 10  # one update, and it counts
    assert "train.evaluate_every (1) has no effect, since no trace is of the validation" in capsys.readouterr().err


def test_a_run_that_changes_no_weight_is_an_error_and_leaves_no_student(tiny_student: Path, tmp_path: Path) -> None:
    config = recipe(tiny_student, write_problems(tmp_path / "problems.jsonl"))
    still = replace(config, train=replace(config.train, learning_rate=1e-12))
    with pytest.raises(InputError, match="training changed none of the student's 20 tensors"):
        distill(still, tmp_path / "student", lambda folder: Reciter(folder, PROBLEMS))
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("part", ["test", "validation"])
def test_problems_of_a_held_out_part_are_never_trained_on(part: Split, tiny_student: Path, tmp_path: Path) -> None:
    own = [replace(problem, split=part if i % 3 == 0 else "train") for i, problem in enumerate(PROBLEMS)]
    problems = tmp_path / "problems.jsonl"
    write_records(problems, own)
    first, second = tmp_path / "first", tmp_path / "second"
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    write_records(teacher / "problems.jsonl", own)
    distill(recipe(tiny_student, problems), first, lambda folder: Reciter(folder, PROBLEMS))

    made = read_records(first / "traces.jsonl", Trace)
    asked = {trace.problem_id for trace in made}
    more = [replace(made[0], problem_id=problem.id) for problem in own if problem.id not in asked]
    write_records(teacher / "traces.jsonl", [*made, *more])  # traces from elsewhere know no splits
    given = replace(recipe(tiny_student, None), traces=teacher / "traces.jsonl")
    distill(given, second, no_decoder)
    for out in (first, second):
        learned = {example.problem_id for example in read_records(out / "train.jsonl", Example)}
        assert learned == {problem.id for problem in own if problem.split == "train"}


def test_a_student_that_cannot_be_trained_is_refused_before_the_teacher_works(
    tiny_student: Path, tmp_path: Path
) -> None:
    student = tmp_path / "gpt"
    student.mkdir()
    (student / "config.json").write_text('{"model_type": "gpt2"}')
    config = replace(recipe(tiny_student, write_problems(tmp_path / "problems.jsonl")), student=str(student))
    with pytest.raises(InputError, match=r"architecture \(gpt2\) must be one of"):
        distill(config, tmp_path / "student", no_decoder)


def test_lengths_that_cannot_be_are_refused_before_the_teacher_works(
    tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe(tiny_student, write_problems(tmp_path / "problems.jsonl"))
    with pytest.raises(InputError, match=r"the longest example \(513 tokens\) exceeds .* \(512\); lower --max-tok"):
        distill(replace(config, max_tokens=513), tmp_path / "student", no_decoder)
    with pytest.raises(
        InputError, match=r"the shortest question \(\d+ tokens\) leaves no room .* \(5 tokens\); raise --max"
    ):
        distill(replace(config, max_tokens=5), tmp_path / "student", no_decoder)

    talkative = replace(config, sampling=replace(config.sampling, max_new_tokens=60), max_tokens=50)
    with pytest.raises(InputError, match=rf"{len(TRAINABLE)} too_long \(.*\); raise --max-tokens"):
        distill(talkative, tmp_path / "student", lambda folder: Reciter(folder, PROBLEMS))
    warned = "the teacher may write 60 tokens, but examples longer than 50 are not trained on; to train on them, raise"
    assert warned in capsys.readouterr().err


def test_problems_that_are_all_held_out_are_refused(tiny_student: Path, tmp_path: Path) -> None:
    held_out = [problem for problem in PROBLEMS if split_of(problem) == "test"]
    config = recipe(tiny_student, write_problems(tmp_path / "problems.jsonl", held_out))
    with pytest.raises(InputError, match=f"all {len(held_out)} problems of .* fall into the test and validation"):
        distill(config, tmp_path / "student", no_decoder)
