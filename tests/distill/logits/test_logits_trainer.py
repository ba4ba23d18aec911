"""Tests of training by logits, on tiny models."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.local.causal_model import open_causal_model
from distill.logits.grading.local_teacher import LocalTeacher
from distill.logits.grading.turns import Aligner
from distill.logits.logits_config import USUAL, LogitsConfig
from distill.logits.logits_trainer import LogitsTrainer
from distill.logits.rollouts import Writer
from distill.logits.vocabularies.bridge import build_bridge
from distill.recipes.distill_recipe import shipped_recipe
from distill.training.train import train
from distill.training.train_config import TrainConfig
from tests.conftest import write_tiny_student
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.records import Example, read_jsonl
from toolkit.sources.model_names import resolve

EXAMPLES = [
    Example(
        problem_id=str(n),
        family="chain_sum",
        question=f"{n} + 4 =",
        reasoning=f"{n} + 4 = {n + 4}",
        answer=str(n + 4),
        sample=0,
        teacher="t",
    )
    for n in range(10, 26)
]


def training(**changes: Any) -> TrainConfig:
    config: TrainConfig = replace(shipped_recipe().train, **{"batch_examples": 8, "log_every": 1, **changes})
    return config


def run(
    student: Path, teacher: Path, folder: Path, logits: LogitsConfig, dtype: torch.dtype = torch.float32, **changes: Any
) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    of_student, of_teacher = ChatFormat.from_folder(student), ChatFormat.from_folder(teacher)
    bridge = build_bridge(
        of_student.tokenizer, of_teacher.tokenizer, of_student.stop_ids, of_teacher.stop_ids, "the teacher"
    )
    aligner = Aligner(of_student, of_teacher, bridge)
    grader = LocalTeacher(
        open_causal_model(teacher, dtype).model, aligner, temperature=logits.temperature, top_k=logits.top_k
    )
    make_trainer = partial(
        LogitsTrainer,
        logits=logits,
        grader=grader,
        examples=EXAMPLES,
        sources=[""] * len(EXAMPLES),
        chat_format=of_student,
    )
    return train(student, EXAMPLES, training(**changes), folder, make_trainer=make_trainer)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_student_comes_closer_to_a_teacher_of_another_vocabulary_on_policy(
    tiny_student: Path, tmp_path: Path, beta: float
) -> None:
    logits = replace(
        USUAL["on_policy"],
        divergence_beta=beta,
        final_divergence_beta=beta,
        updates=8,
        rollouts=8,
        max_new_tokens=4,
        teacher_prefix_share=1.0,
    )
    measured = run(tiny_student, resolve("builtin"), tmp_path / "out", logits, learning_rate=5e-3)
    lines = [values for _, values in read_jsonl(tmp_path / "out" / "loss.jsonl")]
    assert measured["updates"] == 8 and len(lines) == 8
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(line["graded"] > 0 for line in lines) and lines[-1]["tokens"] > 0


def test_the_same_seed_writes_and_learns_the_same(tiny_student: Path, tmp_path: Path) -> None:
    logits = replace(USUAL["on_policy"], updates=3, rollouts=4, max_new_tokens=12, curriculum=0.5, first_new_tokens=4)
    losses = []
    for name in ("one", "other"):
        run(tiny_student, resolve("builtin"), tmp_path / name, logits)
        losses.append([values["loss"] for _, values in read_jsonl(tmp_path / name / "loss.jsonl")])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("top_k", [0, 5])
def test_the_teachers_traces_are_learned_with_their_distribution(
    tiny_student: Path, tmp_path: Path, top_k: int
) -> None:
    logits = replace(USUAL["teacher"], top_k=top_k)
    measured = run(tiny_student, resolve("builtin"), tmp_path / "out", logits, learning_rate=5e-3, epochs=4)
    assert measured["final_loss"] < measured["first_loss"] and measured["updates"] == 8


def test_a_student_that_is_its_own_teacher_has_nothing_to_learn(tiny_student: Path, tmp_path: Path) -> None:
    logits = replace(USUAL["teacher"], weight=1.0)
    run(tiny_student, tiny_student, tmp_path / "out", logits, dtype=torch.bfloat16)
    first = next(values for _, values in read_jsonl(tmp_path / "out" / "loss.jsonl"))
    assert first["loss"] == pytest.approx(0, abs=1e-2)  # rows of other lengths round otherwise in bf16


def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path: Path, tiny_student: Path) -> None:
    logits = replace(USUAL["on_policy"], updates=4, rollouts=4, max_new_tokens=8)
    whole = run(tiny_student, resolve("builtin"), tmp_path / "whole", logits)
    with pytest.MonkeyPatch.context() as patch:
        made = LogitsTrainer._batch

        def fails_late(self: LogitsTrainer, *args: Any) -> dict[str, Any]:
            if self.state.global_step == 2:
                raise KeyboardInterrupt
            return made(self, *args)

        patch.setattr(LogitsTrainer, "_batch", fails_late)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_student, resolve("builtin"), tmp_path / "cut", logits, checkpoint_every_s=0.0)
    resumed = run(tiny_student, resolve("builtin"), tmp_path / "cut", logits)
    assert resumed["updates"] == whole["updates"] and resumed["final_loss"] == whole["final_loss"]


def test_a_teacher_that_grades_nothing_is_given_up(tiny_student: Path, tmp_path: Path) -> None:
    logits = replace(USUAL["on_policy"], updates=5, rollouts=4, max_new_tokens=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalTeacher, "grade", lambda self, turns: [None] * len(turns))
        with pytest.raises(InputError, match="the teacher graded no token of 3 updates in a row"):
            run(tiny_student, resolve("builtin"), tmp_path / "out", logits)


def test_a_student_that_diverges_is_given_up(tiny_student: Path, tmp_path: Path) -> None:
    logits = replace(USUAL["on_policy"], updates=5, rollouts=4, max_new_tokens=4)
    with pytest.raises(InputError, match=r"training diverged: the .* of update 2 is nan; lower the learning rate"):
        run(tiny_student, resolve("builtin"), tmp_path / "out", logits, learning_rate=1e9, warmup_share=0.0)


def test_a_piece_of_the_teachers_turn_leaves_room_for_all_turns(tiny_student: Path) -> None:
    """The shortest room is that of all turns that are written together."""
    model, chat_format = open_causal_model(tiny_student, torch.float32).model, ChatFormat.from_folder(tiny_student)
    logits = replace(USUAL["on_policy"], teacher_prefix_share=1.0)
    long = replace(EXAMPLES[0], reasoning="1 + 1 = 2\n" * 60)
    writer = Writer(model, chat_format, logits, tokens=chat_format.tokenizer.get_vocab_size(), seed=0)
    turns = writer.write([long, *EXAMPLES[1:4]], 0, 200)
    room = model.config.max_position_embeddings
    assert all(len(turn.prompt) + len(turn.completion) <= room for turn in turns)
    asked = [writer._asked(long, step, 0, room - 200) for step in range(20)]
    assert max(len(one.prompt) for one in asked) == room - 200


def test_adapters_are_trained_and_merged(tiny_student: Path, tmp_path: Path) -> None:
    logits = replace(USUAL["on_policy"], updates=2, rollouts=4, max_new_tokens=8)
    measured = run(tiny_student, resolve("builtin"), tmp_path / "out", logits, lora_rank=4, learning_rate=1e-2)
    assert measured["changed_tensors"] > 0


def test_rows_of_padding_are_no_part_of_either_distribution(tmp_path: Path) -> None:
    """Qwen2.5 has 151,936 or 152,064 rows for the same tokens."""
    from transformers import AutoModelForCausalLM

    narrow = write_tiny_student(tmp_path / "narrow", context=128)
    wide = write_tiny_student(tmp_path / "wide", context=128)
    model = AutoModelForCausalLM.from_pretrained(wide)
    model.resize_token_embeddings(384, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[320:] = 9.0
    model.save_pretrained(wide)
    logits = replace(USUAL["teacher"], weight=1.0)
    for student, teacher in ((narrow, wide), (wide, narrow)):
        out = tmp_path / f"{student.name}-out"
        run(student, teacher, out, logits, dtype=torch.bfloat16)
        first = next(values for _, values in read_jsonl(out / "loss.jsonl"))
        assert first["loss"] == pytest.approx(0, abs=1e-2)
