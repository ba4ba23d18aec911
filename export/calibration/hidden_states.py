"""Keeps the calibration text's hidden states on disk, so that memory holds one batch, however long the text is.

    hidden.<generation mod 3>.<batch>.npy       float32 [2, B, T, D]: of the quantized stream and of the float one

A layer makes two generations, after its attention and after its MLP. The one that it started from stays until the layer
is finished, and an interrupted export resumes from there.

Shapes: B texts of a batch, T tokens, D hidden, K any features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toolkit.disk import sync

GENERATIONS_A_LAYER = 2
KEPT = 3
"""How many generations are on disk: the one that a layer started from, and its own two."""


@dataclass(kw_only=True)
class Batch:
    """Activations of a batch of texts, padded on the right."""

    quantized_BTK: Tensor
    float_BTK: Tensor
    mask_BT: Tensor
    """True on real tokens."""


class HiddenStates(Iterable[Batch]):
    """The newest generation, batch by batch."""

    def __init__(self, folder: Path, masks: Sequence[Tensor], *, layers: int) -> None:
        """Keep one mask for each batch; `layers`: how many an earlier run finished, which left its states here."""
        self._folder, self._masks = folder, masks
        self._generation = GENERATIONS_A_LAYER * layers

    @property
    def positions(self) -> int:
        """How many positions all batches have, padding included."""
        return sum(mask_BT.numel() for mask_BT in self._masks)

    def __iter__(self) -> Iterator[Batch]:
        for i, mask_BT in enumerate(self._masks):
            quantized_BTD, float_BTD = torch.from_numpy(np.load(self._path(self._generation, i)))
            yield Batch(quantized_BTK=quantized_BTD, float_BTK=float_BTD, mask_BT=mask_BT)

    def begin(self, batches: Iterable[Batch]) -> None:
        """Write the first generation."""
        self._write(self._generation, batches)

    def advance(self, batches: Iterable[Batch]) -> None:
        """Write the next generation, which may be computed from the present one while that is read."""
        self._write(self._generation + 1, batches)
        self._generation += 1

    def sync(self) -> None:
        """Sync the newest generation to disk."""
        for i in range(len(self._masks)):
            sync(self._path(self._generation, i))

    def _write(self, generation: int, batches: Iterable[Batch]) -> None:
        for i, batch in enumerate(batches):
            np.save(self._path(generation, i), torch.stack([batch.quantized_BTK, batch.float_BTK]).numpy())

    def _path(self, generation: int, batch: int) -> Path:
        return self._folder / f"hidden.{generation % KEPT}.{batch}.npy"
