"""Trains a student on what a teacher says of each token: of the teacher's turns, or of those that the student writes.

    prompts ─ Writer ─> the student's turns ─┐
    examples ────────> the teacher's turns ──┴─ Grader ─> events ─ padding-free rows ─> divergence (+ cross entropy)

This is `distill.training.train.StudentTrainer` (padding-free rows, the head on tokens of the turn alone, bf16 weights
with fp32 masters) with another loss, so that checkpoints, resuming, the journal and LoRA are the same. TRL's stable
`DistillationTrainer` (1.16) has the same loss, with which a test compares it, and serves one vocabulary and a local
teacher alone. On a CPU its update takes about twice as long (docs/explanation/logits.md), and its experimental trainers
for other tokenizers and servers change between releases; so this is the one path here.
"""

# Shapes: N tokens of a padding-free row, R rows of logits (tokens of turns), P graded positions.

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from distill.local.decoding_view import NotFinite
from distill.logits.grading.graded_loss import Graded, graded_loss
from distill.logits.grading.teacher_events import joined
from distill.logits.grading.turns import Grader, Grades, StudentTurn
from distill.logits.logits_config import LogitsConfig
from distill.logits.rollouts import Writer
from distill.logits.vocabularies.bridge import Bridge
from distill.training.completion_loss import IGNORED, LossForward, labelled
from distill.training.document_attention import Documents
from distill.training.journal import diverged
from distill.training.packed_rows import collate, packed
from distill.training.student import causal_lm_of
from distill.training.train import StudentTrainer
from distill.training.train_config import TrainConfig
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.records import Example

MOST_UNGRADED = 3
"""Updates without a graded token after which a run is given up: it would learn nothing of the teacher."""


def teachers_turns(examples: Sequence[Example], chat_format: ChatFormat, sources: Sequence[str]) -> list[StudentTurn]:
    """Return the teacher's answers as turns of the student; `sources`: see `StudentTurn`."""
    turns = []
    for example, source in zip(examples, sources, strict=True):
        ids, is_completion = chat_format.training_ids(example.messages, example.reasoning, example.answer)
        begin = is_completion.index(True)
        turns.append(
            StudentTurn(
                messages=example.messages,
                prompt=ids[:begin],
                completion=ids[begin:],
                is_teachers=True,
                source=source,
            )
        )
    return turns


def rows_of(
    turns: Sequence[StudentTurn],
    grades: Sequence[Grades | None],
    config: LogitsConfig,
    beta: float,
    row_tokens: int,
    *,
    shares: bool,
) -> list[dict[str, Any]]:
    """Collate turns and their grades into padding-free rows of at most so many tokens; `shares`: see `collate`."""
    rows = packed([len(turn.prompt) + len(turn.completion) for turn in turns], row_tokens)
    return [_row([turns[n] for n in row], [grades[n] for n in row], config, beta, shares) for row in rows]


def _row(
    turns: Sequence[StudentTurn], grades: Sequence[Grades | None], config: LogitsConfig, beta: float, shares: bool
) -> dict[str, Any]:
    examples = [
        labelled([*turn.prompt, *turn.completion], [False] * len(turn.prompt) + [True] * len(turn.completion))
        for turn in turns
    ]
    batch = collate(examples, shares=shares)
    begins = [0]
    for turn in turns:
        begins.append(begins[-1] + len(turn.completion))
    position_R = torch.full((begins[-1],), -1)
    weight_R = torch.cat([torch.full((len(t.completion),), config.weight if t.is_teachers else 1.0) for t in turns])
    known = [(begin, grade) for begin, grade in zip(begins, grades, strict=False) if grade is not None]
    graded = None
    if known:
        start_P = torch.cat([begin + grade.facts.start_P for begin, grade in known])
        length_P = torch.cat([grade.facts.length_P for _, grade in known])
        for position, (start, length) in enumerate(zip(start_P.tolist(), length_P.tolist(), strict=True)):
            position_R[start : start + length] = position
        graded = Graded(
            ids_R=torch.tensor([id for turn in turns for id in turn.completion]),
            position_R=position_R,
            start_P=start_P,
            is_span_P=torch.cat([grade.facts.is_span_P for _, grade in known]),
            merged_P=torch.cat([grade.facts.merged_P for _, grade in known]),
            teacher=joined([grade.events for _, grade in known]),
            divergence_P=weight_R[start_P],
            cross_entropy_R=torch.cat(
                [torch.full((len(t.completion),), 1.0 - config.weight if t.is_teachers else 0.0) for t in turns]
            ),
            beta=beta,
            temperature=config.temperature,
        )
    return {**batch, "graded": graded, "is_teachers": all(turn.is_teachers for turn in turns)}


def _learned(row: Mapping[str, Any]) -> Tensor:
    """Return labels by which the trainer counts the tokens of a row that are learned from; the first counts for none.

    A turn that nobody graded is learned from if the teacher wrote it.
    """
    labels_N: Tensor = row["labels"][0].clone()
    graded = row["graded"]
    if graded is not None:
        predicted = (labels_N != IGNORED).nonzero()[:, 0]
        labels_N[predicted[(graded.position_R < 0) & (graded.cross_entropy_R == 0)]] = IGNORED
    elif not row["is_teachers"]:
        labels_N[:] = IGNORED
    return labels_N


class LogitsTrainer(StudentTrainer):
    """A `StudentTrainer` whose loss is a divergence from a teacher."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        config: TrainConfig,
        *,
        logits: LogitsConfig,
        grader: Grader,
        examples: Sequence[Example],
        sources: Sequence[str],
        chat_format: ChatFormat,
        **kwargs: Any,
    ) -> None:
        self._logits, self._grader, self._examples = logits, grader, examples
        self._turns = teachers_turns(examples, chat_format, sources)
        rows = [{"index": n, "input_ids": [*turn.prompt, *turn.completion]} for n, turn in enumerate(self._turns)]
        self.writes = logits.source == "on_policy"
        """Whether the student writes what it learns from."""
        self._ungraded = 0
        """Updates since the last one of which a token was graded."""
        if self.writes:
            arguments = kwargs["args"]
            arguments.max_steps, arguments.per_device_train_batch_size = logits.updates, logits.rollouts
            arguments.gradient_accumulation_steps = 1
        super().__init__(model, config, **kwargs | {"train_dataset": Dataset.from_list(rows)})
        self.data_collator = _indices
        causal_lm = causal_lm_of(model)
        causal_lm.forward = _GradedForward(causal_lm, grader.bridge, 0.0 if self.writes else config.neftune_noise)
        tokens = grader.bridge.student_rows
        self._writer = Writer(causal_lm, chat_format, logits, tokens=tokens, seed=config.seed) if self.writes else None

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Make the batches of an update, and count the tokens by which its loss is divided."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = [self._batch(sample["indices"], number) for number, sample in enumerate(samples)]
        learned = self._get_num_items_in_batch(batches, device)
        return batches, learned.clamp(min=1) if torch.is_tensor(learned) else max(learned or 1, 1)

    def _batch(self, indices: Sequence[int], number: int) -> dict[str, Any]:
        progress = self.state.global_step / max(self.state.max_steps - 1, 1)
        turns = [self._turns[index] for index in indices]
        if self._writer:
            examples = [self._examples[index] for index in indices]
            salt = self.state.global_step * self.args.gradient_accumulation_steps + number
            try:
                turns = self._writer.write(examples, salt, self._logits.tokens_at(progress))
            except NotFinite as error:
                raise diverged("student's logit", self.state.global_step + 1, math.nan, self.args) from error
            self.state.num_input_tokens_seen += sum(len(turn.prompt) + len(turn.completion) for turn in turns)
        grades = self._grader.grade(turns)
        written = sum(len(turn.completion) for turn in turns)
        graded = sum(int(grade.facts.length_P.sum()) for grade in grades if grade is not None)
        metrics = self._metrics["train"]
        metrics["graded"].append(graded / max(written, 1))
        self._ungraded = 0 if graded or self._logits.source == "stored" else self._ungraded + 1
        if self._ungraded == MOST_UNGRADED:
            raise InputError(
                f"the teacher graded no token of {MOST_UNGRADED} updates in a row: its tokens cannot write these "
                "turns, or they exceed its context; choose another teacher, or learn from its texts alone"
            )
        metrics["completions/mean_length"].append(written / len(turns))
        beta = self._logits.beta_at(progress)
        rows = rows_of(turns, grades, self._logits, beta, self._config.row_tokens, shares=self.shares)
        return {"rows": rows, "labels": torch.cat([_learned(row) for row in rows])[None]}


class _GradedForward(LossForward):
    """The forward of a causal language model in training: returns the summed loss of a padding-free batch."""

    def __init__(self, causal_lm: Any, bridge: Bridge, noise: float) -> None:
        super().__init__(causal_lm, noise)
        self._bridge = bridge

    def __call__(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        documents: Documents,
        graded: Graded | None = None,
        is_teachers: bool = True,
    ) -> Tensor:
        if graded is None:
            loss = super().__call__(input_ids, labels, position_ids, documents)
            return loss if is_teachers else loss * 0.0
        predicting_R = (labels[0, 1:] != IGNORED).nonzero().squeeze(1)
        hidden_RD = self.hidden(input_ids, position_ids, documents).index_select(0, predicting_R)
        device = hidden_RD.device
        class_V = None if self._bridge.is_identity else self._bridge.student_class_V.to(device)
        weight_VD = self._head.weight[: self._bridge.student_rows]
        learned, _ = graded_loss(hidden_RD, weight_VD, class_V, self._bridge.classes, graded.to(device))
        return learned


def _indices(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Make of a batch of the dataset what its turns are made of."""
    return {"indices": [row["index"] for row in rows]}
