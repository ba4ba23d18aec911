"""The stage `rl` alone: a student that has learned already is reinforced on problems, without a teacher or traces.

    out/
    ├── problems.jsonl  trained_on.json                  what the student was reinforced on
    ├── rl.jsonl  rl/events.out.tfevents.student         losses and rewards, for TensorBoard too
    ├── recipe.yaml                                      what the run was made with, to be read by --recipe
    ├── config.json  model.safetensors  tokenizer.json … the student
    └── manifest.json

If interrupted, the same command resumes from the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distill.curation.judged import check_judgeable
from distill.pipeline import DistillConfig
from distill.problems.families import make_problems
from distill.problems.problem_set import problems_digest, read_problems
from distill.problems.splits import check_training_split, of_split
from distill.recipes.distill_recipe import RESOLVED, recipe_text
from distill.reinforcement.rl_stage import ROOM, RlStage
from distill.trained_on import write_trained_on
from distill.training.student import check_room, check_student
from distill.training.train import check_recipe
from toolkit.figures.ledger import PROBLEMS
from toolkit.records import Problem, write_records
from toolkit.runs import Stage, check_out, finish, folder_digest, is_complete, partial_folder, replace_text, say_done
from toolkit.sources.made_card import write_student_card
from toolkit.sources.model_names import resolve
from toolkit.terminal import say
from toolkit.voice.student_format import write_student_format


def reinforce(config: DistillConfig, out: Path, check_memory: Callable[[Path], None] | None = None) -> Path:
    """Reinforce the student of the configuration into `out`, or do nothing if `out` holds this run already; return
    `out`.

    `check_memory` raises `InputError` if the machine is too small for the student. Raises `InputError` for wrong input
    before any long work starts.
    """
    assert config.rl
    check_recipe(config.train)
    check_out(out)
    given = None if config.problems is None else read_problems(config.problems, config.reading)
    student = resolve(config.student)
    stage = _stage(config, student, given)
    if is_complete(out, stage):
        say_done(out)
        write_student_card(out, student)
        return out
    problems = _problems(config, given)
    check_judgeable(problems)
    say(f"rl: checking the student {config.student}")
    training = config.train
    facts = check_student(
        student, context_tokens=training.context_tokens, targets=training.lora_targets, biases=training.lora_bias
    )
    if check_memory:
        check_memory(student)
    folder = partial_folder(out, stage)
    check_room(facts, folder, training)
    replace_text(folder / RESOLVED, recipe_text(_recipe_of(config), " --stage rl"))
    chat_format = write_student_format(student, folder)
    reinforcement = RlStage(config=config.rl, training=training, problems=problems).check(chat_format, facts.max_tokens)
    write_records(folder / PROBLEMS, problems)
    write_trained_on(folder, reinforcement.problems, student)
    measured = {f"rl_{name}": value for name, value in reinforcement.run(student, folder).items()}
    finish(folder, out, stage, {"problems": len(reinforcement.problems)} | measured, scratch=(ROOM,))
    write_student_card(out, student)
    return out


def _problems(config: DistillConfig, given: Sequence[Problem] | None) -> list[Problem]:
    if given is None:
        return make_problems("train", config.per_family, config.seed, config.families)
    check_training_split(given, config.problems)
    return of_split(given, "train")


def _values(config: DistillConfig) -> dict[str, Any]:
    """Return the values of a configuration that decide what this stage makes."""
    assert config.rl
    values: dict[str, Any] = {} if config.problems else {"families": config.families, "per_family": config.per_family}
    return values | {"seed": config.seed, "train": config.train.given(), "rl": asdict(config.rl)}


def _recipe_of(config: DistillConfig) -> dict[str, Any]:
    values = _values(config) | {"student": config.student, "reading": asdict(config.reading)}
    del values["train"]["seed"]
    return values | {"problems": str(config.problems or "")}


def _stage(config: DistillConfig, student: Path, given: Sequence[Problem] | None) -> Stage:
    inputs, names = {"student": folder_digest(student)}, {"student": config.student}
    if given is not None:
        inputs["problems"], names["problems"] = problems_digest(given), str(config.problems)
    return Stage(name="distill.rl", config=_values(config), inputs=inputs, names=names)
