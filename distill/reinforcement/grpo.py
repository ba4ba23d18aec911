"""Group-relative policy optimization (Shao et al. 2024, as in DeepSeek-R1) by TRL's `GRPOTrainer`, sampled by our
decoder.

    problems ─ a group of completions each ─> rewards ─ groups with different rewards ─> advantages ─> one update

It adds to the trainer's own sampling:

- The decode loop of `toolkit.generation.generate`: finished rows leave the batch, latent caches are read absorbed, and the
  sampled ids are the ids that are trained on.
- Dynamic sampling (DAPO, Yu et al. 2025): a group of equal rewards has no advantage and teaches nothing, so another
  problem takes its place, for a few attempts.
- A completion's seed depends only on the run, the step, the problem and its number, so an interrupted run ends with the
  same weights as an uninterrupted one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import torch
from datasets import Dataset
from huggingface_hub import constants
from torch import Tensor
from torch.nn.functional import pad
from torch.optim.lr_scheduler import LRScheduler
from transformers import AutoTokenizer, PreTrainedModel
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from distill.collecting.job import row_seed
from distill.reinforcement.reflection import shares
from distill.training.interrupts import WholeCheckpoints
from distill.training.journal import SAMPLED, journaled
from distill.training.optimizers.schedule import constant_schedule
from distill.verification.refusals import HARMFUL
from distill.verification.rewards import accuracy, language_consistency, well_formed
from toolkit.errors import InputError
from toolkit.formats.chat_format import CLOSE, ChatFormat
from toolkit.generation.generate import Sampled, Sampling, complete
from toolkit.model.decoder import TorchDecoder, load_model
from toolkit.model.precision import computes_in_bf16
from toolkit.records import Problem
from toolkit.terminal import say

if TYPE_CHECKING:
    from distill.reinforcement.judge import Judge

PREFLIGHT_PROBLEMS = 64
ROWS_A_PASS = 32
"""Completions whose probabilities are computed in one forward pass."""
Reward = Callable[[Problem, str], float]
ACCURACY = "accuracy"
REWARDS: Mapping[str, Reward] = {
    ACCURACY: accuracy,
    "well_formed": well_formed,
    "language_consistency": language_consistency,
}


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """The recipe of a reinforcement run."""

    steps: int
    groups: int
    """Problems per update."""
    group_size: int
    """Completions per problem."""
    micro_batch: int
    """Completions in memory at once, which divide an update's."""
    learning_rate: float
    warmup_steps: int
    kl_coefficient: float
    clip: float
    temperature: float
    max_new_tokens: int
    attempts: int
    """Rounds of sampling for groups with different rewards; those of the last round are used as they are."""
    weights: Mapping[str, float]
    """The weight of each of `REWARDS`, and of judges by their names."""
    seed: int
    needs_signal: bool = True
    """Whether training is refused if no group differs in reward at the start; otherwise a message says so."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """One problem with its completions."""

    problem: Problem
    prompt_ids: list[int]
    completion_ids: list[list[int]]
    texts: list[str]
    parts: list[dict[str, float]]
    """Each completion's rewards by name."""
    rewards: list[float]
    """Each completion's weighted sum of rewards."""

    @property
    def differs(self) -> bool:
        return max(self.rewards) - min(self.rewards) > 1e-6


class Sampler:
    """Draws groups of completions from the current policy and rewards them."""

    def __init__(
        self, model: PreTrainedModel, chat_format: ChatFormat, config: GrpoConfig, judges: Mapping[str, Judge]
    ) -> None:
        self._model = model
        self._chat_format = chat_format
        self._config = config
        self._judges = judges

    def groups(self, problems: Sequence[Problem], salt: int) -> list[Group]:
        """Draw one group per problem; `salt` distinguishes this draw from others of the run."""
        config, size = self._config, self._config.group_size
        prompts = [self._chat_format.prompt_ids(problem.messages) for problem in problems]
        seeds = [row_seed(config.seed + salt, problem.id, i) for problem in problems for i in range(size)]
        rows = self._completed([prompt for prompt in prompts for _ in range(size)], seeds)
        ids = [[row.ids for row in rows[start : start + size]] for start in range(0, len(rows), size)]
        texts = [[self._text(completion) for completion in group] for group in ids]
        whole = [
            [row.finish_reason == "stop" for row in rows[start : start + size]] for start in range(0, len(rows), size)
        ]
        parts = self._parts(problems, texts, whole)
        return [
            Group(
                problem=problem,
                prompt_ids=prompts[i],
                completion_ids=ids[i],
                texts=texts[i],
                parts=parts[i],
                rewards=[sum(config.weights[name] * value for name, value in part.items()) for part in parts[i]],
            )
            for i, problem in enumerate(problems)
        ]

    def _completed(self, prompts: Sequence[list[int]], seeds: Sequence[int]) -> list[Sampled]:
        """Complete each prompt."""
        model = self._model
        was_training = model.training
        model.eval()
        try:
            return complete(TorchDecoder(model), prompts, self._sampling, self._chat_format.stop_ids, seeds)
        finally:
            model.train(was_training)

    @property
    def _sampling(self) -> Sampling:
        config = self._config
        return Sampling(temperature=config.temperature, top_p=1.0, max_new_tokens=config.max_new_tokens)

    def _text(self, ids: Sequence[int]) -> str:
        """Return a completion as rewards read it: without the tag that opens the reasoning."""
        return self._chat_format.decode(ids)

    def _parts(
        self, problems: Sequence[Problem], texts: Sequence[Sequence[str]], whole: Sequence[Sequence[bool]]
    ) -> list[list[dict[str, float]]]:
        """Compute every completion's rewards; judges rate requests, whose quality no program can verify.

        `whole`: which completions ended by themselves; as in grading, the answer of any other is wrong.
        """
        parts = [
            [
                {
                    name: REWARDS[name](problem, text) if is_whole or name != ACCURACY else 0.0
                    for name in self._config.weights
                    if name in REWARDS
                }
                for text, is_whole in zip(group, of_group, strict=True)
            ]
            for problem, group, of_group in zip(problems, texts, whole, strict=True)
        ]
        asked = [i for i, problem in enumerate(problems) if HARMFUL in problem.metadata]
        for name, judge in self._judges.items():
            scores = judge.rewards([problems[i] for i in asked], [texts[i] for i in asked])
            for i, of_group in zip(asked, scores, strict=True):
                for part, score in zip(parts[i], of_group, strict=True):
                    part[name] = score
        return parts


class RestoresExperts:
    """Lets trainers restore a mixture of experts from a checkpoint.

    transformers itself would leave the experts unrestored, with a mere warning: the file names each matrix, while the
    model holds stacks. `load_model` knows both."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        saved = load_model(Path(resume_from_checkpoint), torch.float32)
        (model or cast(Any, self).model).load_state_dict(saved.state_dict())


class GroupTrainer(WholeCheckpoints, GRPOTrainer):
    """A `GRPOTrainer` on groups that our sampler draws."""

    def __init__(
        self, model: PreTrainedModel, sampler: Sampler, problems: Sequence[Problem], config: GrpoConfig, **kwargs: Any
    ) -> None:
        constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL reports each new trainer
        rows = [{"prompt": problem.transcript, "index": index} for index, problem in enumerate(problems)]
        super().__init__(model=model, reward_funcs=self._rewards, train_dataset=Dataset.from_list(rows), **kwargs)
        self._sampler, self._problems, self._config = sampler, problems, config
        self._drawn: list[Group] = []

    def survey(self) -> tuple[float, float]:
        """Sample the policy on the first problems; return its mean reward and the share of groups that differ."""
        with self.compute_loss_context_manager():
            groups = self._sampler.groups(self._problems[:PREFLIGHT_PROBLEMS], salt=-1)
        rewards = [reward for group in groups for reward in group.rewards]
        return sum(rewards) / len(rewards), sum(group.differs for group in groups) / len(groups)

    def preflight(self) -> dict[str, float]:
        """Survey the policy before training.

        Raises `InputError` if no group differs, since such a run cannot learn, unless the recipe needs no signal.
        """
        mean, differing = self.survey()
        if differing == 0:
            flat = (
                f"on all {min(PREFLIGHT_PROBLEMS, len(self._problems))} problems the {self._config.group_size} "
                f"completions have equal rewards, {mean:.2f} on average, so there is nothing to learn from; choose "
                f"{'easier' if mean < 0.5 else 'harder'} problems or a higher temperature"
            )
            if self._config.needs_signal:
                raise InputError(flat)
            say(f"this stage learns nothing: {flat}")
        return {"preflight_reward": mean, "preflight_differing": differing}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        size = self._config.group_size
        asked = [self._problems[row["index"]] for row in inputs[::size]]
        self._drawn = self._draw(asked)
        return super()._generate_and_score_completions(
            [{"prompt": each.problem.transcript} for each in self._drawn for _ in range(size)]
        )

    def _draw(self, asked: Sequence[Problem]) -> list[Group]:
        """Draw as many groups as problems are asked, replacing problems whose rewards are all equal."""
        step, process = self.state.global_step, self.accelerator.process_index
        others = random.Random(f"{self._config.seed}:{step}:{process}")
        found: list[Group] = []
        flat: list[Group] = []
        wanted, sampled = list(asked), 0
        with self.compute_loss_context_manager():
            for attempt in range(self._config.attempts):
                groups = self._sampler.groups(wanted, salt=step * self._config.attempts + attempt)
                if attempt == 0:
                    self._note(groups)
                sampled += len(groups)
                found += [group for group in groups if group.differs]
                flat = [group for group in groups if not group.differs]
                if not flat:
                    break
                wanted = others.sample(self._problems, len(flat))
        self._metrics["train"]["differing"].append(len(found) / sampled)
        return [*found, *islice(flat, len(asked) - len(found))]

    def _note(self, groups: Sequence[Group]) -> None:
        """Log how the policy does on the problems as they come, before any are replaced."""
        parts = [part for group in groups for part in group.parts]
        names = dict.fromkeys(name for part in parts for name in part)
        thoughts = [text.partition(CLOSE)[0] for group in groups for text in group.texts]
        noted = {name: fmean(part[name] for part in parts if name in part) for name in names} | shares(thoughts)
        for name, value in noted.items():
            self._metrics["train"][SAMPLED + name].append(value)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [group.prompt_ids for group in self._drawn for _ in group.rewards], None, {}

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], None]:
        return [ids for group in self._drawn for ids in group.completion_ids], None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Compute TRL's log-probabilities on rows of similar lengths, without columns that are padding in all of them.

        Lengths differ a lot: padded to the longest, most of the computation would be padding.
        """
        prompt = input_ids.shape[1] - logits_to_keep
        order = attention_mask.sum(1).argsort(stable=True)
        found: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
        for rows in order.split(min(ROWS_A_PASS, batch_size or ROWS_A_PASS)):
            used = attention_mask[rows].any(0).nonzero()
            begin, end = min(int(used[0]), prompt - 1), max(int(used[-1]) + 1, prompt + 1)
            logps, entropies, loss = super()._get_per_token_logps_and_entropies(
                model, input_ids[rows, begin:end], attention_mask[rows, begin:end], end - prompt, **kwargs
            )
            rest = (0, input_ids.shape[1] - end)
            found.append((pad(logps, rest), None if entropies is None else pad(entropies, rest), loss))
        place = order.argsort()
        logps = torch.cat([each[0] for each in found])[place]
        entropies = (
            torch.cat([each[1] for each in found if each[1] is not None])[place]
            if kwargs.get("compute_entropy")
            else None
        )
        losses = [each[2] for each in found if each[2] is not None]
        return logps, entropies, torch.stack(losses).mean() if losses else None

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Make our schedule, whose first rate is above 0."""
        assert self.optimizer is not None
        schedule = constant_schedule(optimizer or self.optimizer, warmup=self._config.warmup_steps)
        self.lr_scheduler: LRScheduler | None = schedule
        return schedule

    def _rewards(self, **kwargs: Any) -> list[float]:
        return [reward for group in self._drawn for reward in group.rewards]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no card into checkpoints."""


class TeacherTrainer(RestoresExperts, GroupTrainer):
    """The trainer of a mixture of experts."""


def trainer_arguments(config: GrpoConfig, folder: Path, **others: Any) -> GRPOConfig:
    """Translate our recipe into the trainer's arguments. `others`: those of a student, in the trainer's names."""
    completions = config.groups * config.group_size
    assert completions % config.micro_batch == 0
    arguments: dict[str, Any] = journaled(folder, config.seed) | {
        "max_steps": config.steps,
        "per_device_train_batch_size": config.micro_batch,
        "gradient_accumulation_steps": completions // config.micro_batch,
        "num_generations": config.group_size,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,
        "beta": config.kl_coefficient,
        "epsilon": config.clip,
        "learning_rate": config.learning_rate,
        "bf16": computes_in_bf16(),
        "gradient_checkpointing": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "data_seed": config.seed,
        "logging_steps": 1,
    }
    return GRPOConfig(**arguments | others)


def make_trainer(
    model: PreTrainedModel,
    source: Path,
    problems: Sequence[Problem],
    config: GrpoConfig,
    folder: Path,
    judges: Mapping[str, Judge] = MappingProxyType({}),
    **kwargs: Any,
) -> GroupTrainer:
    """Make a trainer of `model`, which came from `source`, with its checkpoints below `folder`."""
    sampler = Sampler(model, ChatFormat.from_folder(source), config, judges)
    return TeacherTrainer(
        model,
        sampler,
        problems,
        config,
        args=trainer_arguments(config, folder),
        processing_class=AutoTokenizer.from_pretrained(source, local_files_only=True, padding_side="left"),
        **kwargs,
    )
