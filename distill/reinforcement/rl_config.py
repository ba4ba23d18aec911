"""The section `rl` of a recipe: how a student is reinforced on problems whose answers a program verifies.

This module imports nothing heavy, so that a recipe is checked before anything slow is imported. What other programs
call each field: docs/reference/knobs.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from toolkit.errors import InputError
from toolkit.field_types import Count, CountOr0, NotNegative, Positive, Within

HEEDED = frozenset(
    {
        *("optimizer", "beta1", "beta2", "epsilon", "weight_decay", "max_grad_norm", "quantization", "context_tokens"),
        *("gradient_checkpointing", "row_tokens", "lora_rank", "lora_alpha", "lora_dropout", "lora_targets"),
        *("lora_rslora", "lora_dora", "lora_bias", "lora_kept_apart"),
        *("checkpoint_every_s", "checkpoint_every_updates", "checkpoints_kept", "trackers"),
    }
)
"""The values of the section `train` that count in reinforcement; it has its own length, rate and batches."""


@dataclass(frozen=True, kw_only=True)
class RlConfig:
    """How long, on what and for what a student is reinforced. What updates its weights is said in the section `train`:
    optimizer, adapters, clipping, checkpoints."""

    updates: Count = 40
    problems: Count = 16
    """Problems of an update."""
    samples: Annotated[int, Within(least=2, below=10**6)] = 8
    """Turns that the student writes for each problem, which are compared with each other."""
    turns_at_once: Count = 16
    """Most turns that are learned from in one pass: memory grows with them."""
    learning_rate: Positive = 1e-5
    """The rate after the warm-up."""
    warmup_updates: CountOr0 = 1
    kl_coefficient: NotNegative = 0.0
    """Weight of the divergence from the student as it was; 0 needs no copy of it."""
    temperature: Annotated[float, Within(least=0.01, most=10)] = 1.0
    """How the student draws."""
    max_new_tokens: Count = 320
    """Most tokens of a turn; one that is cut there is wrong."""
    attempts: Count = 2
    """Rounds of drawing for problems on which the turns differ in reward; those of the last round are used as they
    are."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Over whose standard deviation a reward's distance from its group's mean is divided."""
    format_weight: NotNegative = 0.1
    """Reward of a turn that closes its reasoning once, with text on both sides, beside 1 for a right answer."""
    language_weight: NotNegative = 0.0
    """Reward of a turn for the share of its reasoning that is in the question's language."""

    def __post_init__(self) -> None:
        if self.warmup_updates > self.updates:
            raise InputError(
                f"rl.warmup_updates ({self.warmup_updates}) must be at most rl.updates ({self.updates}); lower it"
            )
