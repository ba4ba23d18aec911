"""GRPO of a student: `distill.reinforcement.grpo` with the forward pass of a student's training.

    problems ─ StudentSampler ─> groups of turns ─ rewards ─> advantages ─ padding-free rows ─> one update

What differs from the teacher's: the weights are bf16 with fp32 masters where the machine computes in it, and may be
adapters; a turn is written and read in the student's own chat format, rows come and go while turns are written; rows
that are learned from have no padding and the head sees the student's own tokens alone; turns on one problem are learned
from together, and one whose advantage is 0 is left out, since its gradient is 0.
"""

# Shapes: B turns, T tokens of a turn, N tokens of a padding-free row, C tokens that the student wrote.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoTokenizer, PreTrainedModel

from distill.local.continuous import complete_each
from distill.local.decoding_view import NotFinite, decoding, decoding_view
from distill.reinforcement.grpo import (
    ACCURACY,
    PREFLIGHT_PROBLEMS,
    Group,
    GroupTrainer,
    GrpoConfig,
    Sampler,
    trainer_arguments,
)
from distill.reinforcement.rl_config import RlConfig
from distill.reinforcement.token_probabilities import token_probabilities
from distill.training.completion_loss import IGNORED, LossForward, labelled
from distill.training.journal import diverged
from distill.training.optimizers.choice import make_optimizer
from distill.training.packed_rows import collate, packed, shares_beginnings
from distill.training.student import KeepsTypes, causal_lm_of, types_of
from distill.training.train import recorded_as
from distill.training.train_config import TrainConfig
from toolkit.formats.chat_format import OPEN, ChatFormat
from toolkit.generation.generate import Sampled
from toolkit.machine.allocator import give_freed_memory_back
from toolkit.model.decoder import TorchDecoder
from toolkit.records import Problem
from toolkit.terminal import counted, say

ROWS = 64
"""Turns that are written at once; more are no faster on two cores."""


@dataclass(frozen=True, kw_only=True)
class _WaitingTurn:
    """A turn that is to be written."""

    prompt: list[int]
    seed: int
    place: int


def words_of(chat_format: ChatFormat) -> int:
    """Return how many rows of a head are words; others are padding, which is never drawn."""
    return 1 + max(chat_format.tokenizer.get_vocab(with_added_tokens=True).values())


class StudentSampler(Sampler):
    """Draws groups of turns from a student in training."""

    def __init__(self, causal_lm: PreTrainedModel, chat_format: ChatFormat, config: GrpoConfig) -> None:
        super().__init__(causal_lm, chat_format, config, {})
        self._view = decoding_view(causal_lm, words_of(chat_format))

    def _completed(self, prompts: Sequence[list[int]], seeds: Sequence[int]) -> list[Sampled]:
        asked = [
            _WaitingTurn(prompt=prompt, seed=seed, place=place)
            for place, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        with decoding(self._model):
            each = complete_each(TorchDecoder(self._view), asked, self._sampling, self._chat_format.stop_ids, rows=ROWS)
            written = {one.place: sampled for one, sampled in each}
        return [written[place] for place in range(len(asked))]

    def _text(self, ids: Sequence[int]) -> str:
        text = super()._text(ids)
        if self._chat_format.opens_reasoning or not text.lstrip().startswith(OPEN):
            return text
        return text.lstrip().removeprefix(OPEN)


class StudentGroupTrainer(KeepsTypes, GroupTrainer):
    """A `GroupTrainer` of a student as `distill.training.student` loads it, with adapters or without."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        chat_format: ChatFormat,
        problems: Sequence[Problem],
        config: GrpoConfig,
        training: TrainConfig,
        folder: Path,
        *,
        scale_rewards: str,
        turns_at_once: int,
    ) -> None:
        """`folder`: where the chat files are, and where losses and checkpoints are written."""
        arguments = trainer_arguments(
            config,
            folder,
            **recorded_as(training, folder),
            bf16=False,  # the weights themselves are bf16: nothing to cast
            gradient_checkpointing=training.gradient_checkpointing,
            max_grad_norm=training.max_grad_norm,
            scale_rewards=scale_rewards,
            loss_type="dapo",  # divides by an update's tokens, whichever turns are left out of a pass
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs of one process would be torch's DataParallel
        types = types_of(model)
        super().__init__(
            model,
            StudentSampler(causal_lm_of(model), chat_format, config),
            problems,
            config,
            args=arguments,
            processing_class=AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left"),
        )
        self.keep_types(types)
        self._training, self._turns_at_once = training, turns_at_once
        self._words = words_of(chat_format)

    def survey(self) -> tuple[float, float]:
        """Sample the student on an update's problems after another, until turns on one differ in reward.

        Returns the mean reward, and the share of problems on which they differ.
        """
        groups = []
        for start in range(0, min(PREFLIGHT_PROBLEMS, len(self._problems)), self._config.groups):
            groups += self._sampler.groups(self._problems[start : start + self._config.groups], salt=-1)
            if any(group.differs for group in groups):
                break
        rewards = [reward for group in groups for reward in group.rewards]
        return fmean(rewards), sum(group.differs for group in groups) / len(groups)

    def _draw(self, asked: Sequence[Problem]) -> list[Group]:
        give_freed_memory_back()  # writing and learning take blocks of other sizes
        try:
            found = super()._draw(asked)
        except NotFinite as error:
            raise diverged("student's logit", self.state.global_step + 1, math.nan, self.args) from error
        give_freed_memory_back()
        return found

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the recipe's optimizer, at the rate of reinforcement."""
        self.optimizer = make_optimizer(self.model, learning_rate=self._config.learning_rate, **self._training.updating)
        return self.optimizer

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Compute TRL's loss of an update, and all of its gradient but that of the last piece.

        The loss is a sum over the turns, so pieces of it go through the student one after another.
        """
        pieces = self._pieces(inputs)
        total = torch.zeros((), device=inputs["advantages"].device)
        for number, piece in enumerate(pieces, start=1):
            part = {
                name: value[piece] if torch.is_tensor(value) and value.dim() else value
                for name, value in inputs.items()
            }
            loss: Tensor = super()._compute_loss(model, part)
            if number < len(pieces):
                self.accelerator.backward(loss)
                loss = loss.detach()
            total = total + loss
        return total

    def _pieces(self, inputs: dict[str, Any]) -> list[list[int]]:
        """Divide the turns that are learned from into those of one pass each, turns on one problem together."""
        learned: Sequence[int] = range(len(inputs["advantages"]))
        if self.beta == 0.0:  # without a divergence, a turn that is as good as its group's mean has no gradient
            learned = inputs["advantages"].nonzero()[:, 0].tolist() or [0]
        prompts = inputs["prompt_ids"].tolist()
        order = sorted(learned, key=lambda turn: (prompts[turn], turn))
        lengths = (inputs["prompt_mask"].sum(1) + inputs["completion_mask"].sum(1)).tolist()
        rows = packed([lengths[turn] for turn in order], self._training.row_tokens)
        return [
            [order[place] for place in row[start : start + self._turns_at_once]]
            for row in rows
            for start in range(0, len(row), self._turns_at_once)
        ]

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Compute log-probabilities and entropies of the student's own tokens in padding-free rows, [B, T].

        Turns on one problem have their prompt in common, which a row holds once.
        """
        forward = _PolicyForward(causal_lm_of(model), self._words)
        shares = shares_beginnings(causal_lm_of(model), self._training)
        begin = input_ids.shape[1] - logits_to_keep
        examples = []
        for ids_T, is_token_T in zip(input_ids, attention_mask.bool(), strict=True):
            prompt, written = ids_T[:begin][is_token_T[:begin]].tolist(), ids_T[begin:][is_token_T[begin:]].tolist()
            examples.append(labelled([*prompt, *written], [False] * len(prompt) + [True] * len(written)))
        counts = attention_mask[:, begin:].sum(1).tolist()
        log_p: list[Tensor] = []
        entropies: list[Tensor] = []
        for row in packed([len(example["input_ids"]) for example in examples], self._training.row_tokens):
            batch = collate([examples[turn] for turn in row], shares=shares)
            log_p_C, entropy_C = forward.probabilities(batch, input_ids.device, self._config.temperature)
            log_p += log_p_C.split([counts[turn] for turn in row])
            entropies += entropy_C.split([counts[turn] for turn in row])
        log_p_BT, entropy_BT = (
            torch.stack([pad(values_T, (0, logits_to_keep - len(values_T))) for values_T in found])
            for found in (log_p, entropies)
        )
        return log_p_BT, entropy_BT, None


class _PolicyForward(LossForward):
    """The forward of a causal language model that gives probabilities of the tokens it wrote, one of so many words."""

    def __init__(self, causal_lm: Any, words: int) -> None:
        super().__init__(causal_lm)
        self._words = words

    def probabilities(self, batch: dict[str, Any], device: torch.device, temperature: float) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropies of a padding-free row's labels, [C] each."""
        labels_N = batch["labels"][0].to(device)
        hidden_ND = self.hidden(batch["input_ids"].to(device), batch["position_ids"].to(device), batch["documents"])
        predicting_C = (labels_N[1:] != IGNORED).nonzero()[:, 0]
        return token_probabilities(
            hidden_ND.index_select(0, predicting_C),
            self._head.weight[: self._words],
            labels_N[1:][predicting_C],
            temperature,
        )


def grpo_config(config: RlConfig, problems: int, seed: int) -> GrpoConfig:
    """Return a student's values as the trainer's; an update has at most as many problems as there are."""
    groups = min(config.problems, problems)
    if groups < config.problems:
        say(f"rl: there are only {counted(problems, 'problem')}, so an update has {groups} and not {config.problems}")
    weights = {ACCURACY: 1.0, "well_formed": config.format_weight, "language_consistency": config.language_weight}
    return GrpoConfig(
        steps=config.updates,
        groups=groups,
        group_size=config.samples,
        micro_batch=groups * config.samples,  # which the trainer itself divides
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_updates,
        kl_coefficient=config.kl_coefficient,
        clip=0.2,  # DeepSeek-R1's; one update is made of each draw, so nothing is ever clipped
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        attempts=config.attempts,
        weights={name: weight for name, weight in weights.items() if weight},
        seed=seed,
    )
