"""`toolkit distill --logits` from problems to a student, on tiny models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from distill.logits.logits_config import USUAL
from distill.pipeline import DistillConfig, distill
from tests.distill.logits.test_grading import said_by
from tests.distill.test_pipeline import PROBLEMS, Reciter, no_decoder, recipe, write_problems
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat, completion_text
from toolkit.records import Trace, read_jsonl, read_records
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
    here = replace(named, teacher="builtin")
    with pytest.raises(InputError, match=r"logits\.tokenizer .* is for teachers behind a server, and"):
        distill(here, tmp_path / "here", no_decoder)
