"""Reads a student's own traces as token ids: some to calibrate on, the others to check against.

Invariant: no question is on both sides, and the same file gives the same texts on every run.

Shapes: B texts of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.records import Example, content_hash, read_records
from toolkit.terminal import say

HELD_OUT_SHARE = 1 / 8
HELD_OUT_TOKENS = 3000
"""Completion tokens to check against: enough for some thirty values above the 99th percentile."""


@dataclass(frozen=True, kw_only=True)
class CalibrationText:
    """A conversation of one turn, tokenized as in training."""

    prompt: list[int]
    completion: list[int]

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.completion


@dataclass(frozen=True, kw_only=True)
class CalibrationTexts:
    """The texts of a traces file on both sides."""

    calibration: list[CalibrationText]
    further: list[CalibrationText]
    """Texts to train on that the calibration does not read."""
    held_out: list[CalibrationText]

    @property
    def for_recovery(self) -> list[CalibrationText]:
        """The further texts; the calibration's if there are none."""
        return self.further or self.calibration


def batches_by_length(texts: Sequence[Sequence[int]], tokens: int) -> Iterator[list[Sequence[int]]]:
    """Group texts of similar lengths into batches of at most so many padded tokens; a longer text is alone."""
    batch: list[Sequence[int]] = []
    for text in sorted(texts, key=len):
        if batch and len(text) * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def padded(texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return ids_BT, padded on the right, where causal attention ignores it, and mask_BT, true on real tokens."""
    ids_BT = pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
    return ids_BT, torch.arange(ids_BT.shape[1]) < torch.tensor([len(text) for text in texts])[:, None]


def shared_lengths(texts: Sequence[Sequence[int]]) -> list[int]:
    """Count how many tokens at the beginning of each text are also the beginning of an earlier one."""
    nodes: dict[tuple[int, int], int] = {}
    lengths = []
    for text in texts:
        node, shared = 0, 0
        for token in text:
            shared += (node, token) in nodes
            node = nodes.setdefault((node, token), len(nodes) + 1)
        lengths.append(shared)
    return lengths


def read_texts(
    path: Path, chat_format: ChatFormat, *, tokens: int, max_length: int, further_tokens: int = 0
) -> CalibrationTexts:
    """Read `Example` lines; `tokens` limits the calibration side, `further_tokens` what is trained on after it.

    Raises `InputError` if a line is no example, or if one of the sides would be empty.
    """
    calibration: list[CalibrationText] = []
    held_out: list[CalibrationText] = []
    further: list[CalibrationText] = []
    room, further_room, held_out_room, too_long = tokens, further_tokens, HELD_OUT_TOKENS, 0
    try:
        examples = read_records(path, Example)
    except InputError as error:
        raise InputError(f"{error}; calibrate on examples, such as the train.jsonl beside a student") from error
    fitting: list[tuple[str, CalibrationText]] = []
    for example in sorted(examples, key=lambda e: (content_hash(e.problem_id + e.question), e.sample)):
        ids, is_completion = chat_format.training_ids(example.messages, example.reasoning, example.answer)
        if len(ids) > max_length:
            too_long += 1
            continue
        start = is_completion.index(True)
        fitting.append((example.question, CalibrationText(prompt=ids[:start], completion=ids[start:])))
    held_out_questions = questions_held_out({question for question, _ in fitting})
    for question, text in fitting:
        if question in held_out_questions:
            if held_out_room > 0:
                held_out.append(text)
                held_out_room -= len(text.completion)
        elif room > 0:
            calibration.append(text)
            room -= len(text.ids)
        elif further_room > 0:
            further.append(text)
            further_room -= len(text.ids)
    if not calibration or not held_out:
        longer = f"; {too_long} are longer than the context of {max_length} tokens" if too_long else ""
        raise InputError(
            f"{path} has too few examples to calibrate on ({len(calibration)}) and to check against ({len(held_out)}"
            f"{longer}); give some dozens with --calibration, such as the train.jsonl of a larger run, "
            "or take --quick, which needs none"
        )
    if too_long:
        say(f"export: {too_long} examples of {path} are longer than the context ({max_length} tokens) and left out")
    return CalibrationTexts(calibration=calibration, further=further, held_out=held_out)


def questions_held_out(questions: set[str]) -> set[str]:
    """Choose the questions to check against: those with the smallest hashes, and at least one of several."""
    hashes = {question: int(content_hash(question), 16) for question in questions}
    below = {question for question, number in hashes.items() if number < HELD_OUT_SHARE * 2**64}
    return below or set(sorted(hashes, key=lambda question: hashes[question])[: min(1, len(hashes) - 1)])
