"""Makes the built-in teacher: a small DeepSeek-V3 model taken from random weights to chains of thought.

Stages, each a run folder of its own below `out`: `pretrain` (next token on task text) → `cold_start` (supervised chains
of thought in R1's format) → `eval` (the ledger's held-out problems) → `teacher` (the weights with their model card).
`reason_rl` (GRPO on verified answers) runs by itself, on the cold start or any other model of the kind.
Method: DeepSeek-V3 and DeepSeek-R1 reports.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    default_data_collator,
    get_cosine_with_min_lr_schedule_with_warmup,
)
from transformers.utils.logging import disable_progress_bar

from distill.chains import CHAINS
from distill.completion_loss import IGNORED, labelled
from distill.evaluate import EvalConfig, evaluate_model
from distill.grpo import RestoresExperts, make_trainer
from distill.journal import CHECKPOINTS, run_trainer
from distill.model_card import teacher_card
from distill.muon import MuonAdamW, split_parameters
from distill.problems import LEDGER_SEED, make_problems
from distill.teacher_recipe import RL_SEED, StageRecipe, TeachConfig, TeacherShape
from distill.teacher_tokenizer import END_OF_TEXT, make_tokenizer
from toolkit.allocator import keep_freed_memory
from toolkit.chat_format import (
    CHAT_FILES,
    REASONING_TEMPLATE,
    TURN_END,
    ChatFormat,
    completion_text,
    write_chat_files,
)
from toolkit.ledger import Evaluation
from toolkit.model.balance import ExpertBalance
from toolkit.model.decoder import TorchDecoder, load_model
from toolkit.records import Problem
from toolkit.runs import Stage, finish, folder_digest, is_complete, partial_folder, read_manifest


def teach(config: TeachConfig, out: Path) -> Path:
    """Run all stages; returns the folder of the teacher. Stages that are complete are not run again."""
    keep_freed_memory()
    disable_progress_bar()  # of loading and saving weights, which takes a moment
    base = _run_stage("pretrain", config, config.pretrain, out / "pretrain", None)
    cold = _run_stage("cold_start", config, config.cold_start, out / "cold_start", base)
    problems = make_problems("test", config.eval_per_family, LEDGER_SEED)
    evaluation = evaluate_model(cold, TorchDecoder.open, problems, EvalConfig(batch_size=128), out / "eval")
    return _release(config, [base, cold], evaluation, out / "teacher")


def reason_rl(config: TeachConfig, base: Path, out: Path) -> Path:
    """Reinforce the model in `base` on verified answers, into the run folder `out`.

    Raises `InputError` where its rewards are flat before anything is trained.
    """
    stage = Stage(
        name="teach.reason_rl",
        config={**asdict(config.reason_rl), "families": config.families},
        inputs={"base": folder_digest(base)},
    )
    if is_complete(out, stage):
        return out
    keep_freed_memory()
    folder = partial_folder(out, stage)
    for file in CHAT_FILES:
        shutil.copy2(base / file, folder / file)
    problems = make_problems("train", config.reason_rl.steps * config.reason_rl.groups, RL_SEED, config.families)
    model = load_model(base, torch.float32)
    trainer = make_trainer(model, base, problems, config.reason_rl, folder, callbacks=[ExpertBalance(model)])
    measured = trainer.preflight()
    measured |= run_trainer(trainer, folder, tokens=0, checkpoint_every_s=config.checkpoint_every_s)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    model.config.use_cache = True
    model.bfloat16().save_pretrained(folder)
    finish(folder, out, stage, measured)
    return out


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
    others = (
        "pretrain",
        "cold_start",
        "reason_rl",
        "checkpoint_every_s",
        "eval_per_family",
    )  # what does not decide the weights
    settings = {key: values[key] for key in values if key not in others} | {"recipe": values[name]}
    stage = Stage(name=f"teach.{name}", config=settings, inputs={"base": folder_digest(base)} if base else {})
    if is_complete(out, stage):
        return out
    folder = partial_folder(out, stage)
    problems = make_problems("train", recipe.problems_per_family, config.seed, config.families)
    chains = list(_chains(problems))
    if base is None:
        write_tokenizer(folder, chains)
        torch.manual_seed(config.seed)
        model: PreTrainedModel = DeepseekV3ForCausalLM(teacher_config(config.shape, ChatFormat.from_folder(folder)))
    else:
        for file in CHAT_FILES:
            shutil.copy2(base / file, folder / file)
        model = load_model(base, torch.float32)
    chat = ChatFormat.from_folder(folder)
    examples = (_document(chat, *chain) if base is None else _turn(chat, *chain) for chain in chains)
    measured = _train(model, list(examples), config, recipe, folder)
    model.config.use_cache = True  # the trainer turned it off
    model.bfloat16().save_pretrained(folder)
    finish(folder, out, stage, {"examples": len(chains)} | measured)
    return out


def teacher_config(shape: TeacherShape, chat: ChatFormat) -> DeepseekV3Config:
    """The model's `config.json`."""
    return DeepseekV3Config(
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


def write_tokenizer(folder: Path, chains: Sequence[tuple[Problem, str, str]]) -> None:
    """Make the teacher's tokenizer from the wording of its tasks."""
    wording = ChatFormat(Tokenizer(BPE()), REASONING_TEMPLATE, frozenset(), {})  # prompts as text need no vocabulary
    texts: dict[str, list[str]] = {}
    for problem, reasoning, answer in chains:
        prompt = wording.render([{"role": "user", "content": problem.question}])
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
    return labelled(*chat.training_ids(problem.question, reasoning, answer))


def packed(examples: Sequence[dict[str, list[int]]], row_tokens: int, pad_id: int) -> list[dict[str, list[int]]]:
    """Lay examples one after another into rows of `row_tokens`, in their order; a row's rest is padding without a loss.

    Rows mix the families: batches of equal lengths, and so of one family each, made the model forget one family while
    it saw another. An example sees those before it in its row, which a model that meets the question's own turn last
    learns to leave alone.
    """
    rows: list[dict[str, list[int]]] = []
    for example in examples:
        size = len(example["input_ids"])
        assert size <= row_tokens
        if not rows or len(rows[-1]["input_ids"]) + size > row_tokens:
            rows.append({"input_ids": [], "labels": []})
        rows[-1]["input_ids"] += example["input_ids"]
        rows[-1]["labels"] += example["labels"]
    for row in rows:
        rest = row_tokens - len(row["input_ids"])
        row["input_ids"] += [pad_id] * rest
        row["labels"] += [IGNORED] * rest
    return rows


class ExpertsTrainer(RestoresExperts, Trainer):
    """transformers' trainer, for a mixture of experts."""


def _train(
    model: PreTrainedModel,
    examples: list[dict[str, list[int]]],
    config: TeachConfig,
    recipe: StageRecipe,
    folder: Path,
) -> dict[str, float]:
    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        use_cpu=not on_gpu,
        bf16=True,
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        max_grad_norm=config.max_grad_norm,
        logging_first_step=True,
        logging_steps=10,
        save_strategy="no",  # the journal asks for checkpoints, by the clock
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        seed=config.seed,
        remove_unused_columns=False,
    )
    rows = packed(examples, config.row_tokens, model.config.pad_token_id or 0)
    matrices, others = split_parameters(model)
    optimizer = MuonAdamW(
        matrices,
        others,
        matrix_lr=recipe.matrix_learning_rate,
        other_lr=recipe.learning_rate,
        weight_decay=config.weight_decay,
        betas=config.adam_betas,
    )
    steps = recipe.epochs * -(-len(rows) // recipe.batch_size)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, recipe.warmup_steps, steps, min_lr_rate=recipe.final_learning_rate
    )
    trainer = ExpertsTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        data_collator=default_data_collator,
        callbacks=[ExpertBalance(model)],
        optimizers=(optimizer, schedule),
    )
    tokens = recipe.epochs * sum(len(example["input_ids"]) for example in examples)
    measured = run_trainer(trainer, folder, tokens=tokens, checkpoint_every_s=config.checkpoint_every_s)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return measured
