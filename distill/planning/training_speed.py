"""Measures how fast a student would train here, by a rehearsal.

A student of the real sizes with random weights is loaded and trained as it would be, on a row of the recipe's
documents, cut to a length that takes seconds. If it is large, only some of its layers are, and half as many of them:
the difference of the two times is what those layers take, and the optimizer is timed on the weights that are there.
What longer documents add is attention, which is added by its operations.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.utils.logging import disable_progress_bar

from distill.planning.footprint import PackedRow, footprint, meta_model, sizes_of
from distill.training.completion_loss import IGNORED, summed_loss
from distill.training.document_attention import Documents
from distill.training.optimizers.choice import make_adamw
from distill.training.student import add_adapters, causal_lm_of, load_trainable
from distill.training.train_config import TrainConfig
from toolkit.model.flops import forward_flops

PASSES = 4
"""Timed passes, after one that allocates memory."""
REHEARSED_WEIGHTS = 200e6
"""The most weights in the layers of a rehearsal, which has two layers at least."""
MOST_TOKENS = 1024
"""Of a rehearsal's row, and of its longest document."""


@dataclass(frozen=True, kw_only=True)
class TrainingSpeed:
    """The time of a training run's parts."""

    token_s: float
    """Of a token's forward and backward pass."""
    update_s: float
    """Of an update, whatever the number of its tokens."""

    def tokens_per_s(self, update_tokens: float) -> float:
        """Return the speed with so many tokens an update."""
        return update_tokens / (update_tokens * self.token_s + self.update_s)


@dataclass(frozen=True, kw_only=True)
class _Rehearsal:
    row_s: float
    update_s: float
    trained: int


def rehearse(config: PretrainedConfig, train: TrainConfig, dtype: torch.dtype, row: PackedRow) -> TrainingSpeed:
    """Measure this machine."""
    short = _shortened(row)
    layers, most = int(config.num_hidden_layers), _rehearsed_layers(config)
    more = _rehearsal(config, train, dtype, short, most)
    row_s, update_s = more.row_s, more.update_s
    if most < layers:
        fewer = _rehearsal(config, train, dtype, short, most // 2)
        left_out = (layers - most) / (most - most // 2)  # in layers that the two differ by
        row_s += left_out * max(more.row_s - fewer.row_s, 0.0)
        update_s *= 1 + left_out * (more.trained - fewer.trained) / more.trained
    longer = forward_flops(config, _context(row)) / forward_flops(config, _context(short))
    return TrainingSpeed(token_s=longer * row_s / short.tokens, update_s=update_s)


def rehearsal_bytes(config: PretrainedConfig, train: TrainConfig, dtype: torch.dtype, row: PackedRow) -> float:
    """Return what a rehearsal takes at its peak, beside what this process holds already."""
    few = _of_layers(config, _rehearsed_layers(config))
    on_gpu = torch.cuda.is_available()
    found = footprint(few, train, dtype, _shortened(row), rows=1, shards=1, on_gpu=on_gpu)
    if on_gpu:
        return found.peak
    written = dtype.itemsize * sizes_of(meta_model(few, train, dtype), train).parameters  # and then read
    return max(found.peak - found.program, 2 * written)


def _rehearsed_layers(config: PretrainedConfig) -> int:
    return min(int(config.num_hidden_layers), max(2, int(REHEARSED_WEIGHTS // _layer_weights(config))))


def _layer_weights(config: PretrainedConfig) -> int:
    few = _of_layers(config, 1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(few)
    return sum(weights.numel() for name, weights in model.named_parameters() if ".layers." in name)


def _shortened(row: PackedRow) -> PackedRow:
    """Return as much of a row as takes seconds."""
    lengths = [min(length, MOST_TOKENS) for length in row.lengths]
    count = max(1, sum(1 for total in accumulate(lengths) if total <= MOST_TOKENS))
    tokens = sum(lengths[:count])
    return PackedRow(
        lengths=tuple(lengths[:count]),
        trained_tokens=max(1, round(row.trained_tokens * tokens / row.tokens)),
        earlier=row.earlier[:count],
    )


def _context(row: PackedRow) -> float:
    """Return the mean length of what a token of the row is in: its document, after those that it goes on from."""
    ends: list[int] = []
    for length, earlier in zip(row.lengths, row.earlier or [-1] * len(row.lengths), strict=True):
        ends.append(length + (ends[earlier] if earlier >= 0 else 0))
    return sum(length * end for length, end in zip(row.lengths, ends, strict=True)) / row.tokens


def _rehearsal(
    config: PretrainedConfig, train: TrainConfig, dtype: torch.dtype, row: PackedRow, layers: int
) -> _Rehearsal:
    model = _few_layers(config, train, dtype, layers)
    causal_lm = causal_lm_of(model)
    if train.gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_adamw(
        train.optimizer if "adamw" in train.optimizer else "adamw",
        [{"params": trained}],
        learning_rate=train.learning_rate,
        betas=(train.beta1, train.beta2),
        weight_decay=train.weight_decay,
    )
    ids = torch.randint(config.vocab_size, (1, row.tokens))
    labels = torch.full((row.tokens,), IGNORED)
    labels[-row.trained_tokens :] = 0
    positions = torch.cat([torch.arange(length) for length in row.lengths])[None]
    on_cpu = {} if torch.cuda.is_available() else {"documents": Documents(row.lengths, row.earlier)}
    device = next(model.parameters()).device
    row_s, update_s = [], []
    for _ in range(1 + PASSES):
        stamps = [_finished_at()]
        hidden = causal_lm.base_model(
            input_ids=ids.to(device), position_ids=positions.to(device), use_cache=False, **on_cpu
        )[0]
        head = causal_lm.get_output_embeddings().weight
        summed_loss(hidden[0], head, labels.to(device)).backward()
        stamps.append(_finished_at())
        torch.nn.utils.clip_grad_norm_(trained, train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        stamps.append(_finished_at())
        row_s.append(stamps[1] - stamps[0])
        update_s.append(stamps[2] - stamps[1])
    return _Rehearsal(
        row_s=statistics.median(row_s[1:]),
        update_s=statistics.median(update_s[1:]),
        trained=sum(parameter.numel() for parameter in trained),
    )


def _few_layers(config: PretrainedConfig, train: TrainConfig, dtype: torch.dtype, layers: int) -> Any:
    """Load a student of so many layers, with random weights, as a training loads its own."""
    few = _of_layers(config, layers)
    disable_progress_bar()  # of writing a layer or two
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(few, dtype=dtype).save_pretrained(folder)
        model: Any = load_trainable(Path(folder), train.quantization)
    if torch.cuda.is_available():
        model.to("cuda")
    return add_adapters(model, train) if train.lora_rank else model


def _of_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    few = copy.deepcopy(config)
    few.num_hidden_layers = layers
    if getattr(few, "layer_types", None):
        few.layer_types = few.layer_types[:layers]
    return few


def _finished_at() -> float:
    """Return the time once the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
