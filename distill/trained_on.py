"""Keeps the digests of a student's training questions beside it, so that an evaluation can leave these out.

    trained_on.json    {"questions": [digest, …]}    in the student's folder, and in every export of it

A question's digest is the hash that serves as a problem's id: it covers the question and the turns before it, without
system prompts, with case, white space and Unicode forms folded. So neither another id nor another layout hides a
question that was trained on. A student that starts from another student inherits its questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distill.problems.splits import HOLD_OUT_MORE, of_split
from toolkit.errors import InputError
from toolkit.records import TRAIN, TRAINED_ON, Asked, Example, Problem, content_hash, read_object, read_records
from toolkit.runs import replace_text
from toolkit.terminal import counted

QUESTIONS = "questions"
Part = Literal["train", "validation", "test", "all"]


@dataclass(frozen=True, kw_only=True)
class ChosenProblems:
    """The problems of an evaluation, and how they were chosen."""

    problems: list[Problem]
    split: Part
    given: int
    """Problems in that split."""
    trained: int
    """The given problems that a model was trained on, whether they are asked or not."""
    unrecorded: list[str]
    """Models without a record of their training questions."""

    @property
    def left_out(self) -> bool:
        """Whether problems that a model was trained on are left out."""
        return len(self.problems) < self.given

    def facts(self) -> dict[str, Any]:
        """Return the facts for the record of the evaluation."""
        return {
            "split": self.split,
            "given": self.given,
            "trained": self.trained,
            "left_out": self.left_out,
            "unrecorded": self.unrecorded,
        }

    def note(self) -> str:
        """Describe the choice in one line."""
        of = "" if self.split == "all" else f" of the {self.split} split"
        text = f"asked: {len(self.problems)} of {counted(self.given, 'problem')}{of}"
        if self.trained:
            text += f"; {self.trained} of them " + (
                "was trained on and is " if self.trained == 1 else "were trained on and are "
            )
            text += "left out (--include-trained asks them)" if self.left_out else "asked anyway"
        if self.unrecorded:
            text += f"; the training questions of {', '.join(self.unrecorded)} are not recorded"
        return text


def choose(
    problems: Sequence[Problem],
    split: Part | None,
    trained_on: Mapping[str, set[str] | None],
    *,
    include_trained: bool = False,
) -> ChosenProblems:
    """Choose the problems of a split, without those that a model was trained on unless these are included.

    `split` None: the data set's own test part if it has one, else all. `trained_on`: the digests that
    `trained_questions` read, by model name. Raises `InputError` if no problem is left.
    """
    if split is None:
        split = "test" if any(problem.split == "test" for problem in problems) else "all"
    given = list(problems) if split == "all" else of_split(problems, split)
    if not given:
        raise InputError(
            f"none of {counted(len(problems), 'problem')} is in the {split} split; choose another --split, or "
            f"{HOLD_OUT_MORE}"
        )
    trained = set[str]().union(*(questions for questions in trained_on.values() if questions))
    fresh = [problem for problem in given if question_digest(problem) not in trained]
    if not fresh and not include_trained:
        raise InputError(
            f"the model was trained on all of {counted(len(given), 'problem')}; give others, or ask these anyway with "
            "--include-trained"
        )
    return ChosenProblems(
        problems=given if include_trained else fresh,
        split=split,
        given=len(given),
        trained=len(given) - len(fresh),
        unrecorded=[name for name, questions in trained_on.items() if questions is None],
    )


def question_digest(asked: Asked) -> str:
    """Return the digest of a question, as the module describes it."""
    said = [message for message in asked.history if message["role"] != "system"]
    return content_hash(Asked(question=asked.question, history=said).transcript)


def write_trained_on(folder: Path, examples: Iterable[Asked], student: Path) -> None:
    """Write the digests of the examples' questions and of those that the student was trained on before."""
    questions = {question_digest(example) for example in examples} | (trained_questions(student) or set())
    replace_text(folder / TRAINED_ON, json.dumps({QUESTIONS: sorted(questions)}, indent=0) + "\n")


def trained_questions(folder: Path) -> set[str] | None:
    """Read the digests of a model's training questions; None if its folder has no record.

    Raises `InputError` if the record cannot be read.
    """
    if (folder / TRAINED_ON).is_file():
        found = read_object(folder / TRAINED_ON).get(QUESTIONS)
        if not isinstance(found, list):
            raise InputError(f"{folder / TRAINED_ON} must hold a list of {QUESTIONS!r}; train the student again")
        return set(found)
    if (folder / TRAIN).is_file():  # a student of an earlier version
        return {question_digest(example) for example in read_records(folder / TRAIN, Example)}
    return None
