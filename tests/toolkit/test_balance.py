"""The bias update of the routers against its formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, Trainer, TrainingArguments, default_data_collator

from tests.samples import TINY_DEEPSEEK
from toolkit.model.balance import ExpertBalance

RATE = 0.5
EXPERTS, CHOSEN = 4, 2


@pytest.fixture
def model() -> DeepseekV3ForCausalLM:
    """A model with one dense layer and two layers of experts."""
    torch.manual_seed(0)
    experts = {"n_routed_experts": EXPERTS, "num_experts_per_tok": CHOSEN}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**(TINY_DEEPSEEK | experts)))


def counted(balance: ExpertBalance) -> list[list[int]]:
    """Count the loads of each layer with a hook of the test's own."""
    loads = [[0] * EXPERTS for _ in balance.routers]

    def counter(load: list[int]) -> Callable[..., None]:
        def count(module: torch.nn.Module, inputs: object, outputs: tuple[torch.Tensor, ...]) -> None:
            for expert in outputs[2].flatten().tolist():
                load[expert] += 1

        return count

    for router, load in zip(balance.routers, loads, strict=True):
        router.register_forward_hook(counter(load))
    return loads


def moved(load: list[int]) -> list[float]:
    """Return the bias after one update from zero."""
    return [RATE * float(np.sign(np.mean(load) - each)) for each in load]


def violation(load: list[int]) -> float:
    return float((np.max(load) - np.mean(load)) / np.mean(load))


def ids(seed: int) -> torch.Tensor:
    return torch.randint(0, 32, (3, 7), generator=torch.Generator().manual_seed(seed))


def biases(balance: ExpertBalance) -> list[list[float]]:
    return [router.e_score_correction_bias.tolist() for router in balance.routers]


def test_bias_of_each_layer_moves_towards_the_mean_load(model: DeepseekV3ForCausalLM) -> None:
    balance = ExpertBalance(model, rate=RATE)
    loads = counted(balance)
    model.train()(input_ids=ids(1))
    balance.move_biases()
    assert biases(balance) == [moved(load) for load in loads]
    assert np.allclose(balance.last_violation, [violation(load) for load in loads])
    assert max(balance.last_violation) > 0


def test_an_expert_with_the_mean_load_keeps_its_bias(model: DeepseekV3ForCausalLM) -> None:
    balance = ExpertBalance(model, rate=RATE)
    balance.loads_E = [torch.tensor([2, 2, 1, 3]), torch.tensor([2, 2, 2, 2])]
    balance.move_biases()
    assert biases(balance) == [[0, 0, RATE, -RATE], [0, 0, 0, 0]]
    assert balance.last_violation == [0.5, 0.0]


def test_evaluation_is_not_counted(model: DeepseekV3ForCausalLM) -> None:
    balance = ExpertBalance(model, rate=RATE)
    model.eval()(input_ids=ids(1))
    balance.move_biases()
    assert biases(balance) == [[0.0] * EXPERTS] * 2


def test_a_layer_that_is_recomputed_counts_its_tokens_once(model: DeepseekV3ForCausalLM) -> None:
    balance = ExpertBalance(model)
    loads = counted(balance)
    model.activation_checkpointing_enable()
    model.train()(input_ids=ids(1), labels=ids(1), use_cache=False).loss.backward()
    assert [sum(load) for load in loads] == [2 * CHOSEN * ids(1).numel()] * 2  # it ran twice
    assert [int(load_E.sum()) for load_E in balance.loads_E] == [CHOSEN * ids(1).numel()] * 2


def test_bias_moves_once_an_update_however_many_micro_batches(model: DeepseekV3ForCausalLM, tmp_path: Path) -> None:
    rows = [{"input_ids": row, "labels": row} for row in torch.cat([ids(1), ids(2)]).tolist()]
    balance = ExpertBalance(model, rate=RATE)
    loads = counted(balance)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        data_collator=default_data_collator,
        callbacks=[balance],
    )
    trainer.train()
    assert [sum(load) for load in loads] == [CHOSEN * 2 * ids(1).numel()] * 2
    assert biases(balance) == [moved(load) for load in loads]
    logs: dict[str, Any] = {"loss": 1.0}
    balance.on_log(trainer.args, trainer.state, trainer.control, logs)
    assert np.allclose(logs["max_violation_by_layer"], [violation(load) for load in loads])
    assert logs["max_violation"] == max(logs["max_violation_by_layer"])
