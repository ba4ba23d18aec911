"""`toolkit plan` counts examples, finds the fullest row, and refuses in one line what cannot be planned."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from distill.planning import training_plan
from distill.planning.devices import UTILISATION, device
from distill.planning.training_plan import Examples, equal_examples, fullest_row, plan_training, shape_of
from distill.recipes.distill_recipe import shipped_recipe
from toolkit.cli.main import main
from toolkit.model.flops import forward_flops

TRAIN = shipped_recipe().train
SEVEN = "Qwen/Qwen2.5-7B-Instruct"


def test_the_fullest_row_is_within_the_recipes_and_holds_the_longest_example() -> None:
    train = replace(TRAIN, batch_examples=4, row_tokens=100)
    examples = Examples(lengths=(30, 40, 50, 160, 20, 60), trained=(20, 30, 40, 150, 10, 50))
    row, rows, tokens, computed = fullest_row(examples, train, devices=1, on_gpu=False)
    assert row.lengths == (160,) and row.trained_tokens == 150 and rows >= 2
    assert 4 * 20 < tokens < 4 * 160 and computed == 1
    equal, count, mean, _ = fullest_row(equal_examples(40, 50), train, devices=1, on_gpu=False)
    assert (equal.tokens, count, mean) == (100, 2, 200)


def test_what_examples_begin_with_is_counted_once_a_row() -> None:
    train = replace(TRAIN, batch_examples=4, row_tokens=1000)
    examples = Examples.tokenized([([*range(60), 100 + n, n], [False] * 61 + [True]) for n in range(20)])
    row, rows, tokens, computed = fullest_row(examples, train, devices=1, on_gpu=False)
    assert (row.lengths, row.earlier, rows) == ((60, 2, 2, 2, 2), (-1, 0, 0, 0, 0), 1)
    assert tokens == 4 * 62 and computed == 68 / tokens
    assert fullest_row(examples, train, devices=1, on_gpu=True)[0].lengths == (62,) * 4


def test_a_gpu_is_planned_by_its_data_sheet() -> None:
    config, gpu = shape_of(SEVEN), device("h100")
    train = replace(TRAIN, lora_rank=16, gradient_checkpointing=True, batch_examples=8)
    found = plan_training(config, train, equal_examples(1000, 4096), gpu=gpu, devices=2, price_per_hour=3.0)
    flops = forward_flops(config, 4096) * 4 / 3
    assert gpu.flops_per_s and found.tokens_per_s and found.hours
    assert 2 < 2 * UTILISATION * gpu.flops_per_s / flops / found.tokens_per_s < 2.02  # adapters have some gradients
    assert found.hours == pytest.approx(1000 * 4096 / found.tokens_per_s / 3600)
    assert found.cost == pytest.approx(found.hours * 3.0 * 2) and found.fits


def test_a_run_that_ends_by_the_clock_takes_no_longer() -> None:
    train = replace(TRAIN, lora_rank=16, max_minutes=30.0)
    plan = plan_training(shape_of(SEVEN), train, equal_examples(100_000, 512), gpu=device("h100"))
    assert plan.hours == pytest.approx(0.5, rel=1e-3)
    assert plan.tokens_per_s is not None and plan.tokens == round(1800 * plan.tokens_per_s)


def test_a_gpu_without_a_data_sheet_is_planned_without_speed() -> None:
    config, examples = shape_of("HuggingFaceTB/SmolLM2-360M-Instruct"), equal_examples(10, 512)
    found = plan_training(config, TRAIN, examples, gpu=device("24 GB"), price_per_hour=3.0)
    assert (found.available_bytes, found.tokens_per_s, found.hours, found.cost) == (24 * 10**9, None, None, None)
    named = plan_training(config, TRAIN, examples, gpu=device("4090"))
    assert named.footprint == found.footprint and named.tokens_per_s


def test_what_a_rehearsal_has_no_room_for_is_planned_without_speed(
    tiny_student: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training_plan, "free_bytes", lambda: 1.0)
    assert main(["plan", str(tiny_student), "--examples", "20", "--tokens", "60", "--price-per-hour", "1"]) == 0
    assert re.search(r"\n1,200 tokens; how fast is not known, since a few steps .* take \d", capsys.readouterr().out)
    assert main(["plan", str(tiny_student), "--tokens", "60", "--set", "train.max_minutes=5"]) == 0
    assert "\n60,000 tokens, fewer where 5 minutes end it before; how fast" in capsys.readouterr().out


def test_what_cannot_be_sharded_is_on_each_gpu_whole() -> None:
    gpu, examples = device("h100"), equal_examples(64, 512)
    train = replace(TRAIN, lora_rank=16, quantization="nf4", batch_examples=8)
    alone, eight = (plan_training(shape_of(SEVEN), train, examples, gpu=gpu, devices=n) for n in (1, 8))
    assert eight.footprint.weights == alone.footprint.weights
    sharded = plan_training(shape_of(SEVEN), replace(train, quantization=""), examples, gpu=gpu, devices=8)
    assert sharded.footprint.weights < alone.footprint.weights


def test_what_is_not_planned_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", SEVEN, "--device", "H100", "--set", "logits.source=on_policy", "--set", "rl.updates=5"]
    assert main(words) == 0
    assert "what the recipe's logits and rl take beside or after it" in capsys.readouterr().out
    assert main([*words[:4], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_planned"] == []


def test_this_machine_is_rehearsed(tiny_student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(tiny_student), "--examples", "20", "--tokens", "60", "--set", "max_tokens=100", "--json"]
    assert main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["tokens"] == 20 * 60 and facts["tokens_per_s"] > 0 and facts["trained"] == facts["parameters"]
    assert facts["peak_bytes"] == pytest.approx(sum(facts["footprint"].values()))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", SEVEN, "--device", "RTX 4900"], "no data sheet of the device 'RTX 4900' here; did you mean"),
        (
            ["plan", SEVEN, "--device", "a100"],
            "did you mean 'A100 40GB' or 'A100 80GB', or its memory alone",
        ),
        (["plan", SEVEN, "--device", "RX 580"], "known ones are RTX 4090, .*; any other is named by its memory"),
        (["plan", SEVEN, "--quantization", "nf4"], r"train\.quantization \(nf4\) keeps weights that cannot"),
        (["plan", SEVEN, "--devices", "2"], "--devices 2 is for GPUs; name which with --device"),
        (
            ["plan", SEVEN, "--set", "max_tokens=40000", "--device", "H100"],
            r"max_tokens \(40000\) exceeds the student's context \(32768\); lower it with --set max_tokens=N",
        ),
        (
            ["plan", SEVEN, "--recipe", "gpu-24gb", "--device", "H100", "--tokens", "20000"],
            r"--tokens 20000 exceeds the recipe's max_tokens \(16384\), beyond which examples are left out",
        ),
        (["plan", SEVEN, "--device", "H100", "--devices", "99"], r"a batch of 16 examples .* among 99 devices; use at"),
        (["plan", SEVEN, "--device", "H100", "--examples", "99999999"], "--examples 99999999 must be at most"),
        (["plan", SEVEN, "--set", "train.quantization=nf4"], r"train\.quantization \(nf4\) keeps weights that cannot"),
        (
            ["plan", SEVEN, "--device", "H100", "--lora", "--set", "train.lora_targets=[q_porj]"],
            r"train\.lora_targets names 'q_porj', which the student has no linear layer of .*; did you mean q_proj\?",
        ),
        (["plan", "builtin"], r"the student's architecture \(deepseek_v3\) must be one of"),
        (["plan", "nobody/nothing"], "shapes that are known without it: Qwen/Qwen2.5-0.5B-Instruct"),
    ],
)
def test_what_cannot_be_planned_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert not captured.out and re.search(said, captured.err)
    assert captured.err.count("\n") <= 2
