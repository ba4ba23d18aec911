"""Both streams carry their models' hidden states, and a weight is aimed as least squares would have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from export.calibration.embedding import embedding_rounding
from export.calibration.hidden_states import Batch
from export.calibration.rounding import DRIFT_DAMPING, Calibrated, aimed, importance, moments
from export.calibration.stream import CalibrationStream
from export.checkpoint.heads import head_order
from export.checkpoint.model_config import ModelConfig
from export.checkpoint.tensors import Checkpoint, vectors
from export.quantization.codes import Weight, dequantize
from export.quantization.gptq import quantize_with_feedback
from export.quantization.layout import Layout, layouts
from export.quantization.search import quantize_by_importance


def test_moments_leave_padding_out() -> None:
    quantized_BTK, float_BTK = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(3))
    mask_BT = torch.tensor([[True] * 5, [True, True, False, False, False]])
    places = [(b, t) for b in range(2) for t in range(5) if mask_BT[b, t]]
    inputs, targets = ([values[place] for place in places] for values in (quantized_BTK, float_BTK))
    hessian_KK, drift_KK = moments([Batch(quantized_BTK=quantized_BTK, float_BTK=float_BTK, mask_BT=mask_BT)])
    pairs = list(zip(inputs, targets, strict=True))
    torch.testing.assert_close(hessian_KK, sum(torch.outer(x, x) for x in inputs) / len(inputs))
    torch.testing.assert_close(drift_KK, sum(torch.outer(y - x, x) for x, y in pairs) / len(pairs))


def test_moments_of_many_columns_are_symmetric_and_have_the_precision_of_fp32() -> None:
    """There are more columns than are computed at once, and oneDNN's own sums must not be those of bf16."""
    quantized_BTK, float_BTK = torch.randn(2, 3, 40, 600, generator=torch.Generator().manual_seed(3))
    mask_BT = torch.ones(3, 40, dtype=torch.bool)
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    found = moments([Batch(quantized_BTK=quantized_BTK, float_BTK=float_BTK, mask_BT=mask_BT)])
    assert products.fp32_precision == before
    input_XK, float_XK = quantized_BTK.flatten(0, 1).double(), float_BTK.flatten(0, 1).double()
    for found_KK, left_XK in zip(found, (input_XK, float_XK - input_XK), strict=True):
        torch.testing.assert_close(found_KK.double(), left_XK.T @ input_XK / len(input_XK), rtol=0, atol=1e-5)
    assert bool((found[0] == found[0].T).all())


def test_an_aimed_weight_is_the_least_squares_answer_to_the_drift() -> None:
    """The oracle solves the ridge regression as a stack of rows."""
    generator = torch.Generator().manual_seed(1)
    input_XK = torch.randn(300, 12, generator=generator)
    float_XK = input_XK + 0.2 * torch.randn(300, 12, generator=generator) + 0.3 * input_XK.roll(1, 1)
    weight_NK = torch.randn(4, 12, generator=generator)
    batch = Batch(quantized_BTK=input_XK[None], float_BTK=float_XK[None], mask_BT=torch.ones(1, 300, dtype=torch.bool))
    hessian_KK, drift_KK = moments([batch])
    pull = (300 * DRIFT_DAMPING * hessian_KK.diagonal().mean()).sqrt()
    rows = torch.cat([input_XK, pull * torch.eye(12)])
    wanted = torch.cat([(float_XK - input_XK) @ weight_NK.T, torch.zeros(12, 4)])
    expected_NK = weight_NK + torch.linalg.lstsq(rows, wanted).solution.T
    found_NK = aimed(weight_NK, hessian_KK, weight_NK @ drift_KK)
    torch.testing.assert_close(found_NK, expected_NK, rtol=1e-3, atol=1e-4)
    assert ((float_XK @ weight_NK.T - input_XK @ found_NK.T).square().sum()) < 0.5 * (
        ((float_XK - input_XK) @ weight_NK.T).square().sum()
    )


def test_importance_is_the_diagonal_of_the_second_moment() -> None:
    quantized_BTK = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))
    mask_BT = torch.tensor([[True] * 5, [True, True, False, False, False]])
    batches = [
        Batch(quantized_BTK=quantized_BTK[some], float_BTK=quantized_BTK[some], mask_BT=mask_BT[some])
        for some in (slice(0, 1), slice(1, 2))
    ]
    torch.testing.assert_close(importance(batches), moments(batches)[0].diagonal())


def as_stored(rounded_NK: torch.Tensor, config: ModelConfig, layer: int, letters: str) -> torch.Tensor:
    """Put the channels of heads back to where the checkpoint has them; what was added must still be zeros."""
    sizes = config.qkv_sizes if letters == "qkv" else (len(rounded_NK),)
    parts = []
    for letter, part_NK in zip(letters, rounded_NK.split(sizes), strict=True):
        heads_HAK = part_NK.unflatten(0, (-1, config.padded_head_dim))
        stored_HAK = torch.full((len(heads_HAK), config.head_dim, heads_HAK.shape[-1]), torch.nan)
        for place, channel in enumerate(head_order(config, layer, letter).tolist()):
            if channel < config.head_dim:
                stored_HAK[:, channel] = heads_HAK[:, place]
            else:
                assert not heads_HAK[:, place].any()
        parts.append(stored_HAK.flatten(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("method", get_args(Calibrated))
def test_the_streams_carry_what_the_quantized_and_the_float_layers_say(
    checkpoint_folder: Path, method: Calibrated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After both layers they must equal the hidden states of transformers' model, with rounded weights and without."""
    from transformers import AutoModelForCausalLM

    texts = [[5, 9, 30, 2, 7, 11, 12, 13, 80, 3], [8, 4, 99], [1, 2, 3, 4, 5, 6]]
    checkpoint = Checkpoint(checkpoint_folder)
    chosen = layouts(checkpoint.config, bits=4, block_size=64, head_bits=8)
    chosen["model.embed_tokens.weight"] = Layout(bits=4, block_size=32)
    norms = vectors(checkpoint)
    rounding = embedding_rounding(checkpoint, norms, chosen, method)
    stream = CalibrationStream(checkpoint, texts, norms, rounding, method, tmp_path)
    embedding = rounding(checkpoint.tensor("model.embed_tokens.weight"))
    model, reference = (AutoModelForCausalLM.from_pretrained(checkpoint_folder, dtype=torch.float32) for _ in range(2))
    model.model.embed_tokens.weight = torch.nn.Parameter(torch.from_numpy(dequantize(embedding)))
    taken: dict[str, list[Weight]] = {}
    for layer in range(checkpoint.config.num_hidden_layers):
        block = model.model.layers[layer]
        taken.clear()
        stream.quantize_layer(layer, chosen, lambda name, rows, slices: taken.update({name: list(slices)}))
        for name, [quantized] in taken.items():
            assert (quantized.bits, quantized.block_size) == (4, chosen[name].block_size)
            module = name.removeprefix(f"model.layers.{layer}.").removesuffix(".weight")
            linears = [block.get_submodule(part) for part in checkpoint.config.family.sources[module]]
            sizes = [len(linear.weight) for linear in linears]
            rounded_NK = torch.from_numpy(dequantize(quantized))
            if module == "self_attn.qkv_proj":
                rounded_NK = as_stored(rounded_NK, checkpoint.config, layer, "qkv")
            if module == "self_attn.o_proj":
                rounded_NK = as_stored(rounded_NK.T, checkpoint.config, layer, "v").T
            for linear, piece in zip(linears, torch.split(rounded_NK, sizes), strict=True):
                linear.weight.data = piece
    [batch] = stream.states
    for row, text in enumerate(sorted(texts, key=len)):
        real = batch.mask_BT[row]
        for hidden_BTD, network in ((batch.quantized_BTK, model), (batch.float_BTK, reference)):
            torch.testing.assert_close(hidden_BTD[row][real], _last_hidden(network, text), rtol=1e-3, atol=1e-4)
    assert_head_is_fitted_to_what_the_norm_says(stream, method, model, reference, texts, monkeypatch)


def assert_head_is_fitted_to_what_the_norm_says(
    stream: CalibrationStream,
    method: Calibrated,
    model: Any,
    reference: Any,
    texts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its rows arrive in pieces, which equal the whole matrix quantized on the states of transformers' models."""
    layout = Layout(bits=4, block_size=32)
    float_VD = reference.lm_head.weight.detach()
    monkeypatch.setattr("export.checkpoint.tensors.SLICE_WEIGHTS", 40 * float_VD.shape[1])
    pieces = list(stream.quantize_head(layout))
    assert len(pieces) == -(-len(float_VD) // 40)
    batch = Batch(
        quantized_BTK=torch.cat([_normed(model, text) for text in texts])[None],
        float_BTK=torch.cat([_normed(reference, text) for text in texts])[None],
        mask_BT=torch.ones(1, sum(map(len, texts)), dtype=torch.bool),
    )
    hessian_KK, drift_KK = moments([batch])
    if method == "searched":
        whole = quantize_by_importance(float_VD, importance([batch]), bits=4, block_size=32)
    else:
        target_VD = aimed(float_VD, hessian_KK, float_VD @ drift_KK)
        whole = quantize_with_feedback(target_VD, hessian_KK, bits=4, block_size=32)
    same = np.concatenate([piece.codes for piece in pieces]) == whole.codes
    assert same.mean() > 0.98, "but for the order of sums"


def _normed(model: Any, text: list[int]) -> Tensor:
    """Return the head's inputs."""
    normed_TD: Tensor = model.model.norm(_last_hidden(model, text)).detach()
    return normed_TD


def _last_hidden(model: Any, text: list[int]) -> Tensor:
    """Return the last norm's inputs."""
    captured: list[Tensor] = []
    hook = model.model.norm.register_forward_pre_hook(lambda module, arguments: captured.append(arguments[0].detach()))
    model(torch.tensor([text]))
    hook.remove()
    return captured[0][0]
