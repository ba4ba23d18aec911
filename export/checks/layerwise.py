"""Computes the float model's logits for the gate with one layer in memory at a time, where the whole does not fit.

    texts ─ embedding ─ layer 0 ─ layer 1 ─ … ─ norm ─┬─ kept: the states of the positions that are compared
                                                      └─ head, some rows at a time, when a text's logits are asked for

All texts that are known before go through the layers together, so that each layer is read once. Greedy answers, which
would read all layers for each token, are not written.

Shapes: B = 1 text, T tokens, C compared positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from export.calibration.layer import Layer, final_norm
from export.calibration.texts import CalibrationText
from export.checkpoint.tensors import EMBEDDING, Checkpoint, vectors


class Logits(Protocol):
    """What transformers' models return."""

    @property
    def logits(self) -> Tensor: ...


class FloatModel(Protocol):
    """The float model, as one of transformers or as a `LayerwiseModel`."""

    def __call__(self, input_ids: Tensor, *, logits_to_keep: int) -> Logits:
        """Return logits_BCV of the last positions of ids_BT."""


@dataclass(frozen=True)
class _Found:
    logits: Tensor


class LayerwiseModel:
    """A checkpoint in float32, of which memory holds one layer."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._vectors = vectors(checkpoint)
        self._states: dict[tuple[int, ...], Tensor] = {}

    def prepare(self, texts: Iterable[CalibrationText], advance: Callable[[], object] = lambda: None) -> None:
        """Compute the states of texts, all together; `advance` is called after each layer."""
        compared: dict[tuple[int, ...], int] = {}
        for text in texts:
            ids = tuple(text.ids)
            compared[ids] = max(compared.get(ids, 0), len(text.completion) + 1)
        self._states |= self._through_layers(compared, advance)

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, *, logits_to_keep: int) -> _Found:
        """Return logits_BCV of the last positions of ids_BT, with B = 1; a text that was not prepared takes long."""
        [ids] = input_ids.tolist()
        kept = self._states.get(tuple(ids))
        if kept is None or len(kept) < logits_to_keep:
            kept = self._through_layers({tuple(ids): logits_to_keep})[tuple(ids)]
        states_CD = kept[-logits_to_keep:] / self._checkpoint.config.logits_scaling
        head = self._checkpoint.slices(self._checkpoint.head)
        return _Found(torch.cat([states_CD @ rows_ND.T for rows_ND in head], dim=-1)[None])

    @torch.no_grad()
    def _through_layers(
        self, compared: dict[tuple[int, ...], int], advance: Callable[[], object] = lambda: None
    ) -> dict[tuple[int, ...], Tensor]:
        """Return the normed states of the last positions, as many as are compared, of each text."""
        config = self._checkpoint.config
        states = self._embedded(list(compared))
        for number in range(config.num_hidden_layers):
            layer = Layer(self._checkpoint, number, self._vectors)
            states = [_through(layer, states_BTD) for states_BTD in states]
            del layer  # before the next one is read
            advance()
        norm = final_norm(config, self._vectors)
        return {
            ids: norm(states_BTD[0, -count:]) for (ids, count), states_BTD in zip(compared.items(), states, strict=True)
        }

    def _embedded(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Look up states_BTD of each text, some rows of the embedding at a time."""
        ids_X = torch.tensor([id for ids in texts for id in ids])
        found_XD = torch.empty(len(ids_X), self._checkpoint.config.hidden_size)
        begin = 0
        for rows_ND in self._checkpoint.slices(EMBEDDING):
            here_X = (ids_X >= begin) & (ids_X < begin + len(rows_ND))
            found_XD[here_X] = rows_ND[ids_X[here_X] - begin]
            begin += len(rows_ND)
        found_XD *= self._checkpoint.config.embedding_multiplier
        return [states_TD[None] for states_TD in found_XD.split([len(ids) for ids in texts])]


def _through(layer: Layer, states_BTD: Tensor) -> Tensor:
    norms = layer.config.family.norms
    attended = layer.linear("o_proj")(layer.attend(layer.norm(norms.before_attention, states_BTD)))
    states_BTD = states_BTD + layer.update(norms.after_attention, attended)
    gated = layer.linear("down_proj")(layer.gate(layer.norm(norms.before_mlp, states_BTD)))
    return states_BTD + layer.update(norms.after_mlp, gated)
