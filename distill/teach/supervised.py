"""Supervised training of the teacher: packed rows, Muon for matrices, experts balanced by their bias.

The optimizer's settings are DeepSeek-V3's (report, section 4.2), except for Muon's, which were found by trial.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments, default_data_collator

from distill.reinforcement.grpo import RestoresExperts
from distill.teach.teacher_recipe import StageRecipe, TeachConfig
from distill.training.completion_loss import IGNORED
from distill.training.interrupts import WholeCheckpoints
from distill.training.journal import journaled, run_trainer
from distill.training.optimizers.muon import MuonAdamW, split_parameters
from distill.training.optimizers.schedule import cosine_schedule
from toolkit.errors import InputError
from toolkit.model.balance import ExpertBalance
from toolkit.model.experts import compute_experts
from toolkit.model.precision import computes_in_bf16


def packed(examples: Sequence[dict[str, list[int]]], row_tokens: int, pad_id: int) -> list[dict[str, list[int]]]:
    """Pack examples in their order into rows of `row_tokens`; the rest of a row is padding without a loss.

    Rows mix the families: batches of equal lengths, and so of one family each, made the model forget one family while
    it saw another. An example sees those before it in its row, but the model learns to ignore them, since its own
    question comes last.
    """
    rows: list[dict[str, list[int]]] = []
    for example in examples:
        size = len(example["input_ids"])
        assert size <= row_tokens
        if not rows or len(rows[-1]["input_ids"]) + size > row_tokens:
            rows.append({"input_ids": [], "labels": []})
        rows[-1]["input_ids"] += example["input_ids"]
        rows[-1]["labels"] += example["labels"]
    for row in rows:
        rest = row_tokens - len(row["input_ids"])
        row["input_ids"] += [pad_id] * rest
        row["labels"] += [IGNORED] * rest
    return rows


class ExpertsTrainer(RestoresExperts, WholeCheckpoints, Trainer):
    """transformers' trainer for a mixture of experts."""


def supervise(
    model: PreTrainedModel,
    examples: list[dict[str, list[int]]],
    config: TeachConfig,
    recipe: StageRecipe,
    folder: Path,
) -> dict[str, float]:
    """Train `model` on examples in their order, with checkpoints in `folder`; return the measurements.

    If torchrun started several processes, each takes its part of a batch, and the first writes into `folder`.
    """
    compute_experts(model)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if recipe.batch_size % processes:
        raise InputError(
            f"the rows of an update ({recipe.batch_size}) must be a multiple of the processes ({processes}); start "
            "another number of processes"
        )
    arguments = TrainingArguments(
        **journaled(folder, config.seed),
        ddp_backend="gloo" if processes > 1 and not torch.cuda.is_available() else None,
        bf16=computes_in_bf16(),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size // processes,
        max_grad_norm=config.max_grad_norm,
        logging_first_step=True,
        logging_steps=10,
        remove_unused_columns=False,
    )
    rows = packed(examples, config.row_tokens, model.config.pad_token_id or 0)
    matrices, others = split_parameters(model)
    optimizer = MuonAdamW(
        matrices,
        others,
        matrix_lr=recipe.matrix_learning_rate,
        other_lr=recipe.learning_rate,
        weight_decay=config.weight_decay,
        betas=config.adam_betas,
    )
    updates = recipe.epochs * -(-len(rows) // recipe.batch_size)
    schedule = cosine_schedule(optimizer, updates=updates, warmup=recipe.warmup_steps, final=recipe.final_learning_rate)
    trainer = ExpertsTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        data_collator=default_data_collator,
        callbacks=[ExpertBalance(model)],
        optimizers=(optimizer, schedule),
    )
    tokens = recipe.epochs * sum(len(example["input_ids"]) for example in examples)
    return run_trainer(trainer, folder, tokens=tokens, checkpoint_every_s=config.checkpoint_every_s)
