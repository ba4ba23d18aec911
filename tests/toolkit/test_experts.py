"""The mixture of experts against its formulas, written as loops over tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import DeepseekV3Config, PreTrainedModel
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3ForCausalLM, DeepseekV3MoE

from tests.samples import TINY_DEEPSEEK
from toolkit.model import experts

TOKENS = 37
IMPLEMENTATIONS = ("eager", "grouped_mm", experts.NAME)
Array = np.ndarray[Any, np.dtype[np.float64]]


def config(implementation: str, **changes: Any) -> DeepseekV3Config:
    experts = {"n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2}
    shape = TINY_DEEPSEEK | experts | {"num_hidden_layers": 2, "routed_scaling_factor": 2.5}
    made = DeepseekV3Config(**(shape | changes))
    made._experts_implementation = implementation
    return made


def mixture(implementation: str, **changes: Any) -> DeepseekV3MoE:
    """A layer whose biases matter: they vary as much as the scores."""
    torch.manual_seed(0)
    layer: DeepseekV3MoE = DeepseekV3MoE(config(implementation, **changes))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.normal_(layer.gate.e_score_correction_bias, std=0.5)
    return layer


def numbers(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy()


def feed_forward(x: Array, gate: Array, up: Array, down: Array) -> Array:
    hidden = gate @ x
    return np.asarray(down @ (hidden / (1 + np.exp(-hidden)) * (up @ x)))


def routed(layer: DeepseekV3MoE, x: Array) -> dict[int, float]:
    """Return the weight of each expert that one token is routed to."""
    settings = layer.config
    scores = 1 / (1 + np.exp(-numbers(layer.gate.weight) @ x))
    biased = scores + numbers(layer.gate.e_score_correction_bias)
    groups = np.split(np.arange(scores.size), settings.n_group)
    ranked = sorted(groups, key=lambda group: np.sort(biased[group])[-2:].sum())
    allowed = np.concatenate(ranked[-settings.topk_group :])
    chosen = sorted(allowed, key=lambda expert: biased[expert])[-settings.num_experts_per_tok :]
    total = sum(scores[expert] for expert in chosen)
    return {int(expert): settings.routed_scaling_factor * scores[expert] / total for expert in chosen}


def expected(layer: DeepseekV3MoE, x: Array) -> Array:
    """Compute y = Σ w_e E_e(x) + shared(x)."""
    shared = layer.shared_experts
    y = feed_forward(x, *(numbers(part.weight) for part in (shared.gate_proj, shared.up_proj, shared.down_proj)))
    for expert, weight in routed(layer, x).items():
        gate, up = np.split(numbers(layer.experts.gate_up_proj[expert]), 2)
        y = y + weight * feed_forward(x, gate, up, numbers(layer.experts.down_proj[expert]))
    return y


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_layer_equals_its_formulas(implementation: str) -> None:
    layer = mixture(implementation)
    x_TD = torch.randn(TOKENS, 16)
    y_TD = numbers(layer(x_TD[None])[0])
    for x, y in zip(numbers(x_TD), y_TD, strict=True):
        assert np.allclose(y, expected(layer, x), atol=1e-4)


def test_a_masked_group_never_wins_even_where_all_others_score_below_zero() -> None:
    layer = mixture("eager")
    layer.gate.e_score_correction_bias.fill_(-5)  # a mask of 0 instead of −inf would prefer the masked experts
    layer.gate.e_score_correction_bias[:4] += 1
    x_TD = torch.randn(TOKENS, 16)
    _, weights_TK, chosen_TK = layer.gate(x_TD)
    assert int(chosen_TK.max()) < 4
    for x, chosen, weights in zip(numbers(x_TD), chosen_TK.tolist(), weights_TK.tolist(), strict=True):
        assert dict(zip(chosen, weights, strict=True)) == pytest.approx(routed(layer, x), rel=1e-5)


def gradients(implementation: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    layer = mixture(implementation)
    torch.manual_seed(1)
    x_1TD = torch.randn(1, TOKENS, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y_1TD = layer(x_1TD)
    (y_1TD.float() * torch.randn(1, TOKENS, 16)).sum().backward()
    assert x_1TD.grad is not None
    found = {name: parameter.grad for name, parameter in layer.named_parameters() if parameter.grad is not None}
    return {"y": y_1TD.detach().float(), "x": x_1TD.grad} | found


def test_gradients_equal_those_of_transformers_own_experts() -> None:
    theirs, ours = gradients("eager", torch.float32), gradients(experts.NAME, torch.float32)
    assert ours.keys() == theirs.keys() and "gate.weight" in ours and "experts.down_proj" in ours
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, atol=1e-4, rtol=1e-4), name


def test_bf16_rounds_no_more_than_transformers_own_experts() -> None:
    exact = gradients("eager", torch.float32)
    errors = {
        name: {key: float((tensor - exact[key]).norm() / exact[key].norm()) for key, tensor in found.items()}
        for name, found in ((each, gradients(each, torch.bfloat16)) for each in IMPLEMENTATIONS)
    }
    for key in exact:
        assert errors[experts.NAME][key] <= 1.3 * max(errors["eager"][key], errors["grouped_mm"][key]), key


def test_an_expert_without_tokens_gets_a_gradient_of_zero() -> None:
    layer = mixture(experts.NAME)
    layer.gate.e_score_correction_bias[5] = -100
    layer(torch.randn(1, TOKENS, 16)).sum().backward()
    assert layer.experts.down_proj.grad[5].abs().max() == 0
    assert layer.experts.gate_up_proj.grad[5].abs().max() == 0
    assert layer.experts.gate_up_proj.grad.isfinite().all()


def test_model_takes_the_implementation_by_its_name_and_does_not_save_it() -> None:
    torch.manual_seed(0)
    model: PreTrainedModel = DeepseekV3ForCausalLM(config("eager")).eval()
    ids_BT = torch.randint(0, 32, (2, 9))
    before = model(input_ids=ids_BT).logits
    model.set_experts_implementation(experts.NAME)
    assert model.config._experts_implementation == experts.NAME
    assert torch.allclose(model(input_ids=ids_BT).logits, before, atol=1e-5)
    assert experts.NAME not in model.config.to_json_string(use_diff=False)
