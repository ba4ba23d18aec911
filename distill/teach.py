"""Makes the built-in teacher: a small DeepSeek-V3 model taken from random weights to chains of thought.

Stages, each a run folder of its own below `out`: `pretrain` (next token on task text) → `cold_start` (supervised chains
of thought in R1's format) → `eval` (the ledger's held-out problems) → `teacher` (the weights with their model card).
Method: DeepSeek-V3 and DeepSeek-R1 reports.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, Trainer, TrainerCallback, TrainingArguments

from distill.chains import CHAINS
from distill.evaluate import EvalConfig, evaluate_model
from distill.model_card import teacher_card
from distill.problems import FAMILIES, ledger_problems, make_problems
from distill.teacher_tokenizer import END_OF_TEXT, make_tokenizer
from toolkit.allocator import keep_freed_memory
from toolkit.chat_format import REASONING_TEMPLATE, TURN_END, ChatFormat, completion_text, write_chat_files
from toolkit.ledger import Evaluation
from toolkit.model.balance import ExpertBalance
from toolkit.model.decoder import TorchDecoder
from toolkit.records import Problem
from toolkit.runs import Stage, finish, folder_digest, is_complete, partial_folder, read_manifest

CHAT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
IGNORED = -100
"""Label of a token that has no part in the loss."""


@dataclass(frozen=True, kw_only=True)
class TeacherShape:
    """The model's size, in the names of its `config.json`."""

    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    n_routed_experts: int
    num_experts_per_tok: int
    n_shared_experts: int
    first_k_dense_replace: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    max_position_embeddings: int


@dataclass(frozen=True, kw_only=True)
class StageRecipe:
    """How long and how fast one stage learns."""

    problems_per_family: int
    epochs: int
    batch_size: int
    learning_rate: float
    final_learning_rate: float
    """As a share of `learning_rate`, reached by a cosine."""
    warmup_steps: int


@dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """Everything that decides the teacher's weights."""

    shape: TeacherShape
    pretrain: StageRecipe
    cold_start: StageRecipe
    families: tuple[str, ...] = FAMILIES
    weight_decay: float = 0.1  # DeepSeek-V3 report, section 4.2, as are the betas and the clipping
    adam_betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    save_every_steps: int = 300
    seed: int = 1


def nano() -> TeachConfig:
    """The teacher that ships in the package."""
    return TeachConfig(
        shape=TeacherShape(
            hidden_size=192,
            intermediate_size=512,
            moe_intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=6,
            n_routed_experts=16,
            num_experts_per_tok=4,
            n_shared_experts=1,
            first_k_dense_replace=1,
            q_lora_rank=96,
            kv_lora_rank=64,
            qk_nope_head_dim=32,
            qk_rope_head_dim=16,
            v_head_dim=32,
            max_position_embeddings=512,
        ),
        # found by trial: a small model takes a hundred times the learning rate of the report's 671B
        pretrain=StageRecipe(
            problems_per_family=7_000,
            epochs=1,
            batch_size=48,
            learning_rate=3e-3,
            final_learning_rate=0.5,
            warmup_steps=100,
        ),
        cold_start=StageRecipe(
            problems_per_family=10_000,
            epochs=1,
            batch_size=48,
            learning_rate=2e-3,
            final_learning_rate=0.0,
            warmup_steps=50,
        ),
    )


def quick() -> TeachConfig:
    """A few steps of a tiny shape: shows that the pipeline runs, learns next to nothing."""
    shape = asdict(nano().shape) | {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
    recipe = StageRecipe(
        problems_per_family=24, epochs=1, batch_size=16, learning_rate=3e-3, final_learning_rate=0.1, warmup_steps=2
    )
    return TeachConfig(shape=TeacherShape(**shape), pretrain=recipe, cold_start=recipe)


PRESETS = {"nano": nano, "quick": quick}


def teach(config: TeachConfig, out: Path) -> Path:
    """Run all stages; returns the folder of the teacher. Stages that are complete are not run again."""
    keep_freed_memory()
    base = _run_stage("pretrain", config, config.pretrain, out / "pretrain", None)
    cold = _run_stage("cold_start", config, config.cold_start, out / "cold_start", base)
    evaluation = evaluate_model(cold, TorchDecoder, ledger_problems(), EvalConfig(batch_size=128), out / "eval")
    return _release(config, [base, cold], evaluation, out / "teacher")


def _release(config: TeachConfig, stages: Sequence[Path], evaluation: Evaluation, out: Path) -> Path:
    """The last stage's model with its card, as it ships."""
    last = stages[-1]
    stage = Stage(name="teach.teacher", config={}, inputs={"model": folder_digest(last)})
    if is_complete(out, stage):
        return out
    folder = partial_folder(out, stage)
    for name in ("config.json", "generation_config.json", "model.safetensors", *CHAT_FILES):
        shutil.copy2(last / name, folder / name)
    measured = {path.name: (read_manifest(path) or {})["measured"] for path in stages}
    (folder / "README.md").write_text(teacher_card(asdict(config.shape), measured, evaluation), encoding="utf-8")
    finish(folder, out, stage, measured | {"eval": evaluation.to_dict()})
    return out


def _run_stage(name: str, config: TeachConfig, recipe: StageRecipe, out: Path, base: Path | None) -> Path:
    values = asdict(config)
    settings = {key: values[key] for key in values if key not in ("pretrain", "cold_start")} | {"recipe": values[name]}
    stage = Stage(name=f"teach.{name}", config=settings, inputs={"base": folder_digest(base)} if base else {})
    if is_complete(out, stage):
        return out
    folder = partial_folder(out, stage)
    problems = make_problems("train", recipe.problems_per_family, config.seed, config.families)
    chains = list(_chains(problems))
    if base is None:
        write_tokenizer(folder, chains)
        torch.manual_seed(config.seed)
        model = DeepseekV3ForCausalLM(teacher_config(config.shape, ChatFormat.from_folder(folder)))
    else:
        for file in CHAT_FILES:
            shutil.copy2(base / file, folder / file)
        model = DeepseekV3ForCausalLM.from_pretrained(base, dtype=torch.float32)
    chat = ChatFormat.from_folder(folder)
    examples = (_document(chat, *chain) if base is None else _turn(chat, *chain) for chain in chains)
    started = time.monotonic()
    losses = _train(model, list(examples), config, recipe, folder)
    seconds = time.monotonic() - started
    (folder / "loss.jsonl").write_text("".join(json.dumps(row) + "\n" for row in losses))
    model.bfloat16().save_pretrained(folder)
    finish(folder, out, stage, {"examples": len(chains), "loss": float(losses[-1]["loss"]), "seconds": seconds})
    return out


def teacher_config(shape: TeacherShape, chat: ChatFormat) -> DeepseekV3Config:
    """The model's `config.json`."""
    config = DeepseekV3Config(
        **asdict(shape),
        vocab_size=chat.tokenizer.get_vocab_size(),
        num_key_value_heads=shape.num_attention_heads,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.0,
        num_mtp_layers=0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=chat.tokenizer.token_to_id(TURN_END),
        pad_token_id=chat.tokenizer.token_to_id(END_OF_TEXT),
    )
    config._experts_implementation = "grouped_mm"  # the fastest on CPU in bf16, and what GPUs use
    return config


def write_tokenizer(folder: Path, chains: Sequence[tuple[Problem, str, str]]) -> None:
    """Make the teacher's tokenizer from the wording of its tasks."""
    texts: dict[str, list[str]] = {}
    for problem, reasoning, answer in chains:
        prompt = f"<|im_start|>user\n{problem.question}<|im_end|>\n<|im_start|>assistant\n<think>\n"
        texts.setdefault(problem.family, []).append(prompt + completion_text(reasoning, answer))
    tokenizer = make_tokenizer(texts)
    write_chat_files(folder, tokenizer, template=REASONING_TEMPLATE, eos_token=TURN_END, pad_token=END_OF_TEXT)


def _chains(problems: Sequence[Problem]) -> Iterator[tuple[Problem, str, str]]:
    for problem in problems:
        try:
            reasoning, answer = CHAINS[problem.family](problem)
        except ValueError:  # a countdown that needs more than the chain's search
            continue
        yield problem, reasoning, answer


def _document(chat: ChatFormat, problem: Problem, reasoning: str, answer: str) -> dict[str, list[int]]:
    """Task text for pretraining, without the format of a conversation; the loss is on every token."""
    ids = chat.encode(f"{problem.question}\n{reasoning}\n{answer}{END_OF_TEXT}")
    return {"input_ids": ids, "labels": ids}


def _turn(chat: ChatFormat, problem: Problem, reasoning: str, answer: str) -> dict[str, list[int]]:
    """A question with its chain in R1's format; the loss is on the completion."""
    ids, mask = chat.training_ids(problem.question, reasoning, answer)
    return {"input_ids": ids, "labels": [i if learned else IGNORED for i, learned in zip(ids, mask, strict=True)]}


def _train(
    model: DeepseekV3ForCausalLM,
    examples: list[dict[str, list[int]]],
    config: TeachConfig,
    recipe: StageRecipe,
    folder: Path,
) -> list[dict[str, Any]]:
    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        use_cpu=not on_gpu,
        bf16=True,
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": recipe.final_learning_rate},
        warmup_steps=recipe.warmup_steps,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_betas[0],
        adam_beta2=config.adam_betas[1],
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused",
        train_sampling_strategy="group_by_length",
        logging_first_step=True,
        logging_steps=20,
        save_steps=config.save_every_steps,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        seed=config.seed,
        remove_unused_columns=False,
    )
    pad_id = model.config.pad_token_id or 0

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Pads on the right, where a causal model needs no mask: padding sees the text, never the other way."""
        ids = pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True, padding_value=pad_id)
        labels = pad_sequence([torch.tensor(row["labels"]) for row in rows], batch_first=True, padding_value=IGNORED)
        return {"input_ids": ids, "labels": labels}

    callbacks: list[TrainerCallback] = [ExpertBalance(model)]
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(examples),
        data_collator=collate,
        callbacks=callbacks,
    )
    checkpoints = folder / "checkpoints"
    trainer.train(resume_from_checkpoint=any(checkpoints.glob("checkpoint-*")) if checkpoints.exists() else None)
    losses = [row for row in trainer.state.log_history if "loss" in row]
    for path in sorted(checkpoints.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    checkpoints.rmdir()
    return losses
