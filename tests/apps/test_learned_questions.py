"""A chat offers questions that its student learned from, which its folder carries anyway, and no others."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from apps.learned_questions import LONGEST, learned_questions
from distill.trained_on import write_trained_on
from export.checks.parity import Bounds
from export.pipeline import export_model
from export.presets import int4_config
from toolkit.formats.chat_format import ChatFormat
from toolkit.records import TRAIN, TRAINED_ON, Example, write_records

ASKED = [f"What is twice {number}?" for number in range(40)]


def example(question: str) -> Example:
    return Example(
        problem_id=question,
        family="user",
        question=question,
        reasoning="It is added to itself.",
        answer="This.",
        sample=0,
        teacher="test",
    )


@pytest.fixture(scope="module")
def student(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(tiny_student, tmp_path_factory.mktemp("asked") / "student"))
    examples = [example(question) for question in ASKED]
    write_records(folder / TRAIN, examples)
    write_trained_on(folder, examples, tiny_student)
    return folder


@pytest.fixture(scope="module")
def exported(student: Path) -> Path:
    out = student.with_name("int4")
    export_model(replace(int4_config(student, out), bounds=Bounds(max_mean_kl=9.0, min_top1=0.0)))
    return out


def found(folder: Path) -> tuple[str, ...]:
    return learned_questions(folder, ChatFormat.from_folder(folder))


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_a_few_questions_of_the_training_set_are_offered(exported: Path) -> None:
    questions = found(exported)
    assert 0 < len(questions) <= 4 and {*questions} <= {*ASKED} and len({*questions}) == len(questions)


def test_what_is_long_or_was_not_learned_is_not_offered(exported: Path, tmp_path: Path) -> None:
    folder = copied(exported, tmp_path / "int4")
    chat_format, record = ChatFormat.from_folder(folder), json.loads((folder / "verify.json").read_text())
    others = found(exported)[1:]
    for asked in ("What is thrice 4?", f"What is twice {4:0{LONGEST}}?"):
        record["greedy"][0]["prompt"] = chat_format.question_ids(asked)
        (folder / "verify.json").write_text(json.dumps(record))
        assert found(folder) == others
    write_trained_on(folder, [example(asked)], exported)
    assert found(folder) == others, "it is learned now, and still long"
    asked = "What is thrice 4?"
    record["greedy"][0]["prompt"] = chat_format.question_ids(asked)
    (folder / "verify.json").write_text(json.dumps(record))
    write_trained_on(folder, [example(asked)], exported)
    assert found(folder) == (asked, *others)


@pytest.mark.parametrize("content", [None, "{}", '{"questions": 3}', '{"questions": []}', "no JSON"])
def test_a_folder_that_does_not_say_what_was_learned_offers_nothing(
    exported: Path, tmp_path: Path, content: str | None
) -> None:
    folder = copied(exported, tmp_path / "int4")
    (folder / TRAINED_ON).unlink()
    if content is not None:
        (folder / TRAINED_ON).write_text(content)
    assert found(folder) == ()


def test_an_export_that_is_not_calibrated_carries_the_gate_s_questions_which_are_not_offered(
    student: Path, tmp_path: Path
) -> None:
    config = int4_config(student, tmp_path / "quick", preset="quick")
    export_model(replace(config, bounds=Bounds(max_mean_kl=9.0, min_top1=0.0)))
    assert found(config.out) == ()
    export_model(replace(config, out=tmp_path / "without", bounds=None))
    assert found(tmp_path / "without") == ()
