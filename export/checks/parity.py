"""Measures how close an exported folder is to its float model, which decides whether it ships.

Both read the same texts; at every completion token the distribution p of the float model (torch, fp32) is compared with
q of the exported one (onnxruntime, as the chat runs it): KL(p‖q) in nats, and whether the most probable token agrees.
Greedy decoding diverges where q's choice first differs along p's own greedy text, so no second decoding is needed.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from export.calibration.texts import CalibrationText
from export.checks.layerwise import FloatModel
from export.runtime.decoder import OnnxDecoder
from toolkit.errors import GateFailed, InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.generation.generate import Floats
from toolkit.model.decoder import TorchDecoder
from toolkit.records import Record

GREEDY_PROMPTS = 8
GREEDY_TOKENS = 64
QUESTIONS = (
    "What is 17 + 25?",
    "Which is larger, 3/4 or 2/3?",
    "How many times does the letter r appear in strawberry?",
    "Sort these numbers in ascending order: 9, 4, 17, 1",
    "Name three animals that live in the sea.",
    "If a train leaves at 9:40 and arrives at 11:05, how long does it take?",
    "Explain in two sentences why the sky is blue.",
    "Write the word desert backwards.",
)
"""Questions to use without traces; the float model's own greedy answers are then the texts."""


REMEDY = (
    "calibrate on the student's own traces (--calibration FILE, without --quick), or keep more bits (--best, --int8)"
)
"""What helps an export that is out of bounds."""


class Scorer(Protocol):
    """A form of a model that scores texts."""

    def score(self, tokens_T: Sequence[int], *, first: int = 0) -> Floats:
        """Return logits_TV after each token of a text from index `first` on."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The bounds of the gate."""

    max_mean_kl: float
    min_top1: float


@dataclass(frozen=True, kw_only=True)
class ParityReport(Record):
    """The comparison over all completion tokens."""

    tokens: int
    mean_kl: float
    p99_kl: float
    top1: float
    first_divergence: list[int]
    """For each greedy prompt the index of the first new token that differs, or their number if all are equal."""
    perplexity_ratio: float
    """The exported model's perplexity on the texts over the float one's."""


@torch.no_grad()
def measure_parity(
    model: PreTrainedModel,
    chat_format: ChatFormat,
    decoder: OnnxDecoder,
    held_out: Sequence[CalibrationText],
    advance: Callable[[], object] = lambda: None,
) -> ParityReport:
    """Compare an exported folder with the float model; without texts, on the float model's answers to `QUESTIONS`.

    `advance` is called `parity_steps` times.
    """
    prompts = [text.prompt for text in held_out] or [chat_format.question_ids(question) for question in QUESTIONS]
    asked = prompts[:GREEDY_PROMPTS]
    greedy = []
    for prompt, completion in zip(asked, greedy_completions(model, asked), strict=True):
        greedy.append(CalibrationText(prompt=prompt, completion=completion))
        advance()
    return compare(model, decoder, list(held_out) or greedy, greedy, advance)


def parity_steps(held_out: Sequence[CalibrationText]) -> int:
    """Count the answers and comparisons of `measure_parity`."""
    greedy = min(len(held_out or QUESTIONS), GREEDY_PROMPTS)
    return greedy + (len(held_out) or greedy)


@torch.no_grad()
def compare(
    model: FloatModel,
    other: Scorer,
    texts: Sequence[CalibrationText],
    greedy: Sequence[CalibrationText],
    advance: Callable[[], object] = lambda: None,
) -> ParityReport:
    """Compare another form of a model with the float one on texts, and along the float model's own `greedy` ones.

    `advance` is called after each of the texts.
    """
    kl, agrees, losses = [], [], []
    for text in texts:
        float_TV, exported_TV = expectations(model, text), scored_expectations(other, text)
        kl.append(divergence(float_TV, exported_TV))
        agrees.append(float_TV.argmax(-1) == exported_TV.argmax(-1))
        target_T1 = torch.tensor(text.completion)[:, None]
        losses.append((float_TV - exported_TV).gather(1, target_T1)[:, 0])
        advance()
    return ParityReport(
        tokens=sum(map(len, kl)),
        mean_kl=float(torch.cat(kl).mean()),
        p99_kl=float(torch.cat(kl).quantile(0.99)),
        top1=float(torch.cat(agrees).float().mean()),
        first_divergence=[_first_divergence(other, text) for text in greedy],
        perplexity_ratio=float(torch.cat(losses).mean().exp()),
    )


def greedy_completions(model: PreTrainedModel, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Decode the float model's greedy answers, all at once, whatever its `generation_config.json` asks for."""
    ends = model.generation_config.eos_token_id if model.generation_config else None
    stop_ids = {*ends} if isinstance(ends, list) else {ends}
    rooms = [min(GREEDY_TOKENS, model.config.max_position_embeddings - len(prompt)) for prompt in prompts]
    completions: list[list[int]] = [[] for _ in prompts]
    decoder, going = TorchDecoder(model), list(range(len(prompts)))
    logits_BV = decoder.start(prompts)
    while True:
        tokens_B = logits_BV.argmax(-1)
        for row, token in zip(going, tokens_B.tolist(), strict=True):
            completions[row].append(token)
        left = [
            place
            for place, row in enumerate(going)
            if completions[row][-1] not in stop_ids and len(completions[row]) < rooms[row]
        ]
        if not left:
            return completions
        if len(left) < len(going):
            decoder.keep(np.array(left))
            going = [going[place] for place in left]
        logits_BV = decoder.step(tokens_B[left])


def check_parity(report: ParityReport, bounds: Bounds) -> None:
    """Raise `GateFailed` if the report is out of bounds."""
    if not report.mean_kl <= bounds.max_mean_kl:  # also where it is NaN
        raise GateFailed(
            f"mean KL to the float model ({report.mean_kl:.4f}) must be at most {bounds.max_mean_kl}; {REMEDY}"
        )
    if not report.top1 >= bounds.min_top1:
        raise GateFailed(
            f"top-1 agreement with the float model ({report.top1:.4f}) must be at least {bounds.min_top1}; {REMEDY}"
        )


def expectations(model: FloatModel, text: CalibrationText) -> Tensor:
    """Return the float model's log probabilities at every token of the completion."""
    logits_TV: Tensor = model(torch.tensor([text.ids]), logits_to_keep=len(text.completion) + 1).logits[0]
    return logits_TV[:-1].log_softmax(-1)


def scored_expectations(other: Scorer, text: CalibrationText) -> Tensor:
    """Return another form's log probabilities at every token of the completion."""
    logits_TV = torch.from_numpy(other.score(text.ids, first=len(text.prompt) - 1))
    return logits_TV[:-1].log_softmax(-1)


def divergence(float_TV: Tensor, exported_TV: Tensor) -> Tensor:
    """Return the KL divergence at each token, in nats."""
    kl_T: Tensor = (float_TV.exp() * (float_TV - exported_TV)).sum(-1)
    return kl_T


def _first_divergence(other: Scorer, text: CalibrationText) -> int:
    chosen_T = other.score(text.ids, first=len(text.prompt) - 1).argmax(-1)[:-1]
    differs_T = chosen_T != np.array(text.completion)
    return int(differs_T.argmax()) if differs_T.any() else len(text.completion)


def check_context(chat_format: ChatFormat, max_position_embeddings: int) -> None:
    """Raise `InputError` if a question of the gate leaves no room for an answer."""
    longest = max(len(chat_format.question_ids(question)) for question in QUESTIONS)
    if longest >= max_position_embeddings:
        raise InputError(
            f"max_position_embeddings ({max_position_embeddings}) must exceed the {longest} tokens of a question that "
            "the gate asks; export without the gate: --no-parity"
        )
