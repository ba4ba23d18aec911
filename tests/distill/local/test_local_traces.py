"""`toolkit traces` and `toolkit distill` with a checkpoint of this machine as the teacher."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig

from distill.local import causal_model
from toolkit.cli.main import main
from toolkit.records import Trace, read_records
from toolkit.runs import folder_digest, read_manifest

GENERATION = {"do_sample": True, "temperature": 0.7, "top_k": 20, "eos_token_id": [2, 7, 9]}


@pytest.fixture
def teacher(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    folder = shutil.copytree(tiny("qwen3"), tmp_path / "teacher")
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


def traces(teacher: Path | str, out: Path, *options: str) -> int:
    return main(
        ["traces", "--teacher", str(teacher), "--per-family", "1", "--max-new-tokens", "6", *options, "--out", str(out)]
    )


def config_of(out: Path) -> dict[str, Any]:
    manifest = read_manifest(out)
    assert manifest is not None
    config: dict[str, Any] = manifest["config"]
    return config


def test_what_is_not_given_is_sampled_as_the_authors_say(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert traces(teacher, tmp_path / "own") == 0
    said = f"sampling: as the generation_config.json of {teacher} says: temperature 0.7, top_k 20"
    assert said in capsys.readouterr().err
    own = config_of(tmp_path / "own")
    assert (own["temperature"], own["top_p"], own["top_k"], own["repetition_penalty"]) == (0.7, 1.0, 20, 1.0)
    assert traces(teacher, tmp_path / "given", "--temperature", "0.3", "--top-p", "0.8") == 0
    given = config_of(tmp_path / "given")
    assert (given["temperature"], given["top_p"], given["top_k"]) == (0.3, 0.8, 20)


def test_a_model_without_a_sampling_of_its_own_is_sampled_as_usual(
    tiny: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert traces(tiny("llama"), tmp_path / "out") == 0
    assert "sampled as" not in capsys.readouterr().err
    config = config_of(tmp_path / "out")
    assert (config["temperature"], config["top_p"], config["top_k"]) == (0.6, 0.95, 0)


def test_answers_end_with_each_of_several_end_of_text_ids(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (
        traces(teacher, out, "--samples", "12", "--temperature", "1.5", "--top-k", "0", "--max-new-tokens", "200") == 0
    )
    reasons = {trace.finish_reason for trace in read_records(out / "traces.jsonl", Trace)}
    assert reasons == {"stop", "length"} or reasons == {"stop"}


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_a_teacher_in_fewer_bits_is_another_teacher(load_in: str, teacher: Path, tmp_path: Path) -> None:
    assert traces(teacher, tmp_path / "bits", "--load-in", load_in) == 0
    manifest = read_manifest(tmp_path / "bits")
    assert manifest is not None
    assert manifest["inputs"]["teacher"] == f"{folder_digest(teacher)} (load-in: {load_in})"
    assert manifest["measured"]["traces"] == 7


def test_the_batch_changes_no_trace(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal_model, "compute_dtype", lambda: torch.float32)  # in bf16 near ties may break differently
    found = []
    for rows in (1, 3, 64):
        out = tmp_path / f"rows{rows}" / "out"
        assert traces(teacher, out, "--batch-size", str(rows), "--samples", "2") == 0
        found.append(
            [(t.problem_id, t.sample, t.reasoning, t.answer) for t in read_records(out / "traces.jsonl", Trace)]
        )
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, ["--load-in", "4bit"], "is quantized already (by awq)"),
        (
            {"architectures": ["Qwen3ForSequenceClassification"]},
            [],
            "is a Qwen3ForSequenceClassification, which does not",
        ),
        ({"model_type": "unheard_of"}, [], "has the model_type 'unheard_of', which is no causal language model"),
    ],
)
def test_a_folder_that_cannot_be_a_teacher_ends_with_one_line(
    change: dict[str, Any],
    options: list[str],
    message: str,
    teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | change))
    assert traces(teacher, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_template_that_cannot_render_ends_with_one_line_before_the_weights_are_read(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (teacher / "chat_template.jinja").write_text("{{ raise_exception('only tools') }}")
    (teacher / "model.safetensors").write_bytes(b"")
    assert traces(teacher, tmp_path / "out") == 2
    assert "the chat template cannot render 1 messages" in capsys.readouterr().err.splitlines()[-1]


def test_a_server_loads_its_model_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert traces("http://127.0.0.1:9/v1", tmp_path / "out", "--load-in", "4bit") == 2
    assert "--load-in 4bit is for a teacher on this machine, not for" in capsys.readouterr().err


def test_a_model_that_reads_only_is_refused(
    tmp_path: Path, tiny: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny("llama"), tmp_path / "bert")
    BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(folder)
    assert traces(folder, tmp_path / "out") == 2
    assert "is a BertForMaskedLM, which does not continue text; choose" in capsys.readouterr().err.splitlines()[-1]


def test_distill_samples_and_loads_its_teacher_in_the_same_way(
    teacher: Path, tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["distill", "--teacher", str(teacher), "--student", str(tiny_student), "--per-family", "1"]
    command += ["--max-new-tokens", "4", "--load-in", "8bit", "--out", str(tmp_path / "student")]
    assert main(command) == 2  # a random teacher is never right
    assert "says: temperature 0.7, top_k 20" in capsys.readouterr().err
    (store,) = tmp_path.glob(".traces/*/asked.json")
    asked = json.loads(store.read_text())
    assert asked["digest"] == f"{folder_digest(teacher)} (load-in: 8bit)"
    assert (asked["sampling"]["temperature"], asked["sampling"]["top_p"], asked["sampling"]["top_k"]) == (0.7, 1.0, 20)
