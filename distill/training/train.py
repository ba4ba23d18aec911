"""Supervised fine-tuning of a student on examples, by TRL's `SFTTrainer` made fast on short chains of thought.

    examples ─ ChatFormat.training_ids ─> token ids, labels ─> padding-free batches ─> student, in bf16 if the machine
    computes in it, with fp32 masters of its weights in the optimizer

Differences from the trainer's defaults, measured by `benchmarks.training.student_speed`
(docs/explanation/training-speed.md): freed memory stays in the process, batches have no padding, attention runs
document by document, the head sees only completion tokens, no entropy or accuracy over the vocabulary, no autocast,
gradient checkpointing only where it is asked for. The loss is the same.

If several processes train together (`distill.launching`), each takes its part of every batch, so that an update is the
one that a single process makes; the first one writes the folder, and the others read it.

During training the folder gets `loss.jsonl` (step, loss, learning_rate, tokens …), at the end the weights, the
tokenizer and the template of a student that reasons. `checkpoints/` lets an interrupted run resume; whoever saves the
folder removes it (`toolkit.runs.finish`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import constants
from peft import PeftModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from distill.problems.splits import spread
from distill.tracking.trackers import EventWriter, check_trackers, let_go, reported_to
from distill.training.completion_loss import LossForward, labelled
from distill.training.interrupts import WholeCheckpoints
from distill.training.journal import (
    CHECKPOINTS,
    LOSS,
    VALIDATION_LOSS,
    check_shards,
    diverged,
    journaled,
    of_the_first,
    run_trainer,
)
from distill.training.optimizers.choice import check_optimizer, make_optimizer
from distill.training.optimizers.schedule import Course
from distill.training.packed_rows import batch_of, shares_beginnings, undivided, within
from distill.training.quantized_base import check_quantization
from distill.training.student import (
    KeepsTypes,
    add_adapters,
    causal_lm_of,
    count_changed,
    load_student,
    save_student,
    saved_digests,
    types_of,
)
from distill.training.train_config import TrainConfig
from distill.training.validation import Batch, Validation, choose_best
from toolkit.formats.chat_format import ChatFormat
from toolkit.machine.allocator import give_freed_memory_back, keep_freed_memory
from toolkit.records import Example
from toolkit.runs import given_name
from toolkit.terminal import counted, say
from toolkit.voice.student_format import write_student_format


def tokenize(examples: Sequence[Example], chat_format: ChatFormat, loss_on: str = "completions") -> Dataset:
    """Turn each example into token ids, with labels on its completion, or on all of it."""
    rows = [chat_format.training_ids(each.messages, each.reasoning, each.answer) for each in examples]
    if loss_on == "all":
        rows = [(ids, [False] + [True] * (len(ids) - 1)) for ids, _ in rows]
    return Dataset.from_list([labelled(*row) for row in rows])


class Deadline(TrainerCallback):
    """Ends training with the last update that is expected to fit a time: it says after each how many there will be.

    Saving and validating count as time, but not as an update's. The first process' clock holds for all. It must be
    called before the callbacks that treat the last update in another way.
    """

    def __init__(self, minutes: float) -> None:
        self._limit_s = 60 * minutes

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._schedule: LambdaLR = kwargs["lr_scheduler"]
        self._nominal = state.max_steps
        self._ended_at = self._resumed_at = monotonic()
        self._is_first = True

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.max_steps = self._course.updates  # only now: the journal reads the trainer's own number before

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._resumed_at = monotonic()

    on_save = on_log

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        course, now = self._course, monotonic()
        passed_s, update_s = of_the_first((now - self._ended_at, now - self._resumed_at))
        self._ended_at = self._resumed_at = now
        course.passed_s += passed_s
        if not self._is_first:  # which is slower than the others
            course.updating_s, course.timed = course.updating_s + update_s, course.timed + 1
            update_s = course.updating_s / course.timed
        self._is_first = False
        left = int((self._limit_s - course.passed_s) / update_s) if state.global_step < state.max_steps else 0
        course.updates = state.max_steps = min(state.global_step + max(left, 0), self._nominal)
        if state.global_step == state.max_steps < self._nominal:
            control.should_training_stop = True
            if state.is_world_process_zero:
                updates = counted(state.global_step, "update")
                say(f"train: train.max_minutes ({self._limit_s / 60:g}) ends it after {updates}")
        self._schedule._last_lr = [rate * course(state.global_step) for rate in self._schedule.base_lrs]
        for group, rate in zip(self._schedule.optimizer.param_groups, self._schedule._last_lr, strict=True):
            group["lr"] = rate

    @property
    def _course(self) -> Course:
        course = self._schedule.lr_lambdas[0]
        assert isinstance(course, Course)
        return course


class StudentTrainer(KeepsTypes, WholeCheckpoints, SFTTrainer):
    """`SFTTrainer` whose model computes the loss itself, from completion tokens alone."""

    writes = False
    """Whether the student writes what it learns from, so that nobody knows before how many tokens that will be."""

    def __init__(self, model: PreTrainedModel | PeftModel, config: TrainConfig, **kwargs: Any) -> None:
        # TRL reports each new trainer; the environment variable of this name was read at import
        constants.HF_HUB_DISABLE_TELEMETRY = True
        division = {"rank": kwargs["args"].process_index, "processes": kwargs["args"].world_size}
        causal_lm = causal_lm_of(model)
        self.shares = shares_beginnings(causal_lm, config)
        """Whether what examples begin with is computed once for all of them in a row."""
        collator = partial(batch_of, row_tokens=config.row_tokens, shares=self.shares, **division)
        types = types_of(model)
        super().__init__(model=model, data_collator=collator, **kwargs)
        if config.max_minutes:
            self.add_callback(Deadline(config.max_minutes))
        self.keep_types(types)
        self._config = config
        self.validation: Validation | None = None
        self._tokens = self._computed = 0
        # replaces the causal model's forward, so that wrappers (DistributedDataParallel) still see the call
        causal_lm.forward = LossForward(causal_lm, noise=config.neftune_noise, smoothing=config.label_smoothing)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return batches for all processes, which `batch_of` divides."""
        loader = super().get_train_dataloader()
        return undivided(loader) if self.args.world_size > 1 else loader

    def whole_model(self, load: Callable[[], PreTrainedModel | PeftModel]) -> PreTrainedModel | PeftModel | None:
        """Return the trained model in the first process, and None in the others. `load` loads the one to train anew."""
        return self.model if self.is_world_process_zero() else None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the recipe's optimizer."""
        self.optimizer = make_optimizer(self.model, learning_rate=self._config.learning_rate, **self._config.updating)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Make our schedule, whose first and last rates are above 0."""
        assert self.optimizer is not None
        config = self._config
        course = Course(
            num_training_steps,
            config.warmup_share,
            config.warmup_steps,
            config.min_lr_share,
            config.schedule,
            config.decay_share,
        )
        schedule = LambdaLR(optimizer or self.optimizer, course)
        self.lr_scheduler: LRScheduler | None = schedule
        return schedule

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Train on a batch row by row, with the memory of one row; return the batch's loss.

        Raises `InputError` if the loss is not a finite number.
        """
        self._tokens += sum(row["labels"].numel() for row in inputs["rows"])
        self._computed += sum(row["input_ids"].numel() for row in inputs["rows"])
        loss = torch.stack(
            [super(StudentTrainer, self).training_step(model, row, num_items_in_batch) for row in inputs["rows"]]
        )
        total = loss.sum()
        if not torch.isfinite(total):
            raise diverged("loss", self.state.global_step + 1, float(total), self.args)
        return total

    def computed_share(self) -> float:
        """Return the share of the tokens so far that was computed; the rest was computed for another example."""
        return self._computed / self._tokens if self._tokens else 1.0

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        check_shards(Path(resume_from_checkpoint), sharded=False)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

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


def recorded_as(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Return the arguments of a trainer of a student, whose recipe says what is kept and where it is watched."""
    # transformers 5.23 warns about the old name of TRL's own default
    for name in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
        warnings.filterwarnings("ignore", message=f"`{name}` is deprecated", category=FutureWarning)
    return journaled(folder, config.seed) | {
        "save_total_limit": config.checkpoints_kept,
        "report_to": reported_to(config.trackers, folder),
        "project": "toolkit",
        "run_name": given_name(folder).name,
        "logging_nan_inf_filter": False,
    }


def trainer_arguments(config: TrainConfig, folder: Path) -> SFTConfig:
    """Translate our recipe into the trainer's arguments."""
    arguments = SFTConfig(
        **recorded_as(config, folder),
        num_train_epochs=config.epochs,
        max_steps=config.max_updates or -1,
        per_device_train_batch_size=config.batch_examples,
        gradient_accumulation_steps=config.accumulation_steps,
        learning_rate=config.learning_rate,
        max_grad_norm=config.max_grad_norm,
        data_seed=config.seed,
        logging_steps=config.log_every,
        logging_first_step=True,  # a run may be shorter than that
        bf16=False,  # the weights themselves are bf16: nothing to cast
        gradient_checkpointing=config.gradient_checkpointing,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs of one process would be torch's DataParallel
    return arguments


def check_recipe(config: TrainConfig) -> None:
    """Raise `InputError` if values of a recipe exclude each other, or if this machine cannot train so."""
    check_quantization(config.quantization)
    check_optimizer(config.optimizer)
    check_trackers(config.trackers)


def train(
    student: Path,
    examples: Sequence[Example],
    config: TrainConfig,
    folder: Path,
    validation: Sequence[Example] = (),
    *,
    make_trainer: Callable[..., StudentTrainer] = StudentTrainer,
) -> dict[str, Any]:
    """Train the student on the examples and save it in `folder`, resuming from the folder's last checkpoint.

    `validation`: held-out examples (`distill.training.validation`). `make_trainer`: makes the trainer, which may have
    another loss. Returns the tokens of all epochs, the seconds of
    this call, the first and the last logged loss, which update's student was chosen and why, and how many of its
    tensors changed. If several processes train together, each calls this, and the figures of changed tensors are the
    first one's. Raises `KeyboardInterrupt` after writing a checkpoint if it was interrupted, and `InputError` if the
    loss or a weight is not finite or nothing changed; checkpoints stay then.
    """
    keep_freed_memory()
    torch.manual_seed(config.seed)
    arguments = trainer_arguments(config, folder)
    first, alone = arguments.process_index == 0, arguments.world_size == 1
    chat_format = write_student_format(student, folder) if alone else ChatFormat.from_folder(folder)
    dataset = tokenize(examples, chat_format, config.loss_on)

    def load() -> PreTrainedModel:
        return load_student(student, chat_format, config.quantization, context_tokens=config.context_tokens)

    plain = load()
    before = saved_digests(plain) if first else {}
    model = _to_train(plain, config)
    give_freed_memory_back()  # of loading
    trainer = make_trainer(
        model,
        config,
        args=arguments,
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(folder, local_files_only=True),
    )
    if validation:
        trainer.validation = _validation(validation, chat_format, config, folder, shares=trainer.shares)
        trainer.add_callback(trainer.validation)
    tokens = 0 if trainer.writes else _tokens_of_run(dataset, config)
    measured = run_recorded(trainer, config, folder, tokens=tokens, computed_share=trainer.computed_share)
    measured |= choose_best(trainer.validation, model, trainer.args.device, len(validation))
    measured = {"chosen_update": measured["updates"]} | measured
    give_freed_memory_back()  # merging and saving take other sizes
    whole = trainer.whole_model(lambda: _to_train(load(), config))
    if whole is None:
        return measured
    saved = save_student(whole, folder, student, apart=config.lora_kept_apart)
    changed = count_changed(before, saved_digests(saved))
    return measured | {"tensors": len(before), "changed_tensors": changed}


def run_recorded(trainer: Trainer, config: TrainConfig, folder: Path, **counted: Any) -> dict[str, Any]:
    """Train a student to the end, as `run_trainer` does, with the checkpoints and the trackers of its recipe.

    `counted`: what `run_trainer` is told of tokens.
    """
    measured = run_trainer(
        trainer,
        folder,
        **counted,
        checkpoint_every_s=config.checkpoint_every_s,
        checkpoint_every_updates=config.checkpoint_every_updates,
        by_clock=config.max_minutes > 0,
        trackers=[EventWriter(folder / LOSS)] if "tensorboard" in config.trackers else [],
    )
    let_go(config.trackers)
    return measured


Train = Callable[[Path, Sequence[Example], TrainConfig, Path, Sequence[Example]], dict[str, Any]]
"""`train`, or what does the same in several processes."""


def _to_train(plain: PreTrainedModel, config: TrainConfig) -> PreTrainedModel | PeftModel:
    return add_adapters(plain, config) if config.lora_rank else plain


def _tokens_of_run(dataset: Dataset, config: TrainConfig) -> int:
    """Return the tokens of all updates; those of a run of `max_updates` are estimated from a whole epoch."""
    tokens = sum(len(ids) for ids in dataset["input_ids"])
    if not config.max_updates:
        return tokens * config.epochs
    batches = math.ceil(len(dataset) / config.batch_examples)
    return round(tokens * config.max_updates / math.ceil(batches / config.accumulation_steps))


def _validation(
    examples: Sequence[Example], chat_format: ChatFormat, config: TrainConfig, folder: Path, *, shares: bool
) -> Validation:
    chosen = [examples[i] for i in spread(len(examples), config.validation_examples)]
    rows = list(tokenize(chosen, chat_format, config.loss_on))
    return Validation(
        lambda: within(rows, config.row_tokens, shares=shares),
        len(rows),
        folder / CHECKPOINTS,
        times=config.evaluations,
        every=config.evaluate_every,
        keeps_best=config.keep_best,
    )
