"""Quantizes a model layer by layer, on the hidden states that the layers quantized so far produce.

Beside the quantized model's hidden states run the float model's: each matrix is rounded for both of its inputs
(`export.calibration.rounding`).

Invariant: memory holds two copies of one layer's part in progress, one batch of the text and the second moments
(`searched`: the squares) of one matrix's inputs, never the model; the text's states are on disk
(`export.calibration.hidden_states`).

Shapes: B texts of a batch, T tokens, X distinct tokens, D hidden, F feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from export.calibration.embedding import RoundRows
from export.calibration.hidden_states import Batch, HiddenStates
from export.calibration.layer import Layer, final_norm
from export.calibration.rounding import Calibrated, round_linear, round_slices
from export.calibration.texts import batches_by_length, padded, shared_lengths
from export.checkpoint.tensors import EMBEDDING, Checkpoint
from export.quantization.codes import QuantizedWeight, Weight, dequantize
from export.quantization.layout import Layout
from toolkit.generation.generate import Floats
from toolkit.model.precision import fp32_by_onednn

BATCH_TOKENS = 1024

TakeMatrix = Callable[[str, int, Iterable[Weight]], object]
"""Takes a stored matrix: its name, how many rows it has, and slices of those rows in their order."""


class CalibrationStream:
    """The calibration text, batched by length, on its way through the layers."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        texts: Sequence[Sequence[int]],
        vectors: Mapping[str, Floats],
        embedding: RoundRows,
        method: Calibrated,
        folder: Path,
        *,
        layers: int = 0,
    ) -> None:
        """Begin before the first layer, or after those that an earlier run has quantized.

        `vectors`: norms and biases as the graph has them, by name. `embedding`: how the exported model's embedding is
        rounded (`export.calibration.embedding`). `folder` holds the hidden states. `layers`: how many are quantized
        already; their states are in the folder.
        """
        self._method = method
        self._checkpoint = checkpoint
        self._vectors = vectors
        padded_texts = _padded_texts(texts)
        self.states = HiddenStates(folder, [mask_BT for _, mask_BT in padded_texts], layers=layers)
        if not layers:
            self.states.begin(_embedded(checkpoint, embedding, padded_texts))

    @fp32_by_onednn()
    @torch.no_grad()
    def quantize_layer(self, layer: int, layouts: Mapping[str, Layout], take: TakeMatrix) -> None:
        """Quantize one layer's matrices in the order in which data meets them, and hand each to `take` at once. The
        stream then moves past the layer, and its hidden states are synced to disk.

        Under causal attention, padding on the right never reaches a real token, so only the moments must leave it out.
        """
        block = Layer(self._checkpoint, layer, self._vectors)
        reference = deepcopy(block, {id(parameter): parameter for parameter in block.parameters()})  # which it shares
        norms = self._checkpoint.config.family.norms
        for module, first, compute, second, before, after in (
            ("self_attn", "qkv_proj", "attend", "o_proj", norms.before_attention, norms.after_attention),
            ("mlp", "gate_up_proj", "gate", "down_proj", norms.before_mlp, norms.after_mlp),
        ):

            def quantize(matrix: str, inputs: Iterable[Batch], module: str = module) -> None:
                name, linear = f"model.layers.{layer}.{module}.{matrix}.weight", block.linear(matrix)
                weight = round_linear(linear, inputs, layouts[name], self._method)
                take(name, len(weight.codes), [weight])

            norm = partial(block.norm, before)
            normed = _Applied(norm, norm, self.states)
            quantize(first, normed)
            computed = self.states.computed(_Applied(getattr(block, compute), getattr(reference, compute), normed))
            for each in (block, reference):  # frees them
                del each.linears[first]
            quantize(second, computed)
            self._add(block, reference, second, after, computed)
            for each in (block, reference):
                del each.linears[second]
        self.states.finish_layer()

    def quantize_head(self, layout: Layout) -> Iterator[QuantizedWeight]:
        """Quantize the rows of the output head, some at a time, on the states after the last layer."""
        norm = final_norm(self._checkpoint.config, self._vectors)
        slices = self._checkpoint.slices(self._checkpoint.head)
        return round_slices(slices, _Applied(norm, norm, self.states), layout, self._method)

    def _add(self, block: Layer, reference: Layer, matrix: str, norm: str, inputs: Iterable[Batch]) -> None:
        """Add the outputs of the quantized and the float layer's matrix to the hidden states."""
        quantized, exact = (layer.linear(matrix) for layer in (block, reference))
        self.states.advance(
            Batch(
                quantized_BTK=batch.quantized_BTK + block.update(norm, quantized(input_batch.quantized_BTK)),
                float_BTK=batch.float_BTK + block.update(norm, exact(input_batch.float_BTK)),
                mask_BT=batch.mask_BT,
            )
            for batch, input_batch in zip(self.states, inputs, strict=True)
        )


def _padded_texts(texts: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
    """Return the ids of each batch and where they count: tokens with which an earlier text begins, too, have the same
    hidden states there."""
    batches = list(batches_by_length(texts, BATCH_TOKENS))
    shared = iter(shared_lengths([text for batch in batches for text in batch]))
    padded_texts = []
    for batch in batches:
        ids_BT, mask_BT = padded(batch)
        for mask_T in mask_BT:
            mask_T[: next(shared)] = False
        padded_texts.append((ids_BT, mask_BT))
    return padded_texts


@dataclass(frozen=True)
class _Applied:
    """Batches through a quantized and a float function, computed again at each iteration."""

    quantized: Callable[[Tensor], Tensor]
    reference: Callable[[Tensor], Tensor]
    batches: Iterable[Batch]

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            yield Batch(
                quantized_BTK=self.quantized(batch.quantized_BTK),
                float_BTK=self.reference(batch.float_BTK),
                mask_BT=batch.mask_BT,
            )


def _embedded(
    checkpoint: Checkpoint, embedding: RoundRows, padded_texts: Sequence[tuple[Tensor, Tensor]]
) -> Iterator[Batch]:
    """Look up each batch in the rounded embedding and in the float one; rows that no text has are not rounded."""
    used_X = torch.cat([ids_BT.flatten() for ids_BT, _ in padded_texts]).unique()
    float_XD = checkpoint.tensor(EMBEDDING)[used_X]
    quantized_XD = torch.from_numpy(dequantize(embedding(float_XD)))
    factor = checkpoint.config.embedding_multiplier
    for ids_BT, mask_BT in padded_texts:
        places_BT = torch.searchsorted(used_X, ids_BT)
        yield Batch(
            quantized_BTK=quantized_XD[places_BT] * factor, float_BTK=float_XD[places_BT] * factor, mask_BT=mask_BT
        )
