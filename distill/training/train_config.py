"""What a training run of a student can be told: each field is a key of the section `train` of a recipe.

This module imports nothing heavy, so that a recipe is checked before anything slow is imported. What other programs
call each field: docs/reference/knobs.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal

from toolkit.errors import InputError
from toolkit.field_types import Count, CountOr0, NotNegative, Positive, Share, ShareBelow1, Within

Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "adafactor", "muon", "sgd"]
Tracker = Literal["tensorboard", "trackio", "wandb"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The recipe of a training run. A field with a default does by it what runs did before the field was there."""

    learning_rate: Positive
    """The highest rate of the schedule."""
    epochs: Count
    batch_examples: Count
    """Examples of a batch, which the processes that train together divide."""
    accumulation_steps: Count
    """Batches whose gradients make one update."""
    warmup_share: Share
    """Share of the updates in which the learning rate rises."""
    weight_decay: NotNegative
    """Norms and biases do not decay."""
    beta1: ShareBelow1
    """Of `sgd`, the momentum."""
    beta2: ShareBelow1
    max_grad_norm: Positive
    lora_rank: CountOr0
    """0 trains all weights."""
    log_every: Count
    """Updates between two lines of the loss curve."""
    checkpoint_every_s: Positive
    seed: int

    max_updates: CountOr0 = 0
    """The run ends after as many, whatever `epochs` says; 0 leaves it to `epochs`."""
    max_minutes: Annotated[float, Within(least=0, most=1e6)] = 0.0
    """Supervised training, and training on logits, each end with the last update that fits so much time, and rates and
    measurements follow the clock; 0 sets no limit. The same recipe then makes other numbers of updates each time."""
    quantization: Literal["", "nf4"] = ""
    """How the weights below adapters are kept: "" as they are computed with, "nf4" in four bits (QLoRA)."""
    gradient_checkpointing: bool = False
    """Whether a layer's activations are computed again in the backward pass instead of kept: for long examples."""
    optimizer: Optimizer = "adamw"
    """See `distill.training.optimizers`. Each updates fp32 masters of the weights."""
    epsilon: Positive = 1e-8
    """AdamW's."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """The learning rate after the warm-up. wsd: constant, then a cosine within the last `decay_share` of updates."""
    min_lr_share: Share = 0.0
    """Share of the learning rate at which the schedule ends."""
    decay_share: Share = 0.2
    warmup_steps: CountOr0 = 0
    """Updates of the warm-up; 0 leaves it to `warmup_share`."""
    lora_alpha: CountOr0 = 0
    """The update of a matrix counts alpha / rank times; 0 is twice the rank."""
    lora_dropout: ShareBelow1 = 0.0
    lora_targets: tuple[str, ...] = ()
    """Ends of names of the matrices that get adapters, such as q_proj; none: all but the head."""
    lora_rslora: bool = False
    """Whether alpha is divided by the root of the rank (Kalajdzievski 2023)."""
    lora_dora: bool = False
    """Whether the columns' magnitudes are trained apart (DoRA, Liu et al. 2024)."""
    lora_bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained beside the adapters."""
    lora_kept_apart: bool = False
    """Whether the run's folder holds the adapter alone, as PEFT saves it, instead of the student with it merged in."""
    neftune_noise: NotNegative = 0.0
    """NEFTune's alpha: noise on the embeddings of a training example (Jain et al. 2023)."""
    label_smoothing: ShareBelow1 = 0.0
    """Share of each target that is spread over the whole vocabulary."""
    loss_on: Literal["completions", "all"] = "completions"
    row_tokens: Count = 8192
    """Most tokens in one pass through the student: a batch is packed into padding-free rows of so many."""
    context_tokens: CountOr0 = 0
    """The student's context, where its own configuration says too little; 0 leaves it as it is."""
    evaluations: Count = 4
    """How often the loss on held-out examples is measured, evenly spaced."""
    evaluate_every: CountOr0 = 0
    """Updates between two such measurements; 0 leaves it to `evaluations`."""
    validation_examples: Count = 32
    """Most held-out examples that are measured on."""
    keep_best: bool = True
    """Whether the student of the lowest held-out loss is saved, instead of the last one."""
    checkpoint_every_updates: CountOr0 = 0
    """Updates between two checkpoints, beside those by the clock; 0 leaves it to the clock."""
    checkpoints_kept: Count = 1
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    """Where the loss curve is written besides `loss.jsonl`; nothing leaves the machine."""

    def __post_init__(self) -> None:
        lora = {name: self.lora_rank for name in DEFAULTS if name.startswith("lora_")}
        needed = lora | {
            "min_lr_share": self.schedule != "constant",
            "decay_share": self.schedule == "wsd",
            "epsilon": "adamw" in self.optimizer,
        }
        for name, is_used in needed.items():
            if not is_used and getattr(self, name) != DEFAULTS[name]:
                raise InputError(f"train.{name} ({getattr(self, name)}) has no effect {WITHOUT[_group(name)]}")
        if self.quantization and not self.lora_rank:
            raise InputError(
                f"train.quantization ({self.quantization}) keeps weights that cannot be trained themselves; add "
                "adapters (--lora, or train.lora_rank), or leave it out"
            )
        if self.warmup_steps and self.max_updates and self.warmup_steps > self.max_updates:
            raise InputError(
                f"train.warmup_steps ({self.warmup_steps}) must be at most train.max_updates ({self.max_updates}); "
                "lower it"
            )

    @property
    def alpha(self) -> int:
        """LoRA's alpha."""
        return self.lora_alpha or 2 * self.lora_rank

    @property
    def updating(self) -> dict[str, Any]:
        """What `distill.training.optimizers.choice.make_optimizer` is told besides the learning rate."""
        return {
            "name": self.optimizer,
            "betas": (self.beta1, self.beta2),
            "weight_decay": self.weight_decay,
            "epsilon": self.epsilon,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Return the configuration whose values JSON held, which has no tuples."""
        fitting: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**fitting)

    def given(self) -> dict[str, Any]:
        """Return the values without those that are a field's default, which runs of earlier versions did not record."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.default is MISSING or getattr(self, field.name) != field.default
        }


DEFAULTS: Mapping[str, Any] = {
    field.name: field.default for field in fields(TrainConfig) if field.default is not MISSING
}
UNREAD: Mapping[str, Sequence[str]] = {"adafactor": ("beta1", "beta2"), "sgd": ("beta2",)}
"""What an optimizer has no use for, of the values that every recipe has."""
WITHOUT = {
    "lora": "without adapters; set train.lora_rank, or leave it out",
    "min": "with the schedule constant; choose another train.schedule, or leave it out",
    "decay": "without the schedule wsd; set train.schedule to wsd, or leave it out",
    "epsilon": "with this optimizer; choose adamw, or leave it out",
}


def _group(name: str) -> str:
    return name.partition("_")[0]
