"""Supervised fine-tuning of a student on examples, by TRL's `SFTTrainer` made fast on short chains of thought.

    examples ─ ChatFormat.training_ids ─> token ids, labels ─> padding-free batches ─> student, in bf16 if the machine
    computes in it, with fp32 masters of its weights in the optimizer

Differences from the trainer's defaults, measured by `benchmarks.training.student_speed`
(docs/explanation/training-speed.md): freed memory stays in the process, batches have no padding, attention runs
document by document, the head sees only completion tokens, no entropy or accuracy over the vocabulary, no autocast, no
gradient checkpointing. The loss is the same.

During training the folder gets `loss.jsonl` (step, loss, learning_rate, tokens …), at the end the weights, the
tokenizer and the reasoning template. `checkpoints/` lets an interrupted run resume; whoever saves the folder removes it
(`toolkit.runs.finish`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import constants
from peft import PeftModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import AutoTokenizer, PreTrainedModel
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from distill.problems.splits import spread
from distill.training.completion_loss import IGNORED, labelled, summed_loss
from distill.training.document_attention import Documents
from distill.training.journal import CHECKPOINTS, VALIDATION_LOSS, diverged, journaled, run_trainer
from distill.training.master_adamw import MasterAdamW
from distill.training.schedule import cosine_schedule
from distill.training.student import (
    add_adapters,
    count_changed,
    load_student,
    save_student,
    saved_digests,
    write_student_format,
)
from distill.training.validation import ENOUGH, Batch, Validation
from distill.training.validation import EXAMPLES as VALIDATION_EXAMPLES
from toolkit.formats.chat_format import TURN_END, ChatFormat
from toolkit.machine.allocator import keep_freed_memory
from toolkit.records import Example

ROW_TOKENS = 8192
"""Most tokens of a batch in one pass through the student: sixteen examples of 512."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The recipe of a training run."""

    learning_rate: float
    epochs: int
    batch_examples: int
    accumulation_steps: int
    """Batches whose gradients make one update."""
    warmup_share: float
    """Share of the updates that warm up; then the learning rate decays by a cosine, towards zero."""
    weight_decay: float
    beta1: float
    beta2: float
    max_grad_norm: float
    lora_rank: int
    """0 trains all weights."""
    log_every: int
    checkpoint_every_s: float
    seed: int


def tokenize(examples: Sequence[Example], chat_format: ChatFormat) -> Dataset:
    """Turn each example into token ids, with labels on its completion."""
    return Dataset.from_list(
        [labelled(*chat_format.training_ids(each.messages, each.reasoning, each.answer)) for each in examples]
    )


def collate(rows: Sequence[Mapping[str, list[int]]]) -> Batch:
    """Join documents into one padding-free row, with positions from 0 in each."""
    lengths = [len(row["input_ids"]) for row in rows]
    # nothing predicts a document's first token; as part of the prompt it is not in the loss
    assert all(row["labels"][0] == IGNORED for row in rows)
    return {
        "input_ids": torch.tensor([[id for row in rows for id in row["input_ids"]]]),
        "labels": torch.tensor([[label for row in rows for label in row["labels"]]]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "documents": Documents(lengths),
    }


def within(examples: Sequence[Mapping[str, list[int]]], tokens: int) -> list[Batch]:
    """Collate padding-free rows of at most `tokens` tokens, or of a single longer example."""
    rows: list[list[Mapping[str, list[int]]]] = []
    used = tokens
    for example in examples:
        length = len(example["input_ids"])
        if used + length > tokens:
            rows.append([])
            used = 0
        rows[-1].append(example)
        used += length
    return [collate(row) for row in rows]


def batch_of(examples: Sequence[Mapping[str, list[int]]]) -> Batch:
    """Make the batch of an update: its rows, and all labels together, by which the trainer counts trained tokens."""
    rows = within(examples, ROW_TOKENS)
    return {"rows": rows, "labels": torch.cat([row["labels"] for row in rows], dim=1)}


class StudentTrainer(SFTTrainer):
    """`SFTTrainer` whose model computes the loss itself, from completion tokens alone."""

    writes = False
    """Whether the student writes what it learns from, so that nobody knows before how many tokens that will be."""

    def __init__(self, model: PreTrainedModel | PeftModel, config: TrainConfig, **kwargs: Any) -> None:
        # TRL reports each new trainer; the environment variable of this name was read at import
        constants.HF_HUB_DISABLE_TELEMETRY = True
        super().__init__(model=model, data_collator=batch_of, **kwargs)
        self._config = config
        self.validation: Validation | None = None
        causal_lm: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        # replaces the causal model's forward, so that wrappers (DistributedDataParallel) still see the call
        causal_lm.forward = _LossForward(causal_lm)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make `MasterAdamW` over the trained weights; those of norms do not decay."""
        assert self.model is not None
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [parameter for parameter in trained if parameter.dim() >= 2]},
            {"params": [parameter for parameter in trained if parameter.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = MasterAdamW(
            groups,
            lr=self._config.learning_rate,
            betas=(self._config.beta1, self._config.beta2),
            weight_decay=self._config.weight_decay,
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Make our schedule, whose first and last rates are above 0."""
        assert self.optimizer is not None
        warmup = math.ceil(self._config.warmup_share * num_training_steps)
        schedule = cosine_schedule(optimizer or self.optimizer, updates=num_training_steps, warmup=warmup)
        self.lr_scheduler: LRScheduler | None = schedule
        return schedule

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Train on a batch row by row, with the memory of one row; return the batch's loss.

        Raises `InputError` if the loss is not a finite number.
        """
        loss = torch.stack(
            [super(StudentTrainer, self).training_step(model, row, num_items_in_batch) for row in inputs["rows"]]
        )
        total = loss.sum()
        if not torch.isfinite(total):
            raise diverged("loss", self.state.global_step + 1, float(total))
        return total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the validation loss, if it was measured after this very update."""
        if (
            self.validation
            and self.validation.loss is not None
            and self.validation.measured_at == self.state.global_step
        ):
            logs = logs | {VALIDATION_LOSS: self.validation.loss}
        super().log(logs, start_time)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the mean loss over the trained tokens of all batches and processes of an update."""
        assert not return_outputs and num_items_in_batch is not None
        loss: Tensor = model(**inputs) * (self.accelerator.num_processes / num_items_in_batch)
        return loss

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no card into checkpoints, which are removed when the run ends."""


class _LossForward:
    """The forward of a causal language model in training: returns the summed loss of a padding-free batch."""

    def __init__(self, causal_lm: Any) -> None:
        self._base: nn.Module = causal_lm.base_model
        self._head: nn.Linear = causal_lm.get_output_embeddings()

    def __call__(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor, documents: Documents) -> Tensor:
        on_cpu = {"documents": documents} if input_ids.device.type == "cpu" else {}  # elsewhere positions are enough
        hidden_1ND = self._base(input_ids=input_ids, position_ids=position_ids, use_cache=False, **on_cpu)[0]
        return summed_loss(hidden_1ND[0], self._head.weight, labels[0])


def trainer_arguments(config: TrainConfig, folder: Path) -> SFTConfig:
    """Translate our recipe into the trainer's arguments."""
    # transformers 5.23 warns about the old name of TRL's own default
    warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated", category=FutureWarning)
    return SFTConfig(
        **journaled(folder, config.seed),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_examples,
        gradient_accumulation_steps=config.accumulation_steps,
        learning_rate=config.learning_rate,
        max_grad_norm=config.max_grad_norm,
        data_seed=config.seed,
        logging_steps=config.log_every,
        logging_first_step=True,  # a run may be shorter than that
        logging_nan_inf_filter=False,
        bf16=False,  # the weights themselves are bf16: nothing to cast
        gradient_checkpointing=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def train(
    student: Path,
    examples: Sequence[Example],
    config: TrainConfig,
    folder: Path,
    validation: Sequence[Example] = (),
    make_trainer: Callable[..., StudentTrainer] = StudentTrainer,
) -> dict[str, Any]:
    """Train the student on the examples and save it in `folder`, resuming from the folder's last checkpoint.

    `validation`: held-out examples (`distill.training.validation`). `make_trainer`: makes the trainer, which may have
    another loss. Returns the tokens of all epochs, the seconds of
    this call, the first and the last logged loss, which update's student was chosen and why, and how many of its
    tensors changed. Raises `KeyboardInterrupt` after writing a checkpoint if it was interrupted, and `InputError` if
    the loss or a weight is not finite or nothing changed; checkpoints stay then.
    """
    keep_freed_memory()
    torch.manual_seed(config.seed)
    chat_format = write_student_format(student, folder)
    dataset = tokenize(examples, chat_format)
    tokens = sum(len(ids) for ids in dataset["input_ids"])
    plain = load_student(student, chat_format.encode(TURN_END)[0])
    before = saved_digests(plain)
    model = add_adapters(plain, config.lora_rank, config.seed) if config.lora_rank else plain
    trainer = make_trainer(
        model,
        config,
        args=trainer_arguments(config, folder),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(folder, local_files_only=True),
    )
    if validation:
        trainer.validation = _validation(validation, chat_format, folder)
        trainer.add_callback(trainer.validation)
    tokens = 0 if trainer.writes else tokens * config.epochs
    measured = run_trainer(trainer, folder, tokens=tokens, checkpoint_every_s=config.checkpoint_every_s)
    measured |= _choose_best(trainer.validation, model, trainer.args.device, len(validation))
    saved = save_student(model, folder)
    changed = count_changed(before, saved_digests(saved))
    return {"chosen_update": measured["updates"]} | measured | {"tensors": len(before), "changed_tensors": changed}


def _validation(examples: Sequence[Example], chat_format: ChatFormat, folder: Path) -> Validation:
    chosen = [examples[i] for i in spread(len(examples), VALIDATION_EXAMPLES)]
    rows = list(tokenize(chosen, chat_format))
    return Validation(lambda: within(rows, ROW_TOKENS), len(rows), folder / CHECKPOINTS)


def _choose_best(
    validation: Validation | None, model: PreTrainedModel | PeftModel, device: torch.device, examples: int
) -> dict[str, Any]:
    """Restore the model with the lowest validation loss; return which update's it is, and why it was chosen."""
    if validation is None:
        return {"chosen_by": "the last, since there is no trace of the validation split to choose by"}
    if validation.loss is None:  # the last update was made before an interrupt
        validation.loss = validation.measure(model, device)
    best = validation.restore_best(model)
    if best is None:
        few = f"the last, since a choice by the validation loss needs {ENOUGH} traces of that split, not {examples}"
        return {
            VALIDATION_LOSS: validation.loss,
            "chosen_by": "the lowest validation loss, which is the last" if examples >= ENOUGH else few,
        }
    loss, update = best
    return {VALIDATION_LOSS: loss, "chosen_update": update, "chosen_by": "the lowest validation loss"}
