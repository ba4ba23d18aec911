"""GRPO on a tiny mixture of experts: groups, dynamic sampling, and a run that was killed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trl.trainer.grpo_trainer import GRPOTrainer

from distill.problems.families import make_problems
from distill.reinforcement import grpo
from distill.reinforcement.grpo import GroupTrainer, GrpoConfig, make_trainer
from distill.teach.teach import reason_rl
from distill.teach.teacher_recipe import quick
from distill.training.journal import run_trainer
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.model.decoder import load_model
from toolkit.records import Problem

PROBLEMS = make_problems("train", 4, 9)


@pytest.fixture(scope="module")
def cold_start(taught: Path) -> Path:
    return taught / "seed-1" / "cold_start"


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> GrpoConfig:
    """Reward the letter e, in which even an untrained model's samples differ."""
    monkeypatch.setattr(grpo, "REWARDS", {"e": lambda problem, text: text.count("e") / (1 + len(text))})
    return replace(quick().reason_rl, steps=4, weights={"e": 1.0}, learning_rate=1e-3)


def trainer(base: Path, config: GrpoConfig, folder: Path) -> GroupTrainer:
    torch.manual_seed(0)
    return make_trainer(load_model(base, torch.float32), base, PROBLEMS, config, folder)


def test_the_reward_rises(cold_start: Path, config: GrpoConfig, tmp_path: Path) -> None:
    longer = replace(config, steps=30, groups=4, group_size=4, micro_batch=16, learning_rate=3e-3)
    made = trainer(cold_start, longer, tmp_path)
    before = made.preflight()["preflight_reward"]
    made.train()
    assert made.preflight()["preflight_reward"] > 1.5 * before


def test_a_run_that_was_broken_off_ends_with_the_same_weights(
    cold_start: Path, config: GrpoConfig, tmp_path: Path
) -> None:
    whole = trainer(cold_start, config, tmp_path / "whole")
    run_trainer(whole, tmp_path / "whole", tokens=0, checkpoint_every_s=1e9)

    first = trainer(cold_start, config, tmp_path / "broken")
    first.args.max_steps = 2
    run_trainer(first, tmp_path / "broken", tokens=0, checkpoint_every_s=1e9)
    first._save_checkpoint(first.model, None)
    second = trainer(cold_start, config, tmp_path / "broken")
    run_trainer(second, tmp_path / "broken", tokens=0, checkpoint_every_s=1e9)
    assert second.state.global_step == config.steps
    for (name, found), expected in zip(
        second.model.state_dict().items(), whole.model.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected), name


def test_flat_groups_make_room_for_other_problems(
    cold_start: Path, config: GrpoConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = {problem.id for problem in PROBLEMS[::2]}

    def reward(problem: Problem, text: str) -> float:
        return 0.5 if problem.id in flat else text.count("e") / (1 + len(text))

    monkeypatch.setattr(grpo, "REWARDS", {"e": reward})
    made = trainer(cold_start, replace(config, attempts=20), tmp_path)
    groups = made._draw(PROBLEMS[:2])
    assert len(groups) == 2
    assert all(group.differs for group in groups)
    assert made._draw(PROBLEMS[:2])[0].completion_ids == groups[0].completion_ids, "the same step draws the same"
    monkeypatch.setattr(grpo, "REWARDS", {"e": lambda problem, text: 0.5})
    assert len(made._draw(PROBLEMS[:2])) == 2, "after the last attempt flat groups are taken"


def test_a_flat_reward_stops_before_training_and_says_why(cold_start: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"on all 14 problems the \d+ completions have equal rewards, 0\.\d\d on average"
    ):
        flat = replace(quick().reason_rl, weights={"accuracy": 1.0}, needs_signal=True)
        reason_rl(replace(quick(), reason_rl=flat), cold_start, tmp_path / "rl")
    assert not (tmp_path / "rl").exists()


def test_the_quick_preset_ends_whatever_a_processors_rounding_makes_of_its_rewards(
    cold_start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = replace(quick().reason_rl, weights={"accuracy": 1.0})
    folder = reason_rl(replace(quick(), reason_rl=flat), cold_start, tmp_path / "rl")
    assert json.loads((folder / "manifest.json").read_text())["measured"]["preflight_differing"] == 0
    assert "this stage learns nothing: on all" in capsys.readouterr().err


def test_the_stage_leaves_a_folder_that_decodes(cold_start: Path, config: GrpoConfig, tmp_path: Path) -> None:
    folder = reason_rl(replace(quick(), reason_rl=config), cold_start, tmp_path / "rl")
    assert not (folder / "checkpoints").exists()
    assert "absorbed" not in (folder / "config.json").read_text()
    model = load_model(folder, torch.float32)
    assert not torch.equal(
        model.get_input_embeddings().weight, load_model(cold_start, torch.float32).get_input_embeddings().weight
    )


def test_probabilities_are_those_that_the_stock_trainer_computes(
    cold_start: Path, config: GrpoConfig, tmp_path: Path
) -> None:
    made = trainer(cold_start, config, tmp_path)
    made.model.eval()
    generator = torch.Generator().manual_seed(2)
    prompt, completion = 7, 90
    ids = torch.randint(5, 100, (70, prompt + completion), generator=generator)
    mask = torch.zeros_like(ids)
    for row in range(len(ids)):
        begin = int(torch.randint(0, prompt - 2, (), generator=generator))
        end = prompt + int(torch.randint(1, completion + 1, (), generator=generator))
        mask[row, begin:end] = 1
    inputs = (made.model, ids, mask, completion)
    logps, entropies, _ = made._get_per_token_logps_and_entropies(*inputs, compute_entropy=True)
    expected_logps, expected_entropies, _ = GRPOTrainer._get_per_token_logps_and_entropies(
        made, *inputs, compute_entropy=True
    )
    told = mask[:, prompt:].bool()
    assert torch.allclose(logps[told], expected_logps[told], atol=2e-2)  # bf16 autocast; rows lie beside others
    assert (logps[told] - expected_logps[told]).abs().mean() < 2e-3
    assert entropies is not None and expected_entropies is not None
    assert torch.allclose(entropies[told], expected_entropies[told], atol=2e-2)
    weights = torch.rand(logps.shape, generator=generator) * told
    grads = []
    for values in (logps, expected_logps):
        made.model.zero_grad()
        (values * weights).sum().backward()
        grads.append(made.model.model.layers[0].self_attn.q_a_proj.weight.grad.clone())
    assert (grads[0] - grads[1]).norm() < 0.02 * grads[1].norm()


def test_an_answer_that_ran_into_the_limit_is_not_rewarded_as_right(
    cold_start: Path, config: GrpoConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpo, "REWARDS", {"accuracy": lambda problem, text: 1.0, "e": lambda problem, text: 1.0})
    rewarded = replace(config, weights={"accuracy": 1.0, "e": 1.0}, group_size=8, micro_batch=16)
    made = trainer(cold_start, rewarded, tmp_path)
    stop_ids = ChatFormat.from_folder(cold_start).stop_ids
    groups = made._sampler.groups(PROBLEMS, salt=0)
    assert any(ids[-1] not in stop_ids for group in groups for ids in group.completion_ids)
    for group in groups:
        for ids, part in zip(group.completion_ids, group.parts, strict=True):
            assert part == {"accuracy": float(ids[-1] in stop_ids), "e": 1.0}
