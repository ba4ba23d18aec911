"""The teacher's stages at their smallest, and the teacher that ships."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV3ForCausalLM, TrainingArguments

from distill.problems.families import FAMILIES, make_problems
from distill.teach.stages import STAGES, TITLES
from distill.teach.supervised import ExpertsTrainer
from distill.teach.teach import run_stage, stage_folder, teach, teacher_config
from distill.teach.teacher_recipe import nano, quick
from toolkit.errors import FolderConflict, InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.sources.model_names import resolve

BYTES_ALLOWED = 12_000_000
MASTERED = 0.9


def test_stages_leave_whole_folders_and_pretraining_lowers_the_loss(taught: Path) -> None:
    for stage in STAGES:
        if stage == "zero_rl":
            continue
        folder = stage_folder(stage, quick(), taught)
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["stage"] == f"teach.{stage}"
        assert not (folder / "checkpoints").exists()
    losses = [json.loads(line)["loss"] for line in (taught / "pretrain" / "loss.jsonl").read_text().splitlines()]
    assert float(losses[-1]) < float(losses[0])


def test_the_teacher_is_the_last_stage_with_a_card_of_all(taught: Path) -> None:
    last = stage_folder("align_rl", quick(), taught)
    teacher = taught / "teacher"
    assert (teacher / "model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()
    card = (teacher / "README.md").read_text()
    for stage in ("pretrain", "midtrain", "cold_start", "reason_rl", "rejection_sft", "align_rl"):
        assert f"| {stage} | " in card
        assert f"| {TITLES[stage]} | " in card


def test_a_finished_stage_says_so_and_is_not_made_again(taught: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = (taught / "pretrain" / "manifest.json").stat().st_mtime_ns
    folder = run_stage("pretrain", quick(), taught)
    assert (folder / "manifest.json").stat().st_mtime_ns == made
    assert capsys.readouterr().err.startswith(f"already done: {folder} (made 20")


def test_a_stage_starts_from_any_model_and_names_the_one_that_it_lacks(taught: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cold_start needs stage midtrain, but .*midtrain does not exist"):
        run_stage("cold_start", quick(), tmp_path / "run")
    folder = run_stage("cold_start", quick(), tmp_path / "run", base=taught / "midtrain")
    assert folder == tmp_path / "run" / "seed-1" / "cold_start"
    assert (folder / "model.safetensors").read_bytes() == (
        stage_folder("cold_start", quick(), taught) / "model.safetensors"
    ).read_bytes(), "the same base, recipe and seed give the same bytes"


def test_teacher_is_what_transformers_calls_deepseek_v3(taught: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(taught / "seed-1" / "cold_start")
    assert isinstance(model, DeepseekV3ForCausalLM)
    layers = model.model.layers
    assert hasattr(layers[0].mlp, "gate_proj") and hasattr(layers[1].mlp, "shared_experts")
    assert layers[0].self_attn.q_a_proj is not None
    biases = [layer.mlp.gate.e_score_correction_bias for layer in layers[1:]]
    assert all(bias.abs().max() > 0 for bias in biases)


def test_tokenizer_reads_the_same_through_transformers(taught: Path) -> None:
    ours = ChatFormat.from_folder(taught / "seed-1" / "cold_start")
    theirs = AutoTokenizer.from_pretrained(taught / "seed-1" / "cold_start")
    for problem in make_problems("test", 5, 0):
        ids = ours.question_ids(problem.question)
        messages = [{"role": "user", "content": problem.question}]
        assert ids == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert ours.tokenizer.decode(ids, skip_special_tokens=False) == ours.render(messages)


def test_finished_stages_are_not_run_again_and_other_settings_are_refused(taught: Path) -> None:
    before = (taught / "seed-1" / "cold_start" / "manifest.json").stat().st_mtime_ns
    teach(quick(), taught)
    assert (taught / "seed-1" / "cold_start" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(FolderConflict, match=r"config.seed \(1\) must equal this run's \(2\)"):
        run_stage("pretrain", replace(quick(), seed=2), taught)


def test_checkpoint_brings_back_every_weight_experts_too(taught: Path, tmp_path: Path) -> None:
    saved = DeepseekV3ForCausalLM.from_pretrained(taught / "seed-1" / "cold_start", dtype=torch.float32)
    torch.manual_seed(5)
    model = DeepseekV3ForCausalLM(saved.config)
    trainer = ExpertsTrainer(model=model, args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[]))
    trainer._load_from_checkpoint(str(taught / "seed-1" / "cold_start"))
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_shipped_teacher_is_of_the_nano_shape_and_small_enough() -> None:
    folder = resolve("builtin")
    assert (folder / "model.safetensors").stat().st_size <= BYTES_ALLOWED
    shape = teacher_config(nano().shape, ChatFormat.from_folder(folder)).to_diff_dict()
    shipped = json.loads((folder / "config.json").read_text())
    assert {name: shipped[name] for name in ("hidden_size", "kv_lora_rank", "n_routed_experts", "vocab_size")} == {
        name: shape[name] for name in ("hidden_size", "kv_lora_rank", "n_routed_experts", "vocab_size")
    }


def test_card_of_the_shipped_teacher_shows_five_mastered_families() -> None:
    card = (resolve("builtin") / "README.md").read_text()
    measured = json.loads((resolve("builtin") / "manifest.json").read_text())["measured"]["eval"]
    mastered = [name for name in FAMILIES if measured["families"][name]["accuracy"] >= MASTERED]
    assert len(mastered) >= 5
    for name in mastered:
        assert f"| {name} | {measured['families'][name]['accuracy']:.1%} |" in card
