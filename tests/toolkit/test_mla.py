"""Absorbed latent attention against transformers' own, on layers with the head shapes of DeepSeek's models.

Where the cache keeps less, transformers' own attention reads what numpy makes of the latents.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer

from toolkit.model import mla
from toolkit.model.cache import GrowingLayer, LatentLayer, make_cache
from toolkit.model.decoder import load_model
from toolkit.model.latent_basis import Basis, calibrate

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 64,
}
SMALL: dict[str, Any] = {  # around attention of the real shape
    "vocab_size": 100,
    "hidden_size": 128,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 4096,
    "initializer_range": 0.1,  # attention that is far from even
}
SHAPES = {
    "v2_lite": lambda: DeepseekV2ForCausalLM(
        DeepseekV2Config(
            **SMALL, num_attention_heads=16, num_key_value_heads=16, q_lora_rank=None, rope_parameters=YARN
        )
    ),
    "v3": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **SMALL, num_attention_heads=32, num_key_value_heads=32, q_lora_rank=192, n_group=4, topk_group=2
        )
    ),
    "v3_yarn": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **SMALL,
            num_attention_heads=8,
            num_key_value_heads=8,
            q_lora_rank=None,
            n_group=1,
            topk_group=1,
            rope_parameters=YARN,
        )
    ),
}


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    made: PreTrainedModel = SHAPES[request.param]().eval()
    return made


class RoundedLayer(DynamicLayer):
    """Keeps latents as numpy has projected and rounded them; the first pass reads exact ones."""

    def __init__(self, basis: Basis | None, *, int8: bool) -> None:
        super().__init__()
        self.basis, self.int8 = basis, int8

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        is_first = not self.is_initialized
        encode, decode = (np.eye(512), np.eye(512)) if self.basis is None else (self.basis.encode, self.basis.decode)
        latent = self.rounded(key_states.double().numpy() @ np.asarray(encode, float)) @ np.asarray(decode, float)
        kept = super().update(torch.from_numpy(latent).float(), value_states)
        return (key_states, value_states) if is_first else kept

    def rounded(self, rows: Any) -> Any:
        unit = np.abs(rows).max(-1, keepdims=True) / 127
        return np.rint(rows / unit) * unit if self.int8 else rows


@torch.inference_mode()
def logits(
    model: PreTrainedModel,
    chunks: list[Tensor],
    mask_BS: Tensor,
    make_layer: Callable[[int], Any] = lambda number: GrowingLayer(),
) -> Tensor:
    """Return the logits of all positions, fed chunk by chunk through one cache."""
    cache, end, found = make_cache(model.config.num_hidden_layers, make_layer), 0, []
    positions_BS = (mask_BS.cumsum(1) - 1).clamp(min=0)
    for chunk_BT in chunks:
        start, end = end, end + chunk_BT.shape[1]
        out = model(
            chunk_BT,
            attention_mask=mask_BS[:, :end],
            position_ids=positions_BS[:, start:end],
            past_key_values=cache,
            use_cache=True,
        )
        found.append(out.logits)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("new_tokens", [[1, 1, 1], [4, 1]])
@pytest.mark.parametrize("padding", [0, 9])
def test_logits_are_those_of_the_expanded_form(model: PreTrainedModel, new_tokens: list[int], padding: int) -> None:
    ids_BS = torch.randint(100, (3, 40 + sum(new_tokens)), generator=torch.Generator().manual_seed(1))
    mask_BS = torch.ones_like(ids_BS)
    mask_BS[1, :padding] = 0
    chunks = list(ids_BS.split([40, *new_tokens], dim=1))
    expected = logits(model, chunks, mask_BS)
    assert mla.absorb(model)
    found = logits(model, chunks, mask_BS)
    real = mask_BS.bool()
    torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=0)  # 1.05e-5 without vector instructions


@pytest.mark.parametrize(("rank", "int8"), [(0, True), (48, False), (48, True)])
@pytest.mark.parametrize("padding", [0, 9])
def test_a_smaller_cache_is_attended_to_as_what_it_stands_for(
    model: PreTrainedModel, rank: int, int8: bool, padding: int
) -> None:
    model.model.layers = model.model.layers[:1]  # behind a second layer's rounding, a last bit becomes a step of int8
    model.config.num_hidden_layers = 1
    new_tokens = [1, 4, 171, *[1] * 30]  # absorbed, several at once, too many to absorb, past a buffer's end
    ids_BS = torch.randint(100, (2, 40 + sum(new_tokens)), generator=torch.Generator().manual_seed(1))
    mask_BS = torch.ones_like(ids_BS)
    mask_BS[1, :padding] = 0
    chunks = list(ids_BS.split([40, *new_tokens], dim=1))
    bases: list[Any] = calibrate(model, ids_BS.tolist(), rank) if rank else [None]
    expected = logits(model, chunks, mask_BS, lambda number: RoundedLayer(bases[number], int8=int8))
    mla.absorb(model)
    found = logits(model, chunks, mask_BS, lambda number: LatentLayer(bases[number], int8=int8))
    exact = logits(model, chunks, mask_BS)
    real = mask_BS.bool()
    # int8: a number in the middle between two may fall to either
    torch.testing.assert_close(found[real], expected[real], atol=2e-3 if int8 else 1e-4, rtol=0)
    assert (found - exact)[real].norm() > 10 * (found - expected)[real].norm()


def test_full_rank_attends_as_the_exact_cache(model: PreTrainedModel) -> None:
    ids_BS = torch.randint(100, (2, 600), generator=torch.Generator().manual_seed(1))
    bases = calibrate(model, ids_BS.tolist(), 512)
    mla.absorb(model)
    chunks, mask_BS = list(ids_BS[:, :50].split([40, 1, 9], dim=1)), torch.ones(2, 50, dtype=torch.long)
    found = logits(model, chunks, mask_BS, lambda number: LatentLayer(bases[number], int8=False))
    torch.testing.assert_close(found, logits(model, chunks, mask_BS), atol=1e-4, rtol=0)  # 1.1e-5 with AVX2's sums


def test_rows_that_stay_in_an_int8_cache_keep_their_tokens() -> None:
    layer = LatentLayer(None, int8=True)
    latent_B1SC, rotated_B1SR = torch.randn(3, 1, 70, 512), torch.randn(3, 1, 70, 64)
    layer.update(latent_B1SC, rotated_B1SR)
    layer.keep(torch.tensor([2, 0]), 5)
    layer.update(latent_B1SC[[2, 0], :, :1], rotated_B1SR[[2, 0], :, :1])
    found_latent, found_rotated = layer.restore()
    for found, given in ((found_latent, latent_B1SC), (found_rotated, rotated_B1SR)):
        expected = torch.cat([given[[2, 0], :, 5:], given[[2, 0], :, :1]], dim=2)
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0)  # half of 1/127 of the largest, about 4


def test_many_new_tokens_take_the_expanded_form(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    absorbed = mla._absorbed

    def watched(module: Any, query_BHTX: Tensor, *rest: Any) -> Tensor:
        taken.append(query_BHTX.shape[2])
        return absorbed(module, query_BHTX, *rest)

    monkeypatch.setattr(mla, "_absorbed", watched)
    mla.absorb(model)
    ids_BS = torch.randint(100, (1, 220), generator=torch.Generator().manual_seed(2))
    logits(model, list(ids_BS.split([10, 170, 39, 1], dim=1)), torch.ones_like(ids_BS))
    # 170 = C·(N + U) / (2C − N − U), in both layers
    assert taken == [170, 170, 39, 39, 1, 1]
    taken.clear()
    logits(model, list(ids_BS.split([10, 171, 39], dim=1)), torch.ones_like(ids_BS))
    assert taken == [39, 39]


def test_a_model_without_latents_is_left_alone(tiny_student: Path) -> None:
    llama = load_model(tiny_student, torch.float32)
    assert not mla.absorb(llama)
    assert llama.config._attn_implementation == "sdpa"
