"""Lets the student write turns while it is trained, as many at once as its rows.

The student's weights are read where they are, through a second view of the model whose forward is that of a causal
language model: training replaces the forward by one that returns a loss. Rows come and go (`distill.local.continuous`),
and each has a seed of its own, so a run that resumes writes what it would have written.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from distill.local import grouped_attention
from distill.local.continuous import complete_each
from distill.logits.grading.turns import StudentTurn
from distill.logits.logits_config import LogitsConfig
from toolkit.formats.chat_format import ChatFormat
from toolkit.generation.generate import Sampling
from toolkit.model.decoder import TorchDecoder
from toolkit.records import Example

ROWS = 64
"""Turns that are written at once; more are no faster on two cores."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A turn to be written: its prompt, with what of the teacher's turn it begins with."""

    prompt: list[int]
    seed: int
    place: int
    begun: list[int] = field(default_factory=list)


class Writer:
    """The student as it writes."""

    def __init__(
        self, causal_lm: PreTrainedModel, chat_format: ChatFormat, config: LogitsConfig, *, tokens: int, seed: int
    ) -> None:
        """`tokens`: the ids of the student's tokenizer, which alone it may write; other rows are padding."""
        view: Any = copy.copy(causal_lm)  # the same modules and weights
        vars(view)["forward"] = partial(_forward, view, tokens)
        self._model, self._view = causal_lm, view
        self._format, self._config, self._seed = chat_format, config, seed

    def write(self, examples: Sequence[Example], step: int, max_new_tokens: int) -> list[StudentTurn]:
        """Write one turn for each example, some of them from a piece of its own turn on."""
        asked = [self._asked(example, step, place) for place, example in enumerate(examples)]
        turns: list[StudentTurn | None] = [None] * len(examples)
        with _writing(self._model):
            decoder = TorchDecoder(self._view)
            sampling = Sampling(
                temperature=self._config.rollout_temperature,
                top_p=self._config.rollout_top_p,
                max_new_tokens=min(max_new_tokens, decoder.max_length - max(len(one.prompt) for one in asked)),
            )
            for one, sampled in complete_each(decoder, asked, sampling, self._format.stop_ids, rows=ROWS):
                turns[one.place] = StudentTurn(
                    messages=examples[one.place].messages,
                    prompt=one.prompt[: len(one.prompt) - len(one.begun)],
                    completion=[*one.begun, *sampled.ids],
                    is_teachers=False,
                )
        return [turn for turn in turns if turn is not None]

    def _asked(self, example: Example, step: int, place: int) -> _Asked:
        draw = random.Random(f"{self._seed}:{step}:{place}")
        seed = draw.getrandbits(63)
        prompt = self._format.prompt_ids(example.messages)
        if draw.random() >= self._config.teacher_prefix_share:
            return _Asked(prompt=prompt, seed=seed, place=place)
        ids, _ = self._format.training_ids(example.messages, example.reasoning, example.answer)
        begun = ids[len(prompt) : draw.randrange(len(prompt), len(ids))]
        return _Asked(prompt=[*prompt, *begun], seed=seed, place=place, begun=begun)


def _forward(view: Any, tokens: int, *args: Any, **kwargs: Any) -> Any:
    output = type(view).forward(view, *args, **kwargs)
    output.logits = output.logits[..., :tokens]
    return output


@contextmanager
def _writing(model: PreTrainedModel) -> Iterator[None]:
    """Let a model decode within the context: in eval mode, with the attention of decoders."""
    attention, was_training = model.config._attn_implementation, model.training
    model.eval()
    model.set_attn_implementation(grouped_attention.NAME)
    try:
        with torch.inference_mode():
            yield
    finally:
        model.set_attn_implementation(attention)
        model.train(was_training)
