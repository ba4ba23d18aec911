"""The section `logits` of a recipe: how a student learns from a teacher's distribution.

This module imports nothing heavy, so that the command's help can show the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from toolkit.errors import InputError
from toolkit.records import Record

Source = Literal["stored", "teacher", "on_policy"]
SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True, kw_only=True)
class LogitsConfig(Record):
    """Where the teacher's distribution comes from, on whose text, and how it is learned."""

    source: Source
    """stored: candidates that were kept with the traces. teacher: the teacher scores its own traces. on_policy: the
    student writes, the teacher scores what it wrote, after supervised training on the traces."""
    divergence_beta: float
    """0 is the forward KL divergence (the student covers what the teacher may say), 1 the reverse one (it says what the
    teacher would), and between them a mixture."""
    final_divergence_beta: float
    """Its value in the last update; it moves there in a straight line."""
    temperature: float
    """Divides the logits of both sides before they are compared."""
    weight: float
    """The divergence's share of the loss on the teacher's text; the rest is cross entropy."""
    top_k: int
    """Classes of tokens that are kept of each of the teacher's distributions, the rest in one; 0 keeps all. It saves
    memory where vocabularies are large."""
    learning_rate_share: float
    """The learning rate as a share of the supervised one."""
    updates: int
    """On-policy updates after supervised training."""
    rollouts: int
    """Turns that the student writes for each of them."""
    max_new_tokens: int
    """The most tokens of one such turn."""
    rollout_temperature: float
    rollout_top_p: float
    teacher_prefix_share: float
    """The share of turns that begin with a piece of the teacher's, cut at a random place, which the student goes on
    from."""
    curriculum: float
    """The share of the updates over which turns grow from `first_new_tokens` to `max_new_tokens`; 0 is none."""
    first_new_tokens: int
    tokenizer: str
    """A folder with the tokenizer and the template of a teacher behind a server, which its prompts are made of."""

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise InputError(f"logits.source ({self.source!r}) must be one of {', '.join(SOURCES)}")
        for name, low, high in BOUNDS:
            value = getattr(self, name)
            if isinstance(value, int | float) and not low <= value <= high:
                raise InputError(f"logits.{name} ({value}) must be between {low:g} and {high:g}")
        self._refuse_idle()
        if self.source == "stored" and self.temperature != 1:
            raise InputError(
                f"logits.temperature ({self.temperature}) must be 1 for stored candidates, whose tail has no logits"
            )

    def _refuse_idle(self) -> None:
        """Raise `InputError` for a value that was changed and that nothing reads with this source."""
        if not (usual := USUAL.get(self.source)):
            return  # the usual ones are being made
        idle = {*ON_POLICY} if self.source != "on_policy" else {"weight"}
        if self.source == "stored":
            idle |= {"top_k", "tokenizer"}
        if not self.curriculum:
            idle.add("first_new_tokens")
        for name in sorted(idle):
            if (found := getattr(self, name)) != getattr(usual, name):
                without = " without a curriculum" if name == "first_new_tokens" and not self.curriculum else ""
                raise InputError(
                    f"logits.{name} ({found}) has no effect with logits.source {self.source}{without}; leave it out"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LogitsConfig:
        """Read the section of a recipe: what it leaves out has the value that is usual for its source."""
        source = values.get("source")
        usual = USUAL.get(source) if isinstance(source, str) else None
        if usual is None:
            raise InputError(f"logits.source ({source!r}) must be one of {', '.join(SOURCES)}")
        given = dict(values)
        given.setdefault("final_divergence_beta", given.get("divergence_beta", usual.final_divergence_beta))
        return super().from_dict(vars(usual) | given)

    def beta_at(self, progress: float) -> float:
        """Return the divergence's β after a share of the updates."""
        return self.divergence_beta + (self.final_divergence_beta - self.divergence_beta) * progress

    def tokens_at(self, progress: float) -> int:
        """Return the most tokens of a turn after a share of the updates."""
        if progress >= self.curriculum:
            return self.max_new_tokens
        first = min(self.first_new_tokens, self.max_new_tokens)
        return first + round((self.max_new_tokens - first) * progress / self.curriculum)


BOUNDS = (
    ("divergence_beta", 0, 1),
    ("final_divergence_beta", 0, 1),
    ("temperature", 0.1, 10),
    ("weight", 0, 1),
    ("top_k", 0, 2**20),
    ("learning_rate_share", 1e-6, 100),
    ("updates", 1, 2**31),
    ("rollouts", 1, 2**16),
    ("max_new_tokens", 1, 2**20),
    ("rollout_temperature", 0.01, 10),
    ("rollout_top_p", 0.01, 1),
    ("teacher_prefix_share", 0, 1),
    ("curriculum", 0, 1),
    ("first_new_tokens", 1, 2**20),
)

ON_POLICY = (
    *("updates", "rollouts", "max_new_tokens", "rollout_temperature", "rollout_top_p", "teacher_prefix_share"),
    *("curriculum", "first_new_tokens"),
)
"""What only a student that writes needs to know."""
USUAL: dict[str, LogitsConfig] = {}
"""The configuration of each source."""
_OFF_POLICY = LogitsConfig(
    source="teacher",
    divergence_beta=0.0,  # on the teacher's text the forward KL divergence is the expectation of the cross entropy
    final_divergence_beta=0.0,
    temperature=1.0,
    weight=0.5,  # DistillKit's and minimind's half and half
    top_k=0,
    learning_rate_share=1.0,
    updates=40,
    rollouts=32,
    max_new_tokens=320,
    rollout_temperature=1.0,  # the student's own distribution (Agarwal et al. 2023)
    rollout_top_p=1.0,
    teacher_prefix_share=0.25,
    curriculum=0.0,
    first_new_tokens=64,
    tokenizer="",
)
USUAL |= {
    "stored": replace(_OFF_POLICY, source="stored"),
    "teacher": _OFF_POLICY,
    "on_policy": replace(
        _OFF_POLICY, source="on_policy", divergence_beta=0.5, final_divergence_beta=0.5, learning_rate_share=0.25
    ),
}
