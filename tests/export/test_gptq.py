"""Error feedback against rounding to nearest, and against a solver written as the paper's plain loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.checkpoint import MATRICES, Checkpoint
from export.gptq import DAMPING, CalibrationStream, best_range, hessian, quantize_with_feedback
from export.quantize import dequantize, quantize_nearest


def correlated_inputs(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(size, size, generator=generator) * torch.linspace(2.0, 0.05, size)[:, None]
    return torch.randn(count, size, generator=generator) @ mixing


def output_error(weight_NK: Tensor, restored_NK: np.ndarray, inputs_XK: Tensor) -> float:
    return float((inputs_XK @ (weight_NK - torch.from_numpy(restored_NK)).T).square().mean())


def test_outputs_err_less_than_half_of_rounding_to_nearest() -> None:
    inputs_XK = correlated_inputs(2000, 128)
    weight_NK = torch.randn(48, 128, generator=torch.Generator().manual_seed(1))
    second_moment_KK = inputs_XK.T @ inputs_XK / len(inputs_XK)
    fed_back = dequantize(quantize_with_feedback(weight_NK, second_moment_KK, block_size=32))
    nearest = dequantize(quantize_nearest(weight_NK.numpy(), bits=4, block_size=32))
    assert output_error(weight_NK, fed_back, inputs_XK) < 0.5 * output_error(weight_NK, nearest, inputs_XK)


def test_codes_equal_those_of_optimal_brain_quantization_solved_column_by_column() -> None:
    """The oracle updates all remaining columns by H⁻¹ of the columns still free, inverted anew for each column."""
    inputs_XK = correlated_inputs(500, 64)
    second_moment_KK = inputs_XK.T @ inputs_XK / len(inputs_XK)
    weight_NK = torch.randn(6, 64, generator=torch.Generator().manual_seed(2))
    expected = torch.zeros_like(weight_NK)
    work_NK = weight_NK.double()
    damped_KK = second_moment_KK.double() + DAMPING * second_moment_KK.diagonal().mean() * torch.eye(64)
    for column in range(64):
        if column % 32 == 0:
            block = slice(column, column + 32)
            scale_N, zero_N = best_range(work_NK[:, block].float(), second_moment_KK.diagonal()[block])
        codes_N = (torch.round(work_NK[:, column].float() / scale_N) + zero_N).clamp(0, 15)
        expected[:, column] = (codes_N - zero_N) * scale_N
        inverse_KK = torch.linalg.inv(damped_KK[column:, column:])
        error_N = (work_NK[:, column] - expected[:, column]) / inverse_KK[0, 0]
        work_NK[:, column:] -= error_N[:, None] * inverse_KK[0]
    found = dequantize(quantize_with_feedback(weight_NK, second_moment_KK, block_size=32))
    assert np.isclose(found, expected.numpy(), atol=1e-6).mean() > 0.98  # a value on the edge may fall either way


def test_the_hessian_leaves_padding_out() -> None:
    inputs_BTK = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))
    mask_BT = torch.tensor([[True] * 5, [True, True, False, False, False]])
    rows = [inputs_BTK[b, t] for b in range(2) for t in range(5) if mask_BT[b, t]]
    expected_KK = sum(torch.outer(row, row) for row in rows) / len(rows)
    torch.testing.assert_close(hessian([(inputs_BTK, mask_BT)]), expected_KK)


def test_a_column_that_never_fires_does_not_break_the_solver() -> None:
    inputs_XK = correlated_inputs(200, 64)
    inputs_XK[:, 10] = 0.0
    weight_NK = torch.randn(4, 64, generator=torch.Generator().manual_seed(4))
    for second_moment_KK in (inputs_XK.T @ inputs_XK, torch.zeros(64, 64)):
        assert np.isfinite(dequantize(quantize_with_feedback(weight_NK, second_moment_KK, block_size=32))).all()


def test_the_stream_carries_what_the_quantized_layers_say(checkpoint_folder: Path) -> None:
    """After both layers the stream must equal the hidden states of a transformers model with the same rounded weights."""
    from transformers import AutoModelForCausalLM

    texts = [[5, 9, 30, 2, 7, 11, 12, 13, 80, 3], [8, 4, 99], [1, 2, 3, 4, 5, 6]]
    checkpoint = Checkpoint(checkpoint_folder)
    stream = CalibrationStream(checkpoint, texts)
    model = AutoModelForCausalLM.from_pretrained(checkpoint_folder, dtype=torch.float32)
    for layer in range(checkpoint.config.num_hidden_layers):
        block = model.model.layers[layer]
        for name, quantized in stream.quantize_layer(layer, block_size=32):
            rounded_NK = torch.from_numpy(dequantize(quantized))
            module = name.removeprefix(f"model.layers.{layer}.").removesuffix(".weight")
            linears = [block.get_submodule(part) for part in MATRICES[module]]
            sizes = [len(linear.weight) for linear in linears]
            for linear, piece in zip(linears, torch.split(rounded_NK, sizes), strict=True):
                linear.weight.data = piece
    (hidden_BTD, mask_BT) = stream.batches[0]
    captured: list[Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda module, arguments: captured.append(arguments[0].detach()))
    for row, text in enumerate(sorted(texts, key=len)):
        model(torch.tensor([text]))
        torch.testing.assert_close(hidden_BTD[row][mask_BT[row]], captured[-1][0], rtol=1e-3, atol=1e-4)
