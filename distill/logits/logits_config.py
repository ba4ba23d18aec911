"""The section `logits` of a recipe: how a student learns from a teacher's distribution.

This module imports nothing heavy, so that the command's help can show the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

from toolkit.errors import InputError
from toolkit.field_types import Count, CountOr0, Positive, Share, Within

Source = Literal["stored", "teacher", "on_policy"]
SOURCES: tuple[Source, ...] = get_args(Source)
Temperature = Annotated[float, Within(least=0.01, most=10)]
Mass = Annotated[float, Within(above=0, most=1)]


@dataclass(frozen=True, kw_only=True)
class LogitsConfig:
    """Where the teacher's distribution comes from, on whose text, and how it is learned."""

    source: Source
    """stored: candidates that were kept with the traces. teacher: the teacher scores its own traces. on_policy: the
    student writes, the teacher scores what it wrote, after supervised training on the traces."""
    divergence_beta: Share
    """0 is the forward KL divergence (the student covers what the teacher may say), 1 the reverse one (it says what the
    teacher would), and between them a mixture."""
    final_divergence_beta: Share
    """Its value in the last update; it moves there in a straight line."""
    temperature: Annotated[float, Within(least=0.1, most=10)]
    """Divides the logits of both sides before they are compared."""
    weight: Share
    """The divergence's share of the loss on the teacher's text; the rest is cross entropy."""
    top_k: CountOr0
    """Classes of tokens that are kept of each of the teacher's distributions, the rest in one; 0 keeps all. It saves
    memory where vocabularies are large."""
    learning_rate_share: Positive
    """The learning rate as a share of the supervised one."""
    updates: Count
    """On-policy updates after supervised training."""
    rollouts: Count
    """Turns that the student writes for each of them."""
    max_new_tokens: Count
    """The most tokens of one such turn."""
    rollout_temperature: Temperature
    rollout_top_p: Mass
    teacher_prefix_share: Share
    """The share of turns that begin with a piece of the teacher's, cut at a random place, which the student goes on
    from."""
    curriculum: Share
    """The share of the updates over which turns grow from `first_new_tokens` to `max_new_tokens`; 0 is none."""
    first_new_tokens: Count
    tokenizer: str
    """A folder with the tokenizer and the template of a teacher behind a server, which its prompts are made of."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LogitsConfig:
        """Make the section of values that are each as the annotations say; what is left out is usual for the source.

        Raises `InputError` for a value that has no effect with others.
        """
        if "source" not in values:
            raise InputError(f"logits.source is left out; set it to one of {', '.join(SOURCES)}")
        usual = USUAL[values["source"]]
        given = dict(values)
        given.setdefault("final_divergence_beta", given.get("divergence_beta", usual.final_divergence_beta))
        config = replace(usual, **given)
        for name, (is_used, needed) in config._used().items():
            if not is_used and getattr(config, name) != getattr(usual, name):
                raise InputError(
                    f"logits.{name} ({getattr(config, name)}) has no effect {needed}; change that, or leave it out"
                )
        return config

    def _used(self) -> dict[str, tuple[bool, str]]:
        """Return which values have an effect beside the others, and with what they have none."""
        source = f"with logits.source {self.source}"
        writes = self.source == "on_policy"
        used = dict.fromkeys(("updates", "rollouts", "max_new_tokens", "curriculum"), (writes, source))
        used |= dict.fromkeys(("rollout_temperature", "rollout_top_p", "teacher_prefix_share"), (writes, source))
        used["first_new_tokens"] = (writes and self.curriculum > 0, "without logits.curriculum" if writes else source)
        used["weight"] = (not writes, source)
        # stored candidates were chosen when they were kept, and the tail of them has no logits to divide
        return used | dict.fromkeys(("top_k", "temperature", "tokenizer"), (self.source != "stored", source))

    def beta_at(self, progress: float) -> float:
        """Return the divergence's β after a share of the updates."""
        return self.divergence_beta + (self.final_divergence_beta - self.divergence_beta) * progress

    def tokens_at(self, progress: float) -> int:
        """Return the most tokens of a turn after a share of the updates."""
        if progress >= self.curriculum:
            return self.max_new_tokens
        first = min(self.first_new_tokens, self.max_new_tokens)
        return first + round((self.max_new_tokens - first) * progress / self.curriculum)


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
USUAL: Mapping[str, LogitsConfig] = MappingProxyType(
    {
        "stored": replace(_OFF_POLICY, source="stored"),
        "teacher": _OFF_POLICY,
        "on_policy": replace(
            _OFF_POLICY, source="on_policy", divergence_beta=0.5, final_divergence_beta=0.5, learning_rate_share=0.25
        ),
    }
)
"""The configuration of each source."""
