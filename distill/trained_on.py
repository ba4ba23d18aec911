"""What a student was trained on, kept beside it, so that an evaluation can leave it out.

    trained_on.json    {"questions": [digest, …]}    in the student's folder, and in every export of it

A question's digest is that of its text and of what was said before it, with case, white space and the forms of Unicode
folded, so that neither another id nor another layout hides a question that was trained on. Who learned as a student
before brings the questions of that time along.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distill.problems.splits import split_of
from toolkit.errors import InputError
from toolkit.records import Asked, Example, Problem, read_object, read_records

TRAINED_ON = "trained_on.json"
TRAIN = "train.jsonl"
QUESTIONS = "questions"


Part = Literal["train", "validation", "test", "all"]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """The problems that an evaluation asks, and how they were chosen."""

    problems: list[Problem]
    split: Part
    given: int
    """In that split."""
    trained: int
    """Of the given ones, those that a model was trained on, whether they are asked or not."""

    @property
    def left_out(self) -> bool:
        """Whether the trained ones are not asked."""
        return len(self.problems) < self.given

    def facts(self) -> dict[str, Any]:
        """For the record of the evaluation."""
        return {"split": self.split, "given": self.given, "trained": self.trained, "left_out": self.left_out}

    def note(self) -> str:
        """One line for the terminal."""
        of = "" if self.split == "all" else f" of the {self.split} split"
        text = f"asking {len(self.problems)} of {self.given} problems{of}"
        if not self.trained:
            return text
        trained = f"{self.trained} of them were trained on"
        return f"{text}; {trained} and are left out" if self.left_out else f"{text}; {trained} (--include-trained)"


def choose(
    problems: Sequence[Problem], split: Part | None, trained: set[str], *, include_trained: bool = False
) -> Asking:
    """The problems of a split, without those that a model was trained on unless these are included.

    `split` None: the data set's own test part where it has one, else all. Raises `InputError` where none is left.
    """
    if split is None:
        split = "test" if any(problem.split == "test" for problem in problems) else "all"
    given = [problem for problem in problems if split in ("all", split_of(problem))]
    if not given:
        raise InputError(
            f"at least 1 of {len(problems)} problems must be of the {split} split, but none is; choose another --split"
        )
    fresh = [problem for problem in given if question_digest(problem) not in trained]
    if not fresh and not include_trained:
        raise InputError(
            f"at least 1 of {len(given)} problems must be new to the model, but it was trained on all; give others, or "
            "ask them all the same with --include-trained"
        )
    chosen = given if include_trained else fresh
    return Asking(problems=chosen, split=split, given=len(given), trained=len(given) - len(fresh))


def question_digest(asked: Asked) -> str:
    """See the module."""
    folded = "".join(unicodedata.normalize("NFKC", asked.transcript).casefold().split())
    return hashlib.sha256(folded.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def write_trained_on(folder: Path, examples: Iterable[Example], student: Path) -> None:
    """Write the questions of the examples, and those that the student was trained on before."""
    questions = {question_digest(example) for example in examples} | trained_questions(student)
    (folder / TRAINED_ON).write_text(json.dumps({QUESTIONS: sorted(questions)}, indent=0) + "\n")


def trained_questions(folder: Path) -> set[str]:
    """Digests of the questions that the model of a folder was trained on, as far as the folder says.

    Raises `InputError` where a file that says so cannot be read.
    """
    if (folder / TRAINED_ON).is_file():
        found = read_object(folder / TRAINED_ON).get(QUESTIONS)
        if not isinstance(found, list):
            raise InputError(f"{folder / TRAINED_ON} must hold a list of {QUESTIONS!r}; make the student again")
        return set(found)
    if (folder / TRAIN).is_file():  # a student from before this file was written
        return {question_digest(example) for example in read_records(folder / TRAIN, Example)}
    return set()
