"""Group-relative policy optimization (Shao et al. 2024, as in DeepSeek-R1) by TRL's `GRPOTrainer`, sampled by our
decoder.

    problems ─ a group of completions each ─> rewards ─ groups that differ within ─> advantages ─> one update

What the trainer's own sampling lacks:

- The decode loop of `toolkit.generation.generate`: rows that have ended leave the batch, latent caches are read absorbed, and the
  ids that were sampled are the ids that are trained on.
- Dynamic sampling (DAPO, Yu et al. 2025): a group of equal rewards has no advantage and teaches nothing, so another
  problem takes its place, for a few attempts.
- A completion's seed comes from the run, the step, the problem and its number alone, so a run that was broken off ends
  with the weights of one that was not.
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

from distill.reinforcement.reflection import shares
from distill.teachers.traces import row_seed
from distill.training.journal import SAMPLED, journaled
from distill.training.schedule import constant_schedule
from distill.verification.refusals import HARMFUL
from distill.verification.rewards import accuracy, language_consistency, well_formed
from toolkit.errors import InputError
from toolkit.formats.chat_format import CLOSE, ChatFormat
from toolkit.generation.generate import Sampling, complete
from toolkit.model.decoder import TorchDecoder, load_model
from toolkit.model.precision import computes_in_bf16
from toolkit.records import Problem
from toolkit.terminal import say

if TYPE_CHECKING:
    from distill.reinforcement.judge import Judge

Reward = Callable[[Problem, str], float]
ACCURACY = "accuracy"
REWARDS: Mapping[str, Reward] = {
    ACCURACY: accuracy,
    "well_formed": well_formed,
    "language_consistency": language_consistency,
}
PREFLIGHT_PROBLEMS = 64
LIKE_ROWS = 32
"""Completions whose probabilities are computed together."""


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """How a policy is reinforced."""

    steps: int
    groups: int
    """Problems an update."""
    group_size: int
    """Completions a problem."""
    micro_batch: int
    """Completions in memory at once; a multiple of `group_size` that divides the update's completions."""
    learning_rate: float
    warmup_steps: int
    kl_coefficient: float
    clip: float
    temperature: float
    max_new_tokens: int
    attempts: int
    """Rounds of sampling for groups that differ within; the last round's are taken as they are."""
    weights: Mapping[str, float]
    """Of each of `REWARDS`, and of judges by their names, in the sum."""
    seed: int
    needs_signal: bool = True
    """Whether a policy none of whose first groups differ in reward is refused before it is trained, or that is said."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """One problem with its completions."""

    problem: Problem
    prompt_ids: list[int]
    completion_ids: list[list[int]]
    texts: list[str]
    parts: list[dict[str, float]]
    """Of each completion, every reward by its name."""
    rewards: list[float]
    """Their weighted sums."""

    @property
    def differs(self) -> bool:
        return max(self.rewards) - min(self.rewards) > 1e-6


class Sampler:
    """Draws groups of completions from a policy as it stands, and rewards them."""

    def __init__(
        self, model: PreTrainedModel, chat_format: ChatFormat, config: GrpoConfig, judges: Mapping[str, Judge]
    ) -> None:
        self._decoder = TorchDecoder(model)
        self._chat_format = chat_format
        self._config = config
        self._judges = judges

    def groups(self, problems: Sequence[Problem], salt: int) -> list[Group]:
        """One group a problem; `salt` tells this draw from others of the run."""
        config, size = self._config, self._config.group_size
        prompts = [self._chat_format.prompt_ids(problem.messages) for problem in problems]
        seeds = [row_seed(config.seed + salt, problem.id, i) for problem in problems for i in range(size)]
        sampling = Sampling(temperature=config.temperature, top_p=1.0, max_new_tokens=config.max_new_tokens)
        model = self._decoder.model
        was_training = model.training
        model.eval()
        try:
            rows = complete(
                self._decoder,
                [prompt for prompt in prompts for _ in range(size)],
                sampling,
                self._chat_format.stop_ids,
                seeds,
            )
        finally:
            model.train(was_training)
        ids = [[row.ids for row in rows[start : start + size]] for start in range(0, len(rows), size)]
        texts = [[self._chat_format.decode(completion) for completion in group] for group in ids]
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

    def _parts(
        self, problems: Sequence[Problem], texts: Sequence[Sequence[str]], whole: Sequence[Sequence[bool]]
    ) -> list[list[dict[str, float]]]:
        """Every reward of every completion; judges rate requests, whose quality no program verifies.

        `whole`: which ones ended by themselves; the answer of another is not right, as in grading.
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
    """For trainers of a mixture of experts. transformers' own way back from a checkpoint leaves the experts as they
    were, with a mere warning: it reads the file's names (one a matrix) where the model holds stacks. `load_model`
    knows both."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        saved = load_model(Path(resume_from_checkpoint), torch.float32)
        (model or cast(Any, self).model).load_state_dict(saved.state_dict())


class GroupTrainer(RestoresExperts, GRPOTrainer):
    """`GRPOTrainer` on groups that the sampler drew."""

    def __init__(
        self, model: PreTrainedModel, sampler: Sampler, problems: Sequence[Problem], config: GrpoConfig, **kwargs: Any
    ) -> None:
        constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL reports each trainer that is made
        rows = [{"prompt": problem.transcript, "index": index} for index, problem in enumerate(problems)]
        super().__init__(model=model, reward_funcs=self._rewards, train_dataset=Dataset.from_list(rows), **kwargs)
        self._sampler, self._problems, self._config = sampler, problems, config
        self._drawn: list[Group] = []

    def survey(self) -> tuple[float, float]:
        """Sample the policy as it is on the first problems: its mean reward, and the share of groups that differ."""
        with self.compute_loss_context_manager():
            groups = self._sampler.groups(self._problems[:PREFLIGHT_PROBLEMS], salt=-1)
        rewards = [reward for group in groups for reward in group.rewards]
        return sum(rewards) / len(rewards), sum(group.differs for group in groups) / len(groups)

    def preflight(self) -> dict[str, float]:
        """The survey before anything is trained.

        Raises `InputError` where no group differs, since such a run can't learn, unless the recipe needs no signal.
        """
        mean, differing = self.survey()
        if differing == 0:
            flat = (
                f"the {self._config.group_size} completions of some problem must differ in reward; those of all "
                f"{min(PREFLIGHT_PROBLEMS, len(self._problems))} are equal, {mean:.2f} on average; "
                f"choose {'easier' if mean < 0.5 else 'harder'} problems or a higher temperature"
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
        """As many groups as problems are asked, in their places other problems where a group is flat."""
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
        """Log what the policy does on the problems as they come, before any is drawn for being undecided."""
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
        """As TRL's, rows of like lengths together and without the columns in which all of these are padding.

        Lengths differ much: laid out at the longest one's, most of what is computed would be padding.
        """
        prompt = input_ids.shape[1] - logits_to_keep
        order = attention_mask.sum(1).argsort(stable=True)
        found: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
        for rows in order.split(min(LIKE_ROWS, batch_size or LIKE_ROWS)):
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
        """Ours, whose first rate is above 0."""
        assert self.optimizer is not None
        schedule = constant_schedule(optimizer or self.optimizer, warmup=self._config.warmup_steps)
        self.lr_scheduler: LRScheduler | None = schedule
        return schedule

    def _rewards(self, **kwargs: Any) -> list[float]:
        return [reward for group in self._drawn for reward in group.rewards]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None in checkpoints."""


def trainer_arguments(config: GrpoConfig, folder: Path) -> GRPOConfig:
    """Our recipe in the trainer's words."""
    completions = config.groups * config.group_size
    assert completions % config.micro_batch == 0 and config.micro_batch % config.group_size == 0
    return GRPOConfig(
        **journaled(folder, config.seed),
        max_steps=config.steps,
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=completions // config.micro_batch,
        num_generations=config.group_size,
        max_completion_length=config.max_new_tokens,
        temperature=config.temperature,
        beta=config.kl_coefficient,
        epsilon=config.clip,
        learning_rate=config.learning_rate,
        bf16=computes_in_bf16(),
        gradient_checkpointing=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        data_seed=config.seed,
        logging_steps=1,
    )


def make_trainer(
    model: PreTrainedModel,
    source: Path,
    problems: Sequence[Problem],
    config: GrpoConfig,
    folder: Path,
    judges: Mapping[str, Judge] = MappingProxyType({}),
    **kwargs: Any,
) -> GroupTrainer:
    """A trainer of `model`, which came from `source`, with its checkpoints below `folder`."""
    sampler = Sampler(model, ChatFormat.from_folder(source), config, judges)
    return GroupTrainer(
        model,
        sampler,
        problems,
        config,
        args=trainer_arguments(config, folder),
        processing_class=AutoTokenizer.from_pretrained(source, local_files_only=True, padding_side="left"),
        **kwargs,
    )
