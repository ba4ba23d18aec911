"""Reinforces a student on problems whose answers a program verifies: a stage after, or without, supervised training.

    student ─ turns on problems ─ rewards of distill.verification ─ GRPO ─> student

It works in the folder `reinforcement` of a run, whose checkpoints let it resume. At its end the weights take the place
of those in the run's folder, its curve is `rl.jsonl` there, and its event file is in the folder `rl`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.reinforcement.rl_config import RlConfig
from distill.training.journal import LOSS, SAMPLED
from distill.training.student import add_adapters, count_changed, load_student, save_student, saved_digests
from distill.training.train import run_recorded
from distill.training.train_config import TrainConfig
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.machine.allocator import give_freed_memory_back, keep_freed_memory
from toolkit.records import Problem
from toolkit.runs import replace_text
from toolkit.terminal import counted, say
from toolkit.voice.student_format import write_student_format

if TYPE_CHECKING:
    from distill.reinforcement.student_grpo import StudentGroupTrainer

ROOM = "reinforcement"
"""The folder of a run in which the stage works."""
CURVE, CURVES = "rl.jsonl", "rl"
"""The file of the stage's losses and rewards, and the folder of what repeats it for TensorBoard."""
EVENTS = "events.out.tfevents."
PREFLIGHT = "preflight.json"
LAST_UPDATES = 5
"""Updates at the beginning and at the end whose accuracies are compared."""


@dataclass(frozen=True, kw_only=True)
class RlStage:
    """What a student is reinforced by, and on which problems."""

    config: RlConfig
    training: TrainConfig
    problems: Sequence[Problem]

    def check(self, chat_format: ChatFormat, context: int) -> RlStage:
        """Return the stage with the problems that leave room for a turn in the student's context, shuffled.

        Raises `InputError` if there is none.
        """
        room = context - self.config.max_new_tokens
        lengths = [len(chat_format.prompt_ids(problem.messages)) for problem in self.problems]
        kept = [problem for problem, length in zip(self.problems, lengths, strict=True) if length <= room]
        if not kept:
            raise InputError(
                f"the shortest question ({min(lengths)} tokens) leaves no room for a turn of rl.max_new_tokens "
                f"({self.config.max_new_tokens}) in what the student reads at once ({context}); lower it"
            )
        if len(kept) < len(self.problems):
            left_out = counted(len(self.problems) - len(kept), "problem")
            say(
                f"rl: {left_out} left out: with a turn of {self.config.max_new_tokens} tokens they exceed what the "
                f"student reads at once ({context})"
            )
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(self.training.seed)).tolist()
        return RlStage(config=self.config, training=self.training, problems=[kept[n] for n in order])

    def run(self, student: Path, folder: Path) -> dict[str, Any]:
        """Reinforce the model in `student`, and leave it and its curve in `folder`, which may be the same.

        Returns what `distill.training.train.train` does, the reward before training, and the accuracies of the first
        and the last updates. Raises `InputError` before any training if no problem's turns differ in reward, and as
        `train` does.
        """
        from distill.reinforcement.student_grpo import StudentGroupTrainer, grpo_config  # TRL takes a while

        keep_freed_memory()
        work = folder / ROOM
        work.mkdir(exist_ok=True)
        training = self.training
        torch.manual_seed(training.seed)
        chat_format = write_student_format(student, work)
        plain = load_student(student, chat_format, training.quantization, context_tokens=training.context_tokens)
        before = saved_digests(plain)
        trainer = StudentGroupTrainer(
            add_adapters(plain, training) if training.lora_rank else plain,
            chat_format,
            self.problems,
            grpo_config(self.config, len(self.problems), training.seed),
            training,
            work,
            scale_rewards=self.config.scale_rewards,
            turns_at_once=self.config.turns_at_once,
        )
        measured = _preflight(trainer, work / PREFLIGHT)
        measured |= run_recorded(trainer, training, work, tokens=0)
        measured |= {"chosen_update": measured["updates"], "chosen_by": "the last of the updates by reinforcement"}
        assert trainer.model is not None
        trainer.model.config.use_cache = True
        give_freed_memory_back()  # merging and saving take other sizes
        saved = save_student(trainer.model, work, student, apart=training.lora_kept_apart)
        changed = count_changed(before, saved_digests(saved))
        measured |= _accuracies(work / LOSS) | {"tensors": len(before), "changed_tensors": changed}
        _move_out(work, folder)
        return measured


def _preflight(trainer: StudentGroupTrainer, record: Path) -> dict[str, Any]:
    """Survey the student before training, or return what a run that resumes found then."""
    if not record.is_file():
        say("rl: drawing from the student before training")
        replace_text(record, json.dumps(trainer.preflight()))
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return found


def _accuracies(curve: Path) -> dict[str, float]:
    """Return the mean accuracies on the problems as they came, in the first and in the last updates, none in both."""
    lines = [json.loads(line) for line in curve.read_text(encoding="utf-8").splitlines()]
    found = [line[f"{SAMPLED}accuracy"] for line in lines]
    count = max(1, min(LAST_UPDATES, len(found) // 2))
    return {"first_accuracy": sum(found[:count]) / count, "final_accuracy": sum(found[-count:]) / count}


def _move_out(work: Path, folder: Path) -> None:
    """Move the student from the stage's folder into the run's, and its curve beside it."""
    for path in sorted(work.iterdir()):
        if path.name.startswith(EVENTS):
            (folder / CURVES).mkdir(exist_ok=True)
            os.replace(path, folder / CURVES / path.name)
        elif path.is_file() and path.name not in (LOSS, PREFLIGHT):
            os.replace(path, folder / path.name)
    shutil.copyfile(work / LOSS, folder / CURVE)
