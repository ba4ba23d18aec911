"""Choosing int4 codes with error feedback, layer by layer, on what the quantized layers before really hand over.

Rounding each weight alone forgets small changes that fine-tuning made, and its errors add up through the layers. GPTQ
rounds one column after another and moves the rest of the row so that the layer's output stays: with H = X Xᵀ of the
calibration inputs and U the upper Cholesky factor of H⁻¹, an error in column k is paid for by later columns through U[k].
Source: Frantar et al., "GPTQ" (2023), algorithm 1; damping 1 % of the mean diagonal as there. Added: a block's range is
chosen by a search over how far to clip it, weighted by the diagonal of H, and scales are fp16 inside the loop.

Invariant: memory holds one layer and the calibration text's activations, never the model.

Shapes: B texts of a batch, T tokens, D hidden, N output features, K input features, M block_size, J blocks of a row, C columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from export.checkpoint import Checkpoint
from export.quantize import SMALLEST_SCALE, QuantizedWeight, dequantize, pack

BITS = 4
LARGEST_CODE = 2**BITS - 1
DAMPING = 0.01
COLUMNS_AT_ONCE = 128
"""Columns whose errors are paid within a small matrix before the rest of the row pays; a matter of speed only."""
CLIPPING = torch.linspace(1.0, 0.6, 17)
"""Shares of a block's range that are tried. Below 0.6 none was ever best in our trials."""
BATCH_TOKENS = 2048


class CalibrationStream:
    """The calibration text's hidden states on their way through the layers, batched by length."""

    def __init__(self, checkpoint: Checkpoint, texts: Sequence[Sequence[int]]) -> None:
        config = AutoConfig.from_pretrained(checkpoint.folder)
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        self._config = config
        self._checkpoint = checkpoint
        self._layer_class: type[nn.Module] = type(model.model.layers[0])
        self._rotary: nn.Module = type(model.model.rotary_emb)(config=config)
        embedding = checkpoint.tensor("model.embed_tokens.weight")
        self.batches = [_pad(embedding, batch) for batch in _batches_by_length(texts)]

    @torch.no_grad()
    def quantize_layer(self, layer: int, *, block_size: int) -> Iterator[tuple[str, QuantizedWeight]]:
        """Quantize one layer's matrices in the order in which data meets them; the stream moves on behind them.

        Right padding never reaches a real token under causal attention, so only the Hessian must leave it out.
        """
        prefix = f"model.layers.{layer}"
        block = self._load_layer(layer)
        attention, mlp = block.self_attn, block.mlp
        output, attention.o_proj = attention.o_proj, nn.Identity()
        normed = [(block.input_layernorm(hidden_BTD), mask_BT) for hidden_BTD, mask_BT in self.batches]
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        yield f"{prefix}.self_attn.qkv_proj.weight", _quantize_together(qkv, hessian(normed), block_size)
        attended = [(self._attend(attention, normed_BTD), mask_BT) for normed_BTD, mask_BT in normed]
        yield f"{prefix}.self_attn.o_proj.weight", _quantize_together([output], hessian(attended), block_size)
        self._add(output, attended)
        normed = [(block.post_attention_layernorm(hidden_BTD), mask_BT) for hidden_BTD, mask_BT in self.batches]
        gate_up = [mlp.gate_proj, mlp.up_proj]
        yield f"{prefix}.mlp.gate_up_proj.weight", _quantize_together(gate_up, hessian(normed), block_size)
        gated = [(mlp.act_fn(mlp.gate_proj(x_BTD)) * mlp.up_proj(x_BTD), mask_BT) for x_BTD, mask_BT in normed]
        yield f"{prefix}.mlp.down_proj.weight", _quantize_together([mlp.down_proj], hessian(gated), block_size)
        self._add(mlp.down_proj, gated)

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

    def _add(self, linear: nn.Module, inputs: Sequence[tuple[Tensor, Tensor]]) -> None:
        for (hidden_BTD, _), (input_BTK, _) in zip(self.batches, inputs, strict=True):
            hidden_BTD += linear(input_BTK)


def hessian(inputs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean of x xᵀ over the real tokens of (input_BTK, mask_BT) pairs."""
    size = inputs[0][0].shape[-1]
    total_KK = torch.zeros(size, size)
    count = 0
    for input_BTK, mask_BT in inputs:
        input_XK = input_BTK[mask_BT]
        total_KK += input_XK.T @ input_XK
        count += len(input_XK)
    return total_KK / count


def quantize_with_feedback(weight_NK: Tensor, hessian_KK: Tensor, *, block_size: int) -> QuantizedWeight:
    """int4 codes for which weight_NK @ x changes least, over inputs x with that second moment."""
    rows, columns = weight_NK.shape
    weight_NK = weight_NK.clone()
    importance_K = hessian_KK.diagonal().clone()
    upper_KK = _inverse_factor(hessian_KK)
    codes_NK = torch.zeros(rows, columns, dtype=torch.uint8)
    scales_NJ = torch.zeros(rows, columns // block_size, dtype=torch.float16)
    zero_points_NJ = torch.zeros(rows, columns // block_size, dtype=torch.uint8)
    step = max(COLUMNS_AT_ONCE, block_size)
    for begin in range(0, columns, step):
        end = min(begin + step, columns)
        errors_NC = torch.zeros(rows, end - begin)
        for column in range(begin, end):
            if column % block_size == 0:
                block = slice(column, column + block_size)
                scale_N, zero_point_N = best_range(weight_NK[:, block], importance_K[block])
                scales_NJ[:, column // block_size] = scale_N.half()
                zero_points_NJ[:, column // block_size] = zero_point_N.to(torch.uint8)
            code_N = ((weight_NK[:, column] / scale_N).round_() + zero_point_N).clamp_(0, LARGEST_CODE)
            codes_NK[:, column] = code_N.to(torch.uint8)
            error_N = (weight_NK[:, column] - (code_N - zero_point_N) * scale_N) / upper_KK[column, column]
            weight_NK[:, column + 1 : end] -= error_N[:, None] * upper_KK[column, column + 1 : end]
            errors_NC[:, column - begin] = error_N
        weight_NK[:, end:] -= errors_NC @ upper_KK[begin:end, end:]
    codes_NJM = codes_NK.reshape(rows, -1, block_size)
    return pack(codes_NJM.numpy(), scales_NJ.numpy(), zero_points_NJ.numpy(), bits=BITS)


def best_range(weight_NM: Tensor, importance_M: Tensor) -> tuple[Tensor, Tensor]:
    """Scale (a value of fp16, as float32) and zero point of each row's block, by the weighted squared error."""
    low_N1 = weight_NM.amin(1, keepdim=True).clamp(max=0.0)
    high_N1 = weight_NM.amax(1, keepdim=True).clamp(min=0.0)
    scales_NP = ((high_N1 - low_N1) / LARGEST_CODE * CLIPPING).half().float().clamp(min=float(SMALLEST_SCALE))
    zero_points_NP = (-low_N1 * CLIPPING / scales_NP).round_().clamp_(0, LARGEST_CODE)
    codes_NPM = (weight_NM[:, None] / scales_NP[..., None]).round_() + zero_points_NP[..., None]
    rounded_NPM = (codes_NPM.clamp_(0, LARGEST_CODE) - zero_points_NP[..., None]) * scales_NP[..., None]
    errors_NP = (rounded_NPM - weight_NM[:, None]).square_() @ importance_M
    best_N1 = errors_NP.argmin(1, keepdim=True)
    return scales_NP.gather(1, best_N1)[:, 0], zero_points_NP.gather(1, best_N1)[:, 0]


def _inverse_factor(hessian_KK: Tensor) -> Tensor:
    """U with UᵀU = H⁻¹, of the damped H; in float64, because H of few tokens is nearly singular."""
    damped_KK = hessian_KK.double()
    damped_KK.diagonal().add_(DAMPING * float(damped_KK.diagonal().mean()) + torch.finfo(torch.float32).tiny)
    inverse_KK = torch.cholesky_inverse(torch.linalg.cholesky(damped_KK))
    upper_KK: Tensor = torch.linalg.cholesky(inverse_KK, upper=True)
    return upper_KK.float()


def _quantize_together(linears: Sequence[nn.Linear], hessian_KK: Tensor, block_size: int) -> QuantizedWeight:
    """Quantize the rows of linears that share an input as one matrix, and put the rounded weights into them."""
    weight_NK = torch.cat([linear.weight for linear in linears])
    quantized = quantize_with_feedback(weight_NK, hessian_KK, block_size=block_size)
    rounded_NK = torch.from_numpy(dequantize(quantized))
    sizes = [len(linear.weight) for linear in linears]
    for linear, rows_NK in zip(linears, torch.split(rounded_NK, sizes), strict=True):
        linear.weight.copy_(rows_NK)
    return quantized


def _window_mask(length: int, sliding_window: int) -> Tensor | None:
    """None where plain causal attention is all that is needed, which sdpa computes without a mask."""
    if not 0 < sliding_window < length:
        return None
    distance_TT = torch.arange(length)[:, None] - torch.arange(length)
    return (distance_TT >= 0) & (distance_TT < sliding_window)


def _batches_by_length(texts: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    batch: list[Sequence[int]] = []
    for text in sorted(texts, key=len):
        if batch and len(text) * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def _pad(embedding_VD: Tensor, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """hidden_BTD of texts padded on the right, and mask_BT that is True on their tokens."""
    lengths = np.array([len(text) for text in texts])
    ids_BT = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long)
    for row, text in enumerate(texts):
        ids_BT[row, : len(text)] = torch.tensor(text)
    mask_BT = torch.arange(ids_BT.shape[1]) < torch.from_numpy(lengths)[:, None]
    return embedding_VD[ids_BT], mask_BT
