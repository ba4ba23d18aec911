"""Keeps the calibration text's hidden states on disk, so that memory holds one batch, however long the text is.

    hidden.<generation mod 3>.<batch>.npy       float32 [2, B, T, D]: of the quantized stream and of the float one
    inputs.<batch>.npy                          float32 [2, B, T, K]: a matrix's inputs, which are needed twice;
                                                only within a layer

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


class StoredBatches(Iterable[Batch]):
    """Batches in files, read one at a time as often as they are needed."""

    def __init__(self, folder: Path, name: str, masks: Sequence[Tensor]) -> None:
        """Keep one mask for each batch; `folder` may hold the batches of an earlier run."""
        self._paths = [folder / f"{name}.{i}.npy" for i in range(len(masks))]
        self._masks = masks

    def __iter__(self) -> Iterator[Batch]:
        for path, mask_BT in zip(self._paths, self._masks, strict=True):
            quantized_BTK, float_BTK = torch.from_numpy(np.load(path))
            yield Batch(quantized_BTK=quantized_BTK, float_BTK=float_BTK, mask_BT=mask_BT)

    def write(self, batches: Iterable[Batch]) -> None:
        """Write each batch before the next one is computed."""
        for path, batch in zip(self._paths, batches, strict=True):
            np.save(path, torch.stack([batch.quantized_BTK, batch.float_BTK]).numpy())

    def sync(self) -> None:
        """Sync the files to disk."""
        for path in self._paths:
            sync(path)

    def remove(self) -> None:
        """Remove the files that are there."""
        for path in self._paths:
            path.unlink(missing_ok=True)


class HiddenStates(Iterable[Batch]):
    """The newest generation, batch by batch."""

    def __init__(self, folder: Path, masks: Sequence[Tensor], *, layers: int) -> None:
        """Keep one mask for each batch; `layers`: how many an earlier run finished, which left its states here."""
        self._generations = [StoredBatches(folder, f"hidden.{number}", masks) for number in range(KEPT)]
        self._inputs = StoredBatches(folder, "inputs", masks)
        self._generation = GENERATIONS_A_LAYER * layers

    @property
    def _newest(self) -> StoredBatches:
        return self._generations[self._generation % KEPT]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._newest)

    def begin(self, batches: Iterable[Batch]) -> None:
        """Write the first generation."""
        self._newest.write(batches)

    def advance(self, batches: Iterable[Batch]) -> None:
        """Write the next generation, which may be computed from the present one while that is read."""
        self._generations[(self._generation + 1) % KEPT].write(batches)
        self._generation += 1

    def computed(self, inputs: Iterable[Batch]) -> StoredBatches:
        """Compute a matrix's inputs and keep them until the next one's are."""
        self._inputs.write(inputs)
        return self._inputs

    def finish_layer(self) -> None:
        """Sync the newest generation to disk, and remove what only the layer needed."""
        self._newest.sync()
        self._inputs.remove()
