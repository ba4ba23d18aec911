"""Recognizes published forms of problems by their columns, and reads a problem from a row of each.

Each form turns a row's columns into `question`, `answer` and, if present, `history`, `family` and `split`. A reference
is the final answer alone, because that is what is compared: what follows `####` in a GSM8K solution, the content of the
only box in a worked solution. A row whose answer cannot be compared, such as a proof, raises `LeftOut`.

Sources (columns as their cards on the hub give them): GSM8K (Cobbe et al. 2021), MATH (Hendrycks et al. 2021) and
MATH-500 (Lightman et al. 2023), AIME 2024 and 2025, NuminaMath (Li et al. 2024), OpenR1-Math-220k, s1K (Muennighoff et
al. 2025), ARC (Clark et al. 2018), MMLU (Hendrycks et al. 2020) and MMLU-Pro, Alpaca, ShareGPT.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distill.problems.conversations import LeftOut, from_messages, without_thought
from distill.problems.own_form import OWN_COLUMNS
from distill.verification.code.unit_tests import TESTS
from toolkit.answers.boxes import boxes
from toolkit.errors import InputError

Row = Mapping[str, Any]

_HASHES = re.compile(
    r"(?:(?:^|\n)####[ \t]*|(?<!#)####[ \t]*(?=[-+$€£]{0,2}\.?\d[\d.,/]*%?\s*\Z))(\S(?:(?!####)[^\n])*?)\s*\Z"
)
"""The last line of a GSM8K solution, or its final number if the line ends were lost; a Markdown heading, in contrast,
has lines below it."""
_AIME_ID = re.compile(r"(?:19|20)\d\d-I{1,2}-\d{1,2}")
_NO_ANSWER = ("", "notfound", "not found")
_LONGEST_ANSWER = 200
"""Most characters of an answer without a box; a longer text is a worked solution."""
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, kw_only=True)
class Form:
    """One published form: the columns that identify it, and how its rows are read."""

    name: str
    known_by: tuple[str, ...]
    """Columns, in lower case, that every row of this form has."""
    uses: tuple[str, ...]
    read: Callable[[Row], dict[str, Any]]
    fits: Callable[[Row], bool] = lambda row: True
    """An additional test of a row's values."""


def form_of(row: Row) -> Form | None:
    """Return the form of a row with lower-case columns and no empty cells; None if it is unknown."""
    for form in FORMS:
        if all(column in row for column in form.known_by) and form.fits(row):
            return form
    return None


def boxed_answer(solution: str) -> str:
    """Return the boxed answer of a worked solution; raises `LeftOut` if it has no box, or several different ones."""
    held = {held for _, _, held in boxes(solution)} - {""}
    if not held:
        raise LeftOut("no boxed answer")
    if len(held) > 1:
        raise LeftOut("several boxed answers")
    return held.pop()


def _ends_in_hashes(row: Row) -> bool:
    return isinstance(row["answer"], str) and bool(_HASHES.search(row["answer"]))


def _is_aime(row: Row) -> bool:
    """Return whether a row has a year, a contest number, or an id such as 2024-I-4."""
    return "year" in row or "problem_idx" in row or bool(_AIME_ID.fullmatch(str(row.get("id", ""))))


def _own(row: Row) -> dict[str, Any]:
    return {key: row[key] for key in (*OWN_COLUMNS, TESTS) if key in row}


def _gsm8k(row: Row) -> dict[str, Any]:
    (final,) = _HASHES.findall(row["answer"])
    return {"family": "gsm8k"} | _own(row) | {"answer": final}


def _worked(family: str, *columns: str) -> Callable[[Row], dict[str, Any]]:
    """Make a reader of `problem` with an `answer` or a boxed `solution`; the family is the first of `columns`."""

    def read(row: Row) -> dict[str, Any]:
        named = next((row[column] for column in columns if isinstance(row.get(column), str)), family)
        return {"question": row["problem"], "answer": _worked_answer(row), "family": named} | _given(row)

    return read


def _given(row: Row) -> dict[str, Any]:
    """Return the fields of our own form that a published row may also have."""
    return {"split": row["split"]} if "split" in row else {}


def _worked_answer(row: Row) -> Any:
    answer = row.get("answer", "")
    text = answer.strip() if isinstance(answer, str) else str(answer)
    if row.get("question_type") == "proof" or text.lower() == "proof":
        raise LeftOut("proof")
    if row.get("problem_is_valid", "Yes") != "Yes":
        raise LeftOut("marked as not valid")
    if text.lower() in _NO_ANSWER:
        return boxed_answer(_text(row, "solution"))
    return answer


def _aime(row: Row) -> dict[str, Any]:
    """Read an AIME row; answers are numbers from 0 to 999, so the answer sheet's leading zeros are dropped."""
    values = _worked("aime")(row)
    text = str(values["answer"]).strip()
    return values | {"answer": str(int(text)) if re.fullmatch(r"\d{1,3}", text) else values["answer"]}


def _s1k(row: Row) -> dict[str, Any]:
    solution = _text(row, "solution").strip()
    if any(boxes(solution)):
        solution = boxed_answer(solution)
    elif "\n" in solution or len(solution) > _LONGEST_ANSWER:
        raise LeftOut("no boxed answer")
    if not solution:
        raise LeftOut("no answer")
    return {"question": row["question"], "answer": solution, "family": str(row["cot_type"])} | _given(row)


def _choice(row: Row) -> dict[str, Any]:
    """Read a multiple-choice row: the choices go below the question, one lettered line each; the answer is a letter."""
    choices = row.get("choices", row.get("options"))
    labels, texts = _choices(choices)
    key = next((row[name] for name in ("answerkey", "answer", "answer_index") if name in row), None)
    if key is None or key == -1 or not str(key).strip():
        raise LeftOut("no answer")  # for example in test parts whose answers are withheld
    lines = [f"{label}) {text}" for label, text in zip(labels, texts, strict=True)]
    question = (
        f"{_text(row, 'question').rstrip()}\n\n" + "\n".join(lines) + "\n\nAnswer with the letter of the right choice."
    )
    family = next((row[name] for name in ("family", "subject", "category") if row.get(name)), "choice")
    return _own(row) | {"question": question, "answer": _label(key, labels, texts), "family": family}


def _choices(choices: Any) -> tuple[list[str], list[str]]:
    """Return labels and texts of a list of texts (labelled by letters), or of an object's two lists or its items."""
    labels, texts = list(_LETTERS), choices
    if isinstance(choices, dict) and {"text", "label"} <= choices.keys():
        labels, texts = choices["label"], choices["text"]
    elif isinstance(choices, dict):
        given = {label: text for label, text in choices.items() if text is not None}
        labels, texts = list(given), list(given.values())
    if isinstance(choices, list):
        labels = labels[: len(choices)]
    if not isinstance(texts, list) or not isinstance(labels, list) or not 2 <= len(texts) == len(labels):
        raise InputError(f"choices ({choices!r}) must be a list of at least 2 texts, or give a label for each of them")
    return [str(label) for label in labels], [str(text) for text in texts]


def _label(key: Any, labels: list[str], texts: list[str]) -> str:
    """Return the label that a key names: a position from 0, a label (`B`, `(B)`, `B.`, `B) Paris`) or a text."""
    if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < len(labels):
        return labels[key]
    told = str(key).strip().casefold()
    by_label, by_text, by_position = set(), set(), set()
    for position, (label, text) in enumerate(zip(labels, texts, strict=True)):
        shapes = {f"{before}{label}{after}" for before in ("", "(") for after in ("", ")", ".", ":")}
        if told in {shape.casefold() for shape in shapes | {f"{shape} {text}" for shape in shapes}}:
            by_label.add(label)
        if told == text.strip().casefold():
            by_text.add(label)
        if told == str(position):
            by_position.add(label)
    for found in (by_label, by_text | by_position):
        if len(found) == 1:
            return found.pop()
    raise InputError(
        f"answer ({key!r}) must name one of the choices ({', '.join(labels)}) by its label, its position from 0 or its "
        "text"
    )


def _alpaca(row: Row) -> dict[str, Any]:
    instruction, given, output = (_text(row, name).strip() for name in ("instruction", "input", "output"))
    answer = without_thought(output)
    if not answer:
        raise LeftOut("no answer")
    history = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return {"question": f"{instruction}\n\n{given}".strip(), "answer": answer, "history": history} | _given(row)


def _messages(column: str) -> Callable[[Row], dict[str, Any]]:
    def read(row: Row) -> dict[str, Any]:
        return from_messages(row[column], row.get("system")) | _given(row)

    return read


def _text(row: Row, column: str) -> str:
    value = row.get(column, "")
    if not isinstance(value, str):
        raise InputError(f"{column} ({value!r}) must be a text")
    return value


_WORKED = ("problem", "answer", "solution", "split")
_MARKS = ("question_type", "problem_is_valid")

FORMS = (
    *(
        Form(
            name="multiple choice",
            known_by=("question", choices),
            uses=(*OWN_COLUMNS, "subject", "category", "answerkey", "answer_index", choices),
            read=_choice,
        )
        for choices in ("choices", "options")
    ),
    Form(
        name="s1K",
        known_by=("question", "solution", "cot_type"),
        uses=("question", "solution", "cot_type", "split"),
        read=_s1k,
    ),
    Form(name="GSM8K", known_by=("question", "answer"), uses=OWN_COLUMNS, read=_gsm8k, fits=_ends_in_hashes),
    Form(name="question and answer", known_by=("question", "answer"), uses=OWN_COLUMNS, read=_own),
    Form(
        name="OpenR1-Math",
        known_by=("problem", "solution", "generations"),
        uses=(*_WORKED, *_MARKS, "problem_type", "source"),
        read=_worked("openr1-math", "problem_type", "source"),
    ),
    Form(
        name="MATH",
        known_by=("problem", "solution", "level"),
        uses=(*_WORKED, "subject", "type"),
        read=_worked("math", "subject", "type"),
    ),
    Form(
        name="NuminaMath",
        known_by=("problem", "solution", "source"),
        uses=(*_WORKED, *_MARKS, "source"),
        read=_worked("numina-math", "source"),
    ),
    Form(name="AIME", known_by=("problem", "answer"), uses=_WORKED, read=_aime, fits=_is_aime),
    Form(name="problem and answer", known_by=("problem", "answer"), uses=(*_WORKED, *_MARKS), read=_worked("user")),
    Form(name="problem and solution", known_by=("problem", "solution"), uses=(*_WORKED, *_MARKS), read=_worked("user")),
    Form(
        name="Alpaca",
        known_by=("instruction", "output"),
        uses=("instruction", "input", "output", "system", "split"),
        read=_alpaca,
    ),
    Form(
        name="ShareGPT",
        known_by=("conversations",),
        uses=("conversations", "system", "split"),
        read=_messages("conversations"),
    ),
    Form(name="messages", known_by=("messages",), uses=("messages", "system", "split"), read=_messages("messages")),
)
"""Tried in this order: a form with more identifying columns comes before one that shares some of them."""
