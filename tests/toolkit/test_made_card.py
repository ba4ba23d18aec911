"""A model's card says what it was made from and under which licence, and what a person wrote into it stays."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.toolkit.test_ledger import write_evaluation
from toolkit.figures.ledger import Evaluation, read_evaluation
from toolkit.runs import Stage, finish, folder_digest, partial_folder
from toolkit.sources.made_card import base_of, note_result, write_export_card, write_student_card

STUDENT: dict[str, Any] = {"teacher": "builtin", "student": "smollm2-135m", "samples": 2, "train": {"epochs": 3}}
MEASURED = {"traces": 9, "teacher_correct": 7, "trained_on": 5, "train_updates": 3, "train_tokens": 500} | {
    "train_first_loss": 2.0,
    "train_final_loss": 0.5,
}


def made(out: Path, stage: str, config: dict[str, Any], measured: dict[str, Any], **files: str) -> Path:
    """Finish a run folder that holds these files."""
    described = Stage(name=stage, config=config, inputs={"teacher": "t0", "student": "s0"})
    folder = partial_folder(out, described)
    for name, text in files.items():
        (folder / name.replace("_l", ".jsonl")).write_text(text)
    finish(folder, out, described, measured)
    return out


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "LICENSE").write_text("Do good.")
    return folder


@pytest.fixture
def student(tmp_path: Path, base: Path) -> Path:
    traces = json.dumps({"teacher": "large model@abc"}) + "\n"
    folder = made(tmp_path / "run" / "student", "distill", STUDENT, MEASURED, train_l="{}", traces_l=traces)
    write_student_card(folder, base)
    return folder


@pytest.fixture
def measured(tmp_path: Path) -> Evaluation:
    """Return a finished evaluation in which a quarter is right."""
    out = tmp_path / "measured"
    write_evaluation(out, 10)
    return read_evaluation(out)


@pytest.mark.parametrize(
    "name", ["no", "2024-01-01", "1e3", "a: b", "mine #2", "it's", "- x", "42", "[a]", "größer", "Y"]
)
def test_a_card_is_yaml_whatever_the_base_is_called(name: str, base: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "out", "distill.rl", {"student": name}, {"rl_updates": 1, "rl_tokens": 5})
    write_student_card(folder, base)
    assert front(folder)["base_model"] == name
    assert base_of(folder, "x").name == name


def front(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    return values


def test_a_students_card_names_its_base_licence_data_and_recipe(student: Path) -> None:
    text = (student / "README.md").read_text()
    assert front(student) == {
        "license": "apache-2.0",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["reasoning", "distillation"],
    }
    manifest = json.loads((student / "manifest.json").read_text())
    assert manifest["outputs"]["train.jsonl"]["sha256"] in text and "`s0`" in text
    assert "README.md" not in manifest["outputs"]
    assert "by the reasoning of `large model`" in text and "5 of 9 traces; 7 were right" in text
    assert "| `train.epochs` | `3` |" in text
    assert (student / "LICENSE").read_text() == "Do good.", "the base's"


def test_a_students_card_says_how_a_teacher_is_asked_only_where_one_was(tmp_path: Path, base: Path) -> None:
    out = tmp_path / "runs" / "learned"
    config = {"per_family": 500, "sampling": {"temperature": 0.6}, "train": {"epochs": 3}}
    for inputs, is_said in (({"teacher": "t0"}, True), ({"traces": "x0"}, False)):
        stage = Stage(name="distill", config=config, inputs={"student": "s0", **inputs})
        folder = out.with_name(f"learned-{is_said}")
        finish(partial_folder(folder, stage), folder, stage, MEASURED)
        write_student_card(folder, base)
        text = (folder / "README.md").read_text()
        assert ("per_family" in text, "sampling.temperature" in text) == (is_said, is_said) and "train.epochs" in text
        assert f"\n# learned-{is_said}\n" in text, "without the folder of runs"


def test_a_student_that_was_reinforced_alone_has_no_teacher(tmp_path: Path, base: Path) -> None:
    measured = {"problems": 70, "rl_updates": 9, "rl_tokens": 5000, "rl_first_loss": 0.1, "rl_final_loss": 0.2}
    out = tmp_path / "rl"
    stage = Stage(name="distill.rl", config={"rl": {"samples": 8}}, inputs={"student": "s1"}, names={"student": "a/b"})
    finish(partial_folder(out, stage), out, stage, measured)
    write_student_card(out, base)
    text = (out / "README.md").read_text()
    assert front(out)["tags"] == ["reasoning", "reinforcement-learning"] and front(out)["base_model"] == "a/b"
    assert "Reinforcement: 9 updates on 5,000 tokens." in text and "teacher" not in text


def test_an_exported_folder_inherits_base_and_licence_of_its_student(student: Path, tmp_path: Path) -> None:
    parity = {"tokens": 100, "top1": 0.98, "mean_kl": 0.01}
    measured = {"bytes": 10**8, "bytes_per_parameter": 0.6, "parity": parity}
    folder = made(tmp_path / "int4", "export", {"bits": 4, "bounds": None}, measured)
    write_export_card(folder, student)
    found = front(folder)
    assert (found["base_model"], found["license"]) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    assert found["base_model_relation"] == "quantized" and found["tags"] == ["reasoning", "onnx", "int4"]
    assert "at 98.0 %" in (folder / "README.md").read_text() and str(tmp_path) not in (folder / "README.md").read_text()


def test_a_licence_that_nobody_recorded_is_said_to_be_unknown(tmp_path: Path, base: Path) -> None:
    assert base_of(tmp_path, "owner/name").license == "unknown"
    assert base_of(base, str(base)).license == "other", "its text is there"
    (base / "README.md").write_text('---\ntags:\n- en\nlicense: "mit" # short\nbase_model: a/b\n---\n# It\n')
    found = base_of(base, str(base))
    assert (found.license, found.name) == ("mit", "a/b")
    assert base_of(base, "owner/name").name == "owner/name"
    student = made(tmp_path / "earlier", "distill", STUDENT, MEASURED)
    assert base_of(student, str(student)).license == "apache-2.0", "a student without a card says what it was"


def test_results_are_written_between_the_marks_and_replace_only_their_like(student: Path, measured: Evaluation) -> None:
    digest = folder_digest(student)
    note_result(student, measured)
    note_result(student, replace(measured, protocol=measured.protocol | {"samples": 4}, accuracy=0.3))
    note_result(student, replace(measured, accuracy=0.5))
    lines = [line for line in (student / "README.md").read_text().splitlines() if line.startswith("| 40 (digest d1)")]
    assert [cells.split(" | ")[2].split(" [")[0] for cells in lines] == ["avg@4 30.0 %", "50.0 %"]
    assert folder_digest(student) == digest, "the card is no part of the model"


def test_what_a_person_wrote_stays(student: Path, base: Path, measured: Evaluation) -> None:
    card = student / "README.md"
    results = card.read_text().partition("## Results")[2].partition("## Use")[0]
    edited = f"---\nlicense: mit\n---\nMine.\n\n{results}End."
    card.write_text(edited)
    write_student_card(student, base)
    assert card.read_text() == edited
    note_result(student, measured)
    text = card.read_text()
    assert text.startswith("---\nlicense: mit\n---\nMine.") and text.endswith("End.") and "25.0 %" in text
    card.write_text("No marks.")
    note_result(student, measured)
    assert card.read_text() == "No marks."
