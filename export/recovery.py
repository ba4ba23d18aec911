"""Recovers what rounding cost: trains scales and norms, which the codes leave open, until the whole model is closer to
its float self.

Layer by layer, each matrix was rounded to preserve its own output; nothing has looked at the model's final output. Here
the codes are fixed, and AdamW minimizes KL(float ‖ quantized) over the completions of traces that the calibration did
not read, as far as there are any. Its parameters are the shares by which each scale and each norm's weight grows (the
second phase of Chen et al., "EfficientQAT" (2024), with the float model's distribution in place of the text).

Invariant: the result is kept only if it lowers the divergence on texts of which none was trained on.

Both models are in memory as floats; weights are computed from codes in each product, forward and backward.

Shapes: B texts of a batch, T tokens, X tokens of completions, N output features, K input features, J blocks of a row, D
hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from export.calibration.texts import CalibrationText, padded
from export.checkpoint.heads import are_arranged
from export.checkpoint.model_config import ModelConfig
from export.checkpoint.tensors import LM_HEAD, checkpoint_names
from export.quantization.codes import Halves, QuantizedWeight, Weight, dequantize
from toolkit.errors import InputError
from toolkit.generation.generate import Floats
from toolkit.model.precision import fp32_by_onednn
from toolkit.progress import Progress
from toolkit.records import Record

Recovery = Literal["none", "scales"]
"""What is trained after the weights were rounded: nothing, or scales and norms."""
TOKENS = 24_000
"""Tokens of traces that are trained on."""
APART = 8
"""Every so many-th text is kept apart, to decide by it whether the result is kept."""
MOST_PASSES = 3
"""Passes over the texts, if they hold fewer tokens."""
BATCH_TOKENS = 512
LEARNING_RATE = 5e-4
"""The most by which a step changes a scale, as a share of it."""
WARM_UP = 0.1
"""Share of the steps that warm up."""
LARGEST_NORM = 1.0
"""The gradient's norm is clipped to this."""

Passage = tuple[Tensor, Tensor]
"""ids_BT, padded on the right, and predicts_BT, true where the next token is one of a completion."""


@dataclass(frozen=True, kw_only=True)
class RecoveryReport(Record):
    """What recovery did to the mean KL on the texts that were kept apart."""

    tokens: int
    """The tokens that were trained on, in all passes."""
    mean_kl_before: float
    mean_kl_after: float
    kept: bool


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """The trained scales by stored matrix, and the trained norms by vector; both are empty if they are not kept."""

    scales: dict[str, Halves]
    norms: dict[str, Floats]
    report: RecoveryReport


@fp32_by_onednn()
def check_recovery(config: ModelConfig) -> None:
    """Raise `InputError` if the stored scales and norms are not those of transformers' modules, which are trained."""
    if config.family.norms_add_one or are_arranged(config) or config.logits_scaling != 1:
        raise InputError(
            f"--recovery scales cannot train {config.architecture}, whose weights are stored otherwise than they are "
            "exported; leave the option out"
        )


def recover(
    model: PreTrainedModel, config: ModelConfig, weights: Mapping[str, Weight], texts: Sequence[CalibrationText]
) -> Recovered:
    """Train the scales of all coded matrices within layers, and every norm, on these texts.

    `model`: the float model, which is not changed. `weights`: all stored matrices as they will be read.
    """
    apart, trained = texts[::APART], [text for i, text in enumerate(texts) if i % APART] or texts
    student = quantized_model(model, config, weights)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    batches, judges = _passages(trained), _passages(apart)
    tokens = sum(len(text.ids) for text in trained)
    passes = min(max(round(TOKENS / tokens), 1), MOST_PASSES)
    generator = torch.Generator().manual_seed(0)
    order = [i for _ in range(passes) for i in torch.randperm(len(batches), generator=generator).tolist()]
    with Progress("recovery", len(order) + 2 * len(judges)) as progress:
        before = _mean_divergence(model, student, judges, progress)
        for step, i in enumerate(order):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * _pace(step, len(order))
            loss = _divergences(model, student, batches[i]).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, LARGEST_NORM)
            optimizer.step()
            optimizer.zero_grad()
            progress.advance(note=f"KL {loss.item():.4f}")
        after = _mean_divergence(model, student, judges, progress)
    report = RecoveryReport(tokens=passes * tokens, mean_kl_before=before, mean_kl_after=after, kept=after < before)
    scales, norms = _found(student, config, weights) if report.kept else ({}, {})
    return Recovered(scales=scales, norms=norms, report=report)


def quantized_model(model: PreTrainedModel, config: ModelConfig, weights: Mapping[str, Weight]) -> PreTrainedModel:
    """Copy the model with the stored weights; only its scales and norms can be trained."""
    student = type(model)(model.config).eval()
    student.load_state_dict(model.state_dict())
    student.requires_grad_(False)
    if LM_HEAD in weights:
        student.lm_head.weight = nn.Parameter(student.lm_head.weight.clone(), requires_grad=False)
    for name, weight in weights.items():
        row = 0
        for source in checkpoint_names(config, name):
            module = student.get_submodule(source.removesuffix(".weight"))
            rows = slice(row, row := row + module.weight.shape[0])
            if isinstance(weight, QuantizedWeight) and isinstance(module, nn.Linear) and _is_in_layer(name):
                _replace(student, source.removesuffix(".weight"), CodedLinear(weight, rows, module.bias))
            else:
                with torch.no_grad():
                    module.weight.copy_(torch.from_numpy(dequantize(weight)[rows]))
    for name, module in list(student.named_modules()):
        if name.endswith("norm"):
            module.weight.requires_grad_()
            parametrize.register_parametrization(module, "weight", Grown(module.weight))
    return student


class Grown(nn.Module):
    """A tensor times 1 + a trained share, which starts at 0."""

    start: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start.detach().clone())

    def forward(self, share: Tensor) -> Tensor:
        grown: Tensor = self.start * (1 + share)
        return grown

    def right_inverse(self, start: Tensor) -> Tensor:
        return torch.zeros_like(start)


class CodedLinear(nn.Module):
    """A linear layer over some rows of a coded matrix, whose scales are trained."""

    steps_NK: Tensor

    def __init__(self, weight: QuantizedWeight, rows: slice, bias: Tensor | None) -> None:
        super().__init__()
        ones = QuantizedWeight(
            bits=weight.bits,
            block_size=weight.block_size,
            codes=weight.codes[rows],
            scales=np.ones_like(weight.scales[rows]),
            zero_points=weight.zero_points[rows],
        )
        self.register_buffer("steps_NK", torch.from_numpy(dequantize(ones)).to(torch.int16))
        self.bias = bias
        self.scales_NJ = nn.Parameter(torch.tensor(weight.scales[rows], dtype=torch.float32))
        parametrize.register_parametrization(self, "scales_NJ", Grown(self.scales_NJ))

    def forward(self, input_BTK: Tensor) -> Tensor:
        output_BTN: Tensor = CodedProduct.apply(input_BTK, self.steps_NK, self.scales_NJ)  # type: ignore[no-untyped-call]
        return output_BTN if self.bias is None else output_BTN + self.bias


class CodedProduct(torch.autograd.Function):
    """Computes x (s · steps)ᵀ and the gradients of x and s; keeps no matrix of floats from forward to backward."""

    @staticmethod
    def forward(ctx: Any, input_BTK: Tensor, steps_NK: Tensor, scales_NJ: Tensor) -> Tensor:
        ctx.save_for_backward(input_BTK, steps_NK, scales_NJ)
        return functional.linear(input_BTK, _scaled(steps_NK, scales_NJ))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor]:
        (gradient_BTN,) = gradients
        input_BTK, steps_NK, scales_NJ = ctx.saved_tensors
        gradient_NK = gradient_BTN.flatten(0, -2).T @ input_BTK.flatten(0, -2)
        gradient_NJ = (gradient_NK * steps_NK).reshape(*scales_NJ.shape, -1).sum(-1)
        return gradient_BTN @ _scaled(steps_NK, scales_NJ), None, gradient_NJ


def _scaled(steps_NK: Tensor, scales_NJ: Tensor) -> Tensor:
    steps_NJM = steps_NK.reshape(*scales_NJ.shape, -1)
    return (steps_NJM * scales_NJ[..., None]).reshape(steps_NK.shape)


def _passages(texts: Sequence[CalibrationText]) -> list[Passage]:
    """Batch texts of similar lengths, of at most `BATCH_TOKENS` padded tokens; a longer text is alone."""
    groups: list[list[CalibrationText]] = []
    for text in sorted(texts, key=lambda text: len(text.ids)):
        if not groups or len(text.ids) * (len(groups[-1]) + 1) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(text)
    passages = []
    for group in groups:
        ids_BT, mask_BT = padded([text.ids for text in group])
        starts_B1 = torch.tensor([len(text.prompt) for text in group])[:, None]
        positions_T = torch.arange(ids_BT.shape[1])
        passages.append(
            (ids_BT, (positions_T >= starts_B1 - 1) & mask_BT.roll(-1, 1) & (positions_T + 1 < ids_BT.shape[1]))
        )
    return passages


def _divergences(model: PreTrainedModel, student: PreTrainedModel, passage: Passage) -> Tensor:
    """Compute the KL at every token of the completions; padding on the right never reaches them."""
    ids_BT, predicts_BT = passage
    with torch.no_grad():
        float_XV = _log_probs(model, ids_BT, predicts_BT)
    student_XV = _log_probs(student, ids_BT, predicts_BT)
    return functional.kl_div(student_XV, float_XV, reduction="none", log_target=True).sum(-1)


def _log_probs(model: PreTrainedModel, ids_BT: Tensor, predicts_BT: Tensor) -> Tensor:
    """Return log_p_XV where the next token is one of a completion; the head computes nothing else."""
    log_p_XV: Tensor = model.lm_head(model.model(input_ids=ids_BT).last_hidden_state[predicts_BT]).log_softmax(-1)
    return log_p_XV


@torch.no_grad()
def _mean_divergence(
    model: PreTrainedModel, student: PreTrainedModel, passages: Sequence[Passage], progress: Progress
) -> float:
    found = []
    for passage in passages:
        found.append(_divergences(model, student, passage))
        progress.advance()
    return float(torch.cat(found).mean())


def _pace(step: int, steps: int) -> float:
    """Return the share of the learning rate: it rises to 1, then falls along a cosine to nearly 0."""
    rising = (step + 1) / max(1.0, WARM_UP * steps)
    return min(rising, 0.5 * (1 + math.cos(math.pi * step / steps)))


def _found(
    student: PreTrainedModel, config: ModelConfig, weights: Mapping[str, Weight]
) -> tuple[dict[str, Halves], dict[str, Floats]]:
    scales, norms = {}, {}
    for name in weights:
        modules = [student.get_submodule(source.removesuffix(".weight")) for source in checkpoint_names(config, name)]
        if isinstance(modules[0], CodedLinear):
            tuned = [module.scales_NJ.detach().half().numpy() for module in modules]
            scales[name] = np.concatenate(tuned)
    for name, module in student.named_modules():
        if name.endswith("norm"):
            norms[f"{name}.weight"] = module.weight.detach().numpy()
    return scales, norms


def _is_in_layer(name: str) -> bool:
    return name.startswith("model.layers.")


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
