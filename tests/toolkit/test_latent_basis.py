"""A calibrated basis: what it keeps, and that nothing of its rank keeps more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from tests.samples import TINY_DEEPSEEK, TRACE
from toolkit.errors import InputError
from toolkit.model.latent_basis import calibrate, latent_layers, trace_rows
from toolkit.records import Problem, write_records

ROWS = torch.randint(100, (8, 50), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture
def model() -> DeepseekV3ForCausalLM:
    torch.manual_seed(0)
    changes = {"vocab_size": 100, "num_hidden_layers": 2, "first_k_dense_replace": 2, "initializer_range": 0.3}
    sizes = {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": None}
    latents = {"kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**(TINY_DEEPSEEK | changes | sizes | latents))).eval()


def test_full_rank_gives_every_latent_back(model: DeepseekV3ForCausalLM) -> None:
    for basis in calibrate(model, ROWS, 24):
        torch.testing.assert_close(basis.encode @ basis.decode, torch.eye(24), atol=1e-5, rtol=0)


def test_the_folded_weight_reads_projected_latents(model: DeepseekV3ForCausalLM) -> None:
    latent_SC = torch.randn(30, 24)
    for layer, basis in zip(latent_layers(model), calibrate(model, ROWS, 10), strict=True):
        projected_SP = basis.project(latent_SC)
        expected = layer.kv_b_proj(basis.lift(projected_SP)).unflatten(-1, (4, 28))
        found = torch.einsum("sp,hxp->shx", projected_SP, basis.folded)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_directions_that_no_head_reads_are_left_out_however_large(model: DeepseekV3ForCausalLM) -> None:
    with torch.no_grad():
        for layer in latent_layers(model):
            layer.kv_a_layernorm.weight[::2] = 3.0
            layer.kv_b_proj.weight[:, ::2] = 0.0
    torch.manual_seed(1)
    latent_SC = torch.randn(30, 24)
    for layer, basis in zip(latent_layers(model), calibrate(model, ROWS, 12), strict=True):
        read = layer.kv_b_proj(basis.lift(basis.project(latent_SC)))
        torch.testing.assert_close(read, layer.kv_b_proj(latent_SC), atol=1e-3, rtol=1e-3)


def test_no_projection_of_this_rank_keeps_keys_and_values_better(model: DeepseekV3ForCausalLM) -> None:
    bases, layers = calibrate(model, ROWS, 9), latent_layers(model)
    latents: list[list[torch.Tensor]] = [[], []]
    for seen, layer in zip(latents, layers, strict=True):
        layer.kv_a_layernorm.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output[0]))
    with torch.no_grad():
        for row in ROWS:
            model(torch.tensor([row]), use_cache=False)
    for basis, layer, seen in zip(bases, layers, latents, strict=True):
        weight = layer.kv_b_proj.weight.detach().double().numpy()
        latent_SC = torch.cat(seen)
        lost_SC = (latent_SC - basis.lift(basis.project(latent_SC))).double().numpy()
        singular = np.linalg.svd(latent_SC.double().numpy() @ weight.T, compute_uv=False)
        # Eckart and Young: the best of rank 9 loses the other singular values
        np.testing.assert_allclose(np.linalg.norm(lost_SC @ weight.T) ** 2, (singular[9:] ** 2).sum(), rtol=1e-3)


def test_calibration_leaves_no_hook_behind(model: DeepseekV3ForCausalLM) -> None:
    calibrate(model, ROWS, 9)
    assert not any(module._forward_hooks for module in model.modules())


def test_rank_beyond_the_model_is_refused(model: DeepseekV3ForCausalLM) -> None:
    with pytest.raises(InputError, match=r"rank \(25\) must be from 1 to the model's kv_lora_rank \(24\)"):
        calibrate(model, ROWS, 25)


def test_too_few_tokens_are_refused(model: DeepseekV3ForCausalLM) -> None:
    with pytest.raises(InputError, match=r"calibration tokens \(8\) must be at least the cache's rank \(9\)"):
        calibrate(model, [ROWS[0][:5], ROWS[1][:3]], 9)


def test_a_trace_of_an_unknown_problem_is_refused(tmp_path: Path, tiny_student: Path) -> None:
    from toolkit.formats.chat_format import ChatFormat

    problem = Problem.create(family="sum", question="1 + 1?", answer="2")
    trace = replace(TRACE, problem_id=problem.id, reasoning="1 and 1 are 2", answer="2")
    chat_format = ChatFormat.from_folder(tiny_student)
    write_records(tmp_path / "problems.jsonl", [problem])
    write_records(tmp_path / "traces.jsonl", [trace])
    ((row, is_completion),) = trace_rows(tmp_path, chat_format)
    assert row[: is_completion.index(True)] == chat_format.question_ids("1 + 1?")
    assert "1 and 1 are 2" in chat_format.decode(row)
    write_records(tmp_path / "problems.jsonl", [Problem.create(family="sum", question="2 + 2?", answer="4")])
    with pytest.raises(InputError, match=f"{problem.id}.* must be in .*problems.jsonl"):
        trace_rows(tmp_path, chat_format)
