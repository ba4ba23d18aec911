"""Lets the student write turns while it is trained, as many at once as its rows.

Rows come and go (`distill.local.continuous`), and each has a seed of its own, so a run that resumes writes what it
would have written.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from distill.local.continuous import complete_each
from distill.local.decoding_view import decoding, decoding_view
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
        self._model, self._view = causal_lm, decoding_view(causal_lm, tokens)
        self._format, self._config, self._seed = chat_format, config, seed

    def write(self, examples: Sequence[Example], step: int, max_new_tokens: int) -> list[StudentTurn]:
        """Write one turn for each example, some of them from a piece of its own turn on."""
        turns: list[StudentTurn | None] = [None] * len(examples)
        with decoding(self._model):
            decoder = TorchDecoder(self._view)
            longest = decoder.max_length - max_new_tokens
            asked = [self._asked(example, step, place, longest) for place, example in enumerate(examples)]
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

    def _asked(self, example: Example, step: int, place: int, longest: int) -> _Asked:
        """Return a turn to write. `longest`: the tokens that leave room for a whole turn in the student's context; a
        piece of the teacher's turn does not exceed it, since the shortest room is that of all turns."""
        draw = random.Random(f"{self._seed}:{step}:{place}")
        seed = draw.getrandbits(63)
        prompt = self._format.prompt_ids(example.messages)
        if draw.random() >= self._config.teacher_prefix_share:
            return _Asked(prompt=prompt, seed=seed, place=place)
        ids, _ = self._format.training_ids(example.messages, example.reasoning, example.answer)
        cut = min(draw.randrange(len(prompt), len(ids)), max(longest, len(prompt)))
        begun = ids[len(prompt) : cut]
        return _Asked(prompt=[*prompt, *begun], seed=seed, place=place, begun=begun)
