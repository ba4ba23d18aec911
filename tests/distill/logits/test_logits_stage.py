"""`toolkit distill --logits` from problems to a student, on tiny models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from distill.logits import logits_stage
from distill.logits.logits_config import USUAL
from distill.logits.logits_stage import LogitsStage
from distill.pipeline import DistillConfig, distill
from distill.teachers.respondent import ModelFolder
from tests.distill.logits.test_grading import said_by
from tests.distill.test_pipeline import PROBLEMS, Reciter, no_decoder, recipe, write_problems
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat, completion_text
from toolkit.records import Example, Trace, read_jsonl, read_records
from toolkit.runs import read_manifest
from toolkit.sources.model_names import resolve


def config_of(student: Path, problems: Path, source: str) -> DistillConfig:
    logits = USUAL[source]
    if source == "on_policy":
        logits = replace(logits, updates=3, rollouts=4, max_new_tokens=8)
    return replace(recipe(student, problems), logits=logits)


def reciter(folder: Path) -> Reciter:
    return Reciter(folder, PROBLEMS)


def test_an_on_policy_stage_follows_supervised_training_and_resumes(tiny_student: Path, tmp_path: Path) -> None:
    config = config_of(tiny_student, write_problems(tmp_path / "problems.jsonl"), "on_policy")
    out = distill(config, tmp_path / "out", reciter)
    measured = (read_manifest(out) or {})["measured"]
    assert measured["train_updates"] > 0 and measured["logits_updates"] == 3
    assert len(list(read_jsonl(out / "logits.jsonl"))) == 3 and (out / "loss.jsonl").is_file()
    assert not (out / "logits").exists() and not (out / "checkpoints").exists()
    plain = distill(replace(config, logits=None), tmp_path / "plain", reciter)
    assert (out / "loss.jsonl").read_text().splitlines()[-1].split('"tokens_per_s"')[0] == (
        plain / "loss.jsonl"
    ).read_text().splitlines()[-1].split('"tokens_per_s"')[0]
    assert (out / "model.safetensors").read_bytes() != (plain / "model.safetensors").read_bytes()
    distill(config, out, no_decoder)  # complete: nothing to do


def test_a_run_without_logits_is_the_run_that_it_was_before_there_were_any(tiny_student: Path, tmp_path: Path) -> None:
    config = recipe(tiny_student, write_problems(tmp_path / "problems.jsonl"))
    out = distill(config, tmp_path / "out", reciter)
    assert "logits" not in (read_manifest(out) or {})["config"]


def test_a_teachers_distribution_replaces_supervised_training(tiny_student: Path, tmp_path: Path) -> None:
    """The built-in teacher scores traces that another one wrote."""
    config = config_of(tiny_student, write_problems(tmp_path / "problems.jsonl"), "teacher")
    first = distill(replace(config, logits=None), tmp_path / "first", reciter)
    again = replace(config, teacher="builtin", problems=None, traces=first / "traces.jsonl")
    out = distill(again, tmp_path / "out", no_decoder)
    measured = (read_manifest(out) or {})["measured"]
    assert measured["train_updates"] > 0 and "logits_updates" not in measured
    assert all("graded" in values for _, values in read_jsonl(out / "loss.jsonl") if "validation_loss" not in values)
    assert ChatFormat.from_folder(out).opens_reasoning


def test_stored_candidates_need_traces_that_have_some(tiny_student: Path, tmp_path: Path) -> None:
    problems = write_problems(tmp_path / "problems.jsonl")
    config = config_of(tiny_student, problems, "stored")
    with pytest.raises(InputError, match="collect them with toolkit traces --top-logprobs, and name the run's"):
        distill(config, tmp_path / "none", no_decoder)
    first = distill(replace(config, logits=None), tmp_path / "first", reciter)
    again = replace(config, problems=None, traces=first / "traces.jsonl")
    count = len(read_records(first / "traces.jsonl", Trace))
    with pytest.raises(InputError, match=f"{count} of {count} traces lack log-probabilities"):
        distill(again, tmp_path / "lacking", no_decoder)
    with pytest.raises(InputError, match="is a chosen training set"):
        distill(replace(again, traces=first / "train.jsonl", problems=problems), tmp_path / "chosen", no_decoder)


def test_stored_candidates_are_learned_from(tiny_student: Path, tmp_path: Path) -> None:
    from distill.store.sharded_store import TraceStore
    from distill.teachers.trace_store import store_of

    config = config_of(tiny_student, write_problems(tmp_path / "problems.jsonl"), "stored")
    first = distill(replace(config, logits=None), tmp_path / "first", reciter)
    store = store_of(first, first)
    traces = read_records(first / "traces.jsonl", Trace)
    for path in store.glob("traces-*"):
        path.unlink()
    tokenizer = ChatFormat.from_folder(first).tokenizer
    with TraceStore(store).writer() as writer:
        for trace in traces:
            text = completion_text(trace.reasoning, trace.answer)
            writer.append(trace, said_by(tokenizer, text, "<|im_end|>"))
    out = distill(replace(config, problems=None, traces=first / "traces.jsonl"), tmp_path / "out", no_decoder)
    lines = [values for _, values in read_jsonl(out / "loss.jsonl") if "graded" in values]
    assert lines and all(values["graded"] == 1 for values in lines)


def test_an_exported_teacher_and_a_server_without_a_tokenizer_are_refused(tiny_student: Path, tmp_path: Path) -> None:
    config = config_of(tiny_student, write_problems(tmp_path / "problems.jsonl"), "on_policy")
    first = distill(replace(config, logits=None), tmp_path / "first", reciter)
    behind = replace(config, teacher="http://127.0.0.1:1/v1#tiny", problems=None, traces=first / "traces.jsonl")
    with pytest.raises(InputError, match="does not tell its tokenizer; name a folder with it and the chat template"):
        distill(behind, tmp_path / "server", no_decoder)
    named = replace(behind, logits=replace(USUAL["on_policy"], tokenizer=str(resolve("builtin"))))
    with pytest.raises(InputError, match="must be a server that answers"):
        distill(named, tmp_path / "server", no_decoder)
    warm = replace(named, logits=replace(USUAL["on_policy"], tokenizer=str(resolve("builtin")), temperature=2.0))
    with pytest.raises(InputError, match=r"logits\.temperature \(2\.0\) must be 1 for a teacher behind a server"):
        distill(warm, tmp_path / "warm", no_decoder)


def nan_in(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def fewer_rows(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:290].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 290}))


@pytest.mark.parametrize("source", ["on_policy", "teacher"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "must hold a model that transformers can load"),
        (nan_in, r"the weight model\.norm\.weight of .*teacher is not finite"),
        (fewer_rows, r"the tokenizer of .*teacher has ids beyond the model's embedding of 290 rows \('\S+' is \d+\)"),
    ],
    ids=["no weights", "NaN", "fewer rows"],
)
def test_a_teacher_that_cannot_grade_is_refused_before_the_student_is_trained(
    spoil: Callable[[Path], None], message: str, source: str, tiny_student: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_student, write_problems(tmp_path / "problems.jsonl"), source)
    first = distill(replace(config, logits=None), tmp_path / "first", reciter)
    teacher = Path(shutil.copytree(tiny_student, tmp_path / "teacher"))
    spoil(teacher)
    again = replace(config, teacher=str(teacher), problems=None, traces=first / "traces.jsonl")
    with pytest.raises(InputError, match=message):
        distill(again, tmp_path / "out", no_decoder)
    assert not list(tmp_path.rglob(".out*/loss.jsonl"))


def test_a_turn_that_the_students_context_has_no_room_for_is_refused_and_some_are_left_out(
    tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tiny_student, write_problems(tmp_path / "problems.jsonl"), "on_policy")
    assert config.logits
    too_long = replace(config, logits=replace(config.logits, max_new_tokens=512))
    with pytest.raises(InputError, match=r"the shortest question \(\d+ tokens\) leaves no room for a turn .* \(512\)"):
        distill(too_long, tmp_path / "out", no_decoder)
    first = distill(replace(config, logits=None), tmp_path / "first", reciter)
    chat_format = ChatFormat.from_folder(first)
    teacher = ModelFolder(resolve("builtin"), no_decoder, "builtin")
    stage = LogitsStage(replace(config.logits, max_new_tokens=450), teacher, chat_format, None, None)
    examples = read_records(first / "train.jsonl", Example)
    long = replace(examples[0], question="appear " * 70)
    stage.check([examples[1].messages, long.messages], 512)
    assert "the student writes no turns on 1 question: with 450 tokens they exceed" in capsys.readouterr().err
    asked: list[Example] = []

    def watched(student: Path, examples: Sequence[Example], *args: Any, **kwargs: Any) -> dict[str, Any]:
        asked.extend(examples)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(logits_stage, "train", watched)
        stage.run(first, [long, examples[1]], {}, config.train, first, [])
    assert asked == [examples[1]]


def test_what_is_kept_apart_is_no_student_to_go_on_from(tiny_student: Path, tmp_path: Path) -> None:
    config = config_of(tiny_student, write_problems(tmp_path / "problems.jsonl"), "on_policy")
    apart = replace(config, train=replace(config.train, lora_rank=4, lora_kept_apart=True))
    with pytest.raises(InputError, match="and on-policy distillation goes on from a whole student; leave it"):
        distill(apart, tmp_path / "out", no_decoder)


def test_a_tokenizer_is_named_for_servers_alone(tiny_student: Path, tmp_path: Path) -> None:
    config = config_of(tiny_student, write_problems(tmp_path / "problems.jsonl"), "on_policy")
    assert config.logits
    named = replace(config, logits=replace(config.logits, tokenizer=str(tiny_student)))
    with pytest.raises(InputError, match=r"logits\.tokenizer \(.*\) is for a teacher behind a server, and .* has a"):
        distill(named, tmp_path / "out", no_decoder)
