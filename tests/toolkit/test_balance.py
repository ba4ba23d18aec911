"""The bias update of the routers against its formula."""

from __future__ import annotations

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from toolkit.model.balance import ExpertBalance


def test_bias_moves_towards_the_mean_load_once_a_step() -> None:
    config = DeepseekV3Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
    )
    torch.manual_seed(0)
    model = DeepseekV3ForCausalLM(config)
    balance = ExpertBalance(model, rate=0.5)
    (router,) = balance.routers
    loads = [0, 0, 0, 0]

    def count(module: torch.nn.Module, inputs: object, outputs: tuple[torch.Tensor, ...]) -> None:
        for expert in outputs[2].flatten().tolist():
            loads[expert] += 1

    handle = router.register_forward_hook(count)
    for seed in (1, 2):  # two micro-batches of one step
        ids = torch.randint(0, 32, (3, 7), generator=torch.Generator().manual_seed(seed))
        model.train()(input_ids=ids)
    handle.remove()
    mean = sum(loads) / 4
    expected = [0.5 * ((mean > load) - (mean < load)) for load in loads]
    balance.move_biases()
    assert router.e_score_correction_bias.tolist() == expected
    model.eval()(input_ids=torch.arange(8)[None])
    balance.move_biases()  # evaluation is not counted
    assert router.e_score_correction_bias.tolist() == expected
