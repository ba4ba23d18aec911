"""Quantizes a model layer by layer, on the hidden states that the layers quantized so far produce.

Beside the quantized model's hidden states run the float model's: each matrix is rounded for both of its inputs
(`export.calibration.rounding`).

Invariant: memory holds two copies of one layer's part in progress, one batch of the text and the second moments
(`searched`: the squares) of one matrix's inputs, never the model; inputs are computed again, batch by batch, whenever
they are needed, unless those of the whole text fit in `KEPT_BYTES`.

Shapes: B texts of a batch, T tokens, X all tokens of a batch, D hidden, F feed-forward, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from export.calibration.hidden_states import Batch, HiddenStates
from export.calibration.rounding import Calibrated, round_slices, round_together
from export.calibration.texts import batches_by_length, padded, shared_lengths
from export.checkpoint.tensors import EMBEDDING, Checkpoint
from export.quantization.codes import QuantizedWeight, Weight, dequantize, quantize_nearest
from export.quantization.layout import Layout
from toolkit.model.precision import fp32_by_onednn

BATCH_TOKENS = 1024
KEPT_BYTES = 2**29
"""The most memory for inputs that are needed twice; to compute them again takes a quarter of a layer's time."""

TakeMatrix = Callable[[str, int, Iterable[Weight]], object]
"""Takes a stored matrix: its name, how many rows it has, and slices of those rows in their order."""


class CalibrationStream:
    """The calibration text, batched by length, on its way through the layers."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        texts: Sequence[Sequence[int]],
        embedding: Layout,
        method: Calibrated,
        folder: Path,
        *,
        layers: int = 0,
    ) -> None:
        """Begin before the first layer, or after those that an earlier run has quantized.

        `embedding`: the layout of the exported model's embedding, which is rounded to nearest. `folder` holds the
        hidden states. `layers`: how many are quantized already; their states are in the folder.
        """
        self._method = method
        config = AutoConfig.from_pretrained(checkpoint.folder)
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        self._config = config
        self._checkpoint = checkpoint
        self._layer_class: type[nn.Module] = type(model.model.layers[0])
        self._rotary: nn.Module = type(model.model.rotary_emb)(config=config)
        self._norm: nn.Module = model.model.norm.to_empty(device="cpu")
        padded_texts = _padded_texts(texts)
        self.states = HiddenStates(folder, [mask_BT for _, mask_BT in padded_texts], layers=layers)
        if not layers:
            float_VD = checkpoint.tensor(EMBEDDING)
            self.states.begin(_embed(float_VD, embedding, *batch) for batch in padded_texts)

    @fp32_by_onednn()
    @torch.no_grad()
    def quantize_layer(self, layer: int, layouts: Mapping[str, Layout], take: TakeMatrix) -> None:
        """Quantize one layer's matrices in the order in which data meets them, and hand each to `take` at once. The
        stream then moves past the layer, and its hidden states are synced to disk.

        Under causal attention, padding on the right never reaches a real token, so only the moments must leave it out.
        """
        block = self._load_layer(layer)
        reference = deepcopy(block, {id(parameter): parameter for parameter in block.parameters()})  # which it shares
        outputs = [_take_output(block), _take_output(reference)]

        def quantize(module: str, linears: Sequence[nn.Linear], inputs: Iterable[Batch]) -> None:
            name = f"model.layers.{layer}.{module}.weight"
            weight = round_together(linears, inputs, layouts[name], self._method)
            take(name, len(weight.codes), [weight])

        normed = _Applied(block.input_layernorm, reference.input_layernorm, self.states)
        attention = block.self_attn
        quantize("self_attn.qkv_proj", [attention.q_proj, attention.k_proj, attention.v_proj], normed)
        attended = self._kept(
            _Applied(partial(self._attend, attention), partial(self._attend, reference.self_attn), normed),
            outputs[0].in_features,
        )
        quantize("self_attn.o_proj", outputs[:1], attended)
        self._add(outputs, attended)
        del block.self_attn, reference.self_attn, attention, attended, outputs
        normed = _Applied(block.post_attention_layernorm, reference.post_attention_layernorm, self.states)
        quantize("mlp.gate_up_proj", [block.mlp.gate_proj, block.mlp.up_proj], normed)
        gated = self._kept(
            _Applied(partial(_gate, block.mlp), partial(_gate, reference.mlp), normed), block.mlp.down_proj.in_features
        )
        quantize("mlp.down_proj", [block.mlp.down_proj], gated)
        self._add([block.mlp.down_proj, reference.mlp.down_proj], gated)
        self.states.sync()

    def quantize_head(self, layout: Layout) -> Iterator[QuantizedWeight]:
        """Quantize the rows of the output head, some at a time, on the states after the last layer."""
        self._norm.load_state_dict({"weight": self._checkpoint.tensor("model.norm.weight")})
        slices = self._checkpoint.slices(self._checkpoint.head)
        return round_slices(slices, _Applied(self._norm, self._norm, self.states), layout, self._method)

    def _load_layer(self, layer: int) -> Any:
        block = self._layer_class(self._config, layer_idx=layer)
        names = block.state_dict().keys()
        block.load_state_dict({name: self._checkpoint.tensor(f"model.layers.{layer}.{name}") for name in names})
        return block.eval()

    def _attend(self, attention: Any, normed_BTD: Tensor) -> Tensor:
        positions_1T = torch.arange(normed_BTD.shape[1])[None]
        window = self._checkpoint.config.sliding_windows[attention.layer_idx]
        mask_TT = _window_mask(normed_BTD.shape[1], window)
        embeddings = self._rotary(normed_BTD, positions_1T)
        attended_BTD: Tensor = attention(normed_BTD, position_embeddings=embeddings, attention_mask=mask_TT)[0]
        return attended_BTD

    def _kept(self, inputs: Iterable[Batch], features: int) -> Iterable[Batch]:
        """Compute the inputs now and keep them, if there is room."""
        size_bytes = 2 * torch.float32.itemsize * features * self.states.positions
        return list(inputs) if size_bytes <= KEPT_BYTES else inputs

    def _add(self, linears: Sequence[nn.Module], inputs: Iterable[Batch]) -> None:
        """Add the outputs of the quantized and the float linear to the hidden states."""
        quantized, reference = linears
        self.states.advance(
            Batch(
                quantized_BTK=batch.quantized_BTK + quantized(input_batch.quantized_BTK),
                float_BTK=batch.float_BTK + reference(input_batch.float_BTK),
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


def _take_output(block: Any) -> nn.Linear:
    """Remove o_proj from a layer, so that its attention ends before it."""
    output: nn.Linear = block.self_attn.o_proj
    block.self_attn.o_proj = nn.Identity()
    return output


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


def _gate(mlp: Any, normed_BTD: Tensor) -> Tensor:
    gated_BTF: Tensor = mlp.act_fn(mlp.gate_proj(normed_BTD)) * mlp.up_proj(normed_BTD)
    return gated_BTF


def _window_mask(length: int, sliding_window: int) -> Tensor | None:
    """Make a sliding window's mask; None if plain causal attention suffices, which sdpa computes without one."""
    if not 0 < sliding_window < length:
        return None
    distance_TT = torch.arange(length)[:, None] - torch.arange(length)
    return (distance_TT >= 0) & (distance_TT < sliding_window)


def _embed(float_VD: Tensor, layout: Layout, ids_BT: Tensor, mask_BT: Tensor) -> Batch:
    float_BTD = float_VD[ids_BT]
    rows_XD = quantize_nearest(float_BTD.flatten(0, 1).numpy(), bits=layout.bits, block_size=layout.block_size)
    quantized_BTD = torch.from_numpy(dequantize(rows_XD)).reshape(float_BTD.shape)
    return Batch(quantized_BTK=quantized_BTD, float_BTK=float_BTD, mask_BT=mask_BT)
