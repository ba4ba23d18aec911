"""GRPO of a student: its probabilities, its loss, and what each value of the section `rl` does."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer.grpo_trainer import GRPOTrainer

from distill.reinforcement.rl_config import RlConfig
from distill.reinforcement.rl_stage import CURVE, RlStage
from distill.reinforcement.student_grpo import StudentGroupTrainer, grpo_config
from distill.reinforcement.token_probabilities import token_probabilities
from distill.training import completion_loss
from distill.training.student import add_adapters, load_student
from distill.training.train_config import TrainConfig
from tests.distill.reinforcement.undecided import QUICK, problems
from tests.distill.test_train import float_model, tiny_recipe
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.model.decoder import load_model
from toolkit.records import read_jsonl
from toolkit.voice.student_format import write_student_format

LORA: dict[str, Any] = {"lora_rank": 8}


def trainer(
    student: Path, folder: Path, config: RlConfig = QUICK, training: TrainConfig | None = None
) -> StudentGroupTrainer:
    training = training or tiny_recipe()
    folder.mkdir(parents=True, exist_ok=True)
    chat_format = write_student_format(student, folder)
    torch.manual_seed(0)
    plain = load_student(student, chat_format)
    model = add_adapters(plain, training) if training.lora_rank else plain
    asked = problems()
    grpo = grpo_config(config, len(asked), training.seed)
    made = partial(StudentGroupTrainer, scale_rewards=config.scale_rewards, turns_at_once=config.turns_at_once)
    return made(model, chat_format, asked, grpo, training, folder)


def reinforced(student: Path, folder: Path, config: RlConfig = QUICK, **changes: Any) -> dict[str, Any]:
    """Reinforce the student into `folder`. `changes`: of the training's recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    training = replace(tiny_recipe(), **changes)
    stage = RlStage(config=config, training=training, problems=problems())
    return stage.check(write_student_format(student, folder), 2048).run(student, folder)


def curve(folder: Path) -> list[dict[str, Any]]:
    return [line for _, line in read_jsonl(folder / CURVE)]


@pytest.mark.parametrize("most_bytes", [2**30, 64 * 50 * 4])
def test_probabilities_entropies_and_gradients_are_torchs(most_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.reinforcement.token_probabilities.LOGITS_BYTES", most_bytes)
    assert completion_loss.ROWS < 200
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(200, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, requires_grad=True)
    target = torch.randint(0, 50, (200,), generator=generator)
    wanted = torch.randn(200, generator=generator)
    log_p, entropy = token_probabilities(hidden, weight, target, 0.7)
    found = torch.autograd.grad((log_p * wanted).sum(), (hidden, weight))
    distribution = torch.distributions.Categorical(logits=hidden @ weight.T / 0.7)
    expected = distribution.log_prob(target)
    torch.testing.assert_close(log_p, expected)
    torch.testing.assert_close(entropy, distribution.entropy())
    assert not entropy.requires_grad
    for ours, theirs in zip(found, torch.autograd.grad((expected * wanted).sum(), (hidden, weight)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_probabilities_in_padding_free_rows_are_those_of_transformers_forward(undecided: Path, tmp_path: Path) -> None:
    made = trainer(undecided, tmp_path, training=replace(tiny_recipe(), row_tokens=64))
    made.model.float()
    generator = torch.Generator().manual_seed(2)
    prompt, completion = 9, 20
    ids = torch.randint(3, 290, (7, prompt + completion), generator=generator)
    mask = torch.zeros_like(ids)
    for row in range(len(ids)):
        mask[row, row:prompt] = 1
        mask[row, prompt : prompt + 2 + 2 * row] = 1
    found, entropies, _ = made._get_per_token_logps_and_entropies(made.model, ids, mask, completion)
    oracle = float_model(undecided)
    for row in range(len(ids)):
        tokens = ids[row][mask[row].bool()]
        written = 2 + 2 * row
        logits = oracle(input_ids=tokens[None]).logits[0, -written - 1 : -1, : made._words]
        expected = torch.distributions.Categorical(logits=logits)
        torch.testing.assert_close(found[row, :written], expected.log_prob(tokens[-written:]), rtol=1e-4, atol=1e-4)
        assert entropies is not None
        torch.testing.assert_close(entropies[row, :written], expected.entropy(), rtol=1e-4, atol=1e-4)
        assert not found[row, written:].any()


def test_turns_without_an_advantage_are_left_out_without_changing_the_gradient(undecided: Path, tmp_path: Path) -> None:
    made = trainer(undecided, tmp_path, replace(QUICK, turns_at_once=2))
    made.model.float()
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, 290, (6, 12), generator=generator)
    mask = torch.ones(6, 8, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :4],
        "prompt_mask": mask[:, :4],
        "completion_ids": ids[:, 4:],
        "completion_mask": mask,
        "num_items_in_batch": torch.tensor(48),
    }
    grads = []
    for compute_loss in (made._compute_loss, partial(GRPOTrainer._compute_loss, made)):
        for advantages in (torch.tensor([1.0, 0.0, 0.0, -1.0, 0.0, 0.5]), torch.zeros(6)):
            made.model.zero_grad()
            compute_loss(made.model, inputs | {"advantages": advantages}).backward()
            grads.append(made.model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    torch.testing.assert_close(grads[0], grads[2], rtol=1e-4, atol=1e-6)
    assert grads[0].any() and not grads[1].any() and not grads[3].any()


def test_right_answers_become_more(undecided: Path, tmp_path: Path) -> None:
    measured = reinforced(undecided, tmp_path, replace(QUICK, updates=30, samples=8, problems=8))
    assert measured["first_accuracy"] < 0.75
    assert measured["final_accuracy"] > 0.95
    assert measured["changed_tensors"] > 10
    assert [line["step"] for line in curve(tmp_path)] == list(range(1, 31))
    assert {"reward", "differing", "entropy", "sampled/accuracy", "sampled/well_formed"} <= set(curve(tmp_path)[0])


@pytest.mark.parametrize("changes", [{}, LORA, {"lora_rank": 8, "optimizer": "adafactor"}], ids=str)
def test_a_run_that_resumes_ends_with_the_same_student(
    changes: dict[str, Any], undecided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reinforced(undecided, tmp_path / "whole", **changes)
    draw = StudentGroupTrainer._draw

    def broken(self: StudentGroupTrainer, *args: Any) -> Any:
        if self.state.global_step == 3:
            raise OSError("the machine stops")
        return draw(self, *args)

    every: dict[str, Any] = {"checkpoint_every_updates": 1}
    monkeypatch.setattr(StudentGroupTrainer, "_draw", broken)
    with pytest.raises(OSError, match="the machine stops"):
        reinforced(undecided, tmp_path / "broken", **changes, **every)
    monkeypatch.setattr(StudentGroupTrainer, "_draw", draw)
    reinforced(undecided, tmp_path / "broken", **changes, **every)
    whole, again = (load_model(tmp_path / name, torch.float32).state_dict() for name in ("whole", "broken"))
    for name, weight in whole.items():
        assert torch.equal(weight, again[name]), name
    assert [line["loss"] for line in curve(tmp_path / "whole")] == [line["loss"] for line in curve(tmp_path / "broken")]


@pytest.mark.parametrize(
    "values",
    [
        {"problems": 8},
        {"samples": 8},
        {"learning_rate": 1e-2},
        {"warmup_updates": 4},
        {"kl_coefficient": 10.0},
        {"temperature": 2.0},
        {"temperature": 2.0, "max_new_tokens": 15},
        {"attempts": 1},
        {"scale_rewards": "none"},
        {"scale_rewards": "batch"},
        {"format_weight": 3.0},
        {"language_weight": 3.0, "temperature": 2.0},
    ],
    ids=str,
)
def test_each_value_changes_the_training(values: dict[str, Any], undecided: Path, tmp_path: Path) -> None:
    *shared, name = values
    usual = replace(QUICK, **{key: values[key] for key in shared})
    reinforced(undecided, tmp_path / "usual", usual)
    reinforced(undecided, tmp_path / "other", replace(usual, **{name: values[name]}))
    keys = ("loss", "grad_norm", "reward", "learning_rate")
    ours, others = ([[line[key] for key in keys] for line in curve(tmp_path / one)] for one in ("usual", "other"))
    assert ours != others
    if name == "kl_coefficient":
        assert all("kl" in line for line in curve(tmp_path / "other"))


def test_turns_at_once_and_tokens_of_a_row_change_the_memory_and_not_the_update(
    undecided: Path, tmp_path: Path
) -> None:
    norms = {}
    for name, turns, tokens in (("all", 16, 8192), ("two", 2, 8192), ("a row", 16, 60)):
        reinforced(undecided, tmp_path / name, replace(QUICK, turns_at_once=turns, updates=2), row_tokens=tokens)
        norms[name] = [line["grad_norm"] for line in curve(tmp_path / name)]
    assert norms["two"] == pytest.approx(norms["all"], rel=0.05)  # bf16 sums in another order
    assert norms["a row"] == pytest.approx(norms["all"], rel=0.05)


def test_turns_on_one_problem_are_learned_from_together(undecided: Path, tmp_path: Path) -> None:
    made = trainer(undecided, tmp_path, replace(QUICK, turns_at_once=3), replace(tiny_recipe(), row_tokens=30))
    inputs = {
        "prompt_ids": torch.tensor([[7, 7], [5, 5], [7, 7], [5, 5], [5, 5], [7, 7]]),
        "prompt_mask": torch.ones(6, 2),
        "completion_mask": torch.ones(6, 4),
        "advantages": torch.tensor([1.0, 1.0, -1.0, 0.0, -1.0, 0.5]),
    }
    assert made._pieces(inputs) == [[1, 4, 0], [2, 5]]
    assert made._pieces(inputs | {"completion_mask": torch.ones(6, 13)}) == [[1, 4], [0, 2], [5]]
    assert made._pieces(inputs | {"advantages": torch.zeros(6)}) == [[0]]
    made.beta = 0.1
    assert made._pieces(inputs) == [[1, 3, 4], [0, 2], [5]]


def test_adapters_alone_are_trained_and_merged_or_kept_apart(undecided: Path, tmp_path: Path) -> None:
    merged = reinforced(undecided, tmp_path / "merged", **LORA)
    assert 0 < merged["changed_tensors"] < merged["tensors"]
    with_reference = reinforced(undecided, tmp_path / "kl", replace(QUICK, kl_coefficient=0.1), **LORA)
    assert with_reference["changed_tensors"] == merged["changed_tensors"]
    reinforced(undecided, tmp_path / "apart", **LORA, lora_kept_apart=True)
    assert (tmp_path / "apart" / "adapter_model.safetensors").is_file()
    assert not list((tmp_path / "apart").glob("model*.safetensors"))
    on_nf4 = reinforced(undecided, tmp_path / "nf4", replace(QUICK, updates=2), **LORA, quantization="nf4")
    assert on_nf4["changed_tensors"] > 0
    load_model(tmp_path / "nf4", torch.float32)


def test_an_update_has_at_most_the_problems_that_there_are(
    undecided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reinforced(undecided, tmp_path, replace(QUICK, problems=40, updates=1))
    assert "rl: there are only 16 problems, so an update has 16 and not 40" in capsys.readouterr().err


def test_a_student_whose_turns_all_fail_is_refused_before_training(tiny_student: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"on all 16 problems the 4 completions have equal rewards, 0\.00 on average"):
        reinforced(tiny_student, tmp_path)
    assert not (tmp_path / CURVE).exists()


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_last_good_checkpoint(
    undecided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = StudentGroupTrainer._compute_loss

    def breaking(self: StudentGroupTrainer, *args: Any) -> Any:
        return compute(self, *args) * (float("nan") if self.state.global_step == 2 else 1.0)

    monkeypatch.setattr(StudentGroupTrainer, "_compute_loss", breaking)
    with pytest.raises(InputError, match=r"training diverged: .* of update 3 .* the last good checkpoint is .*-2"):
        reinforced(undecided, tmp_path, checkpoint_every_updates=1)
    checkpoints = tmp_path / "reinforcement" / "checkpoints"
    assert [path.name for path in checkpoints.glob("checkpoint-*")] == ["checkpoint-2"]
    last = load_model(checkpoints / "checkpoint-2", torch.float32)
    assert all(torch.isfinite(parameter).all() for parameter in last.parameters())
    monkeypatch.setattr(StudentGroupTrainer, "_compute_loss", compute)
    assert reinforced(undecided, tmp_path, checkpoint_every_updates=1)["updates"] == 4


def test_questions_that_leave_no_room_for_a_turn_are_left_out(
    undecided: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat_format = ChatFormat.from_folder(undecided)
    lengths = [len(chat_format.prompt_ids(problem.messages)) for problem in problems()]
    stage = RlStage(config=QUICK, training=tiny_recipe(), problems=problems())
    fitting = stage.check(chat_format, min(lengths) + QUICK.max_new_tokens)
    assert len(fitting.problems) == lengths.count(min(lengths)) < len(lengths)
    assert "problems left out: with a turn of 20 tokens they exceed" in capsys.readouterr().err
    with pytest.raises(InputError, match=rf"the shortest question \({min(lengths)} tokens\) leaves no room for a turn"):
        stage.check(chat_format, 22)


def test_a_turn_that_opens_its_reasoning_itself_is_rewarded_as_one_whose_prompt_did(
    undecided: Path, tmp_path: Path
) -> None:
    made = trainer(undecided, tmp_path)
    sampler = made._sampler
    opened, closed = sampler._chat_format.encode("<think>\n1\n</think>\n\n1"), sampler._chat_format.encode("1")
    assert sampler._text(opened).startswith("<think>")
    sampler._chat_format.opens_reasoning = False
    assert sampler._text(opened) == "\n1\n</think>\n\n1" and sampler._text(closed) == "1"


def test_the_event_file_repeats_the_curve_for_tensorboard(undecided: Path, tmp_path: Path) -> None:
    reinforced(undecided, tmp_path / "seen", replace(QUICK, updates=1))
    assert (tmp_path / "seen" / "rl" / "events.out.tfevents.student").stat().st_size > 100
    reinforced(undecided, tmp_path / "unseen", replace(QUICK, updates=1), trackers=())
    assert not (tmp_path / "unseen" / "rl").exists()
    assert json.loads((tmp_path / "seen" / "config.json").read_text())["use_cache"] is True
