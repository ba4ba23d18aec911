"""Makes a reasoning teacher in DeepSeek-R1's stages, each a run folder of its own.

    out/pretrain                 next-token training on text in all habits         ┐ skipped
       /midtrain                 next-token training on better text: the base      ┘ if a base is given
    out/seed-N/zero_rl           R1-Zero: reinforcement straight from the base      (only on request)
              /cold_start        a few careful conversations
              /reason_rl         reinforcement on verified answers
              /rejection_sft     the base again, trained on right and readable answers of the reinforced model,
                                 with requests to refuse or to answer
              /align_rl          reinforcement on answers and requests together
    out/eval/…                   each stage on the held-out problems and requests
    out/teacher                  the last stage's weights with their card

Complete stages are not run again. Methods: DeepSeek-V3 and DeepSeek-R1 reports.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from distill.problems.families import make_problems
from distill.problems.requests import make_requests
from distill.reinforcement.grpo import GrpoConfig, make_trainer
from distill.reinforcement.judge import judge_digest, open_judges
from distill.teach.corpus import (
    MIDTRAINING,
    PRETRAINING,
    CorpusText,
    careful_texts,
    document,
    pretraining_texts,
    wording,
)
from distill.teach.rejection import write_training_set
from distill.teach.release import evaluate_stage, measure_ledger_row, release
from distill.teach.stages import BASE, FOLLOWS, STAGES, WRITER
from distill.teach.supervised import supervise
from distill.teach.teacher_recipe import StageRecipe, TeachConfig, TeacherShape
from distill.teach.teacher_tokenizer import END_OF_TEXT, make_tokenizer
from distill.training.completion_loss import labelled
from distill.training.journal import CHECKPOINTS, run_trainer
from toolkit.errors import InputError
from toolkit.formats.chat_format import CHAT_FILES, REASONING_TEMPLATE, TURN_END, ChatFormat, write_chat_files
from toolkit.machine.allocator import keep_freed_memory
from toolkit.model.balance import ExpertBalance
from toolkit.model.decoder import load_model
from toolkit.model.experts import compute_experts
from toolkit.records import Problem
from toolkit.runs import Stage, finish, folder_digest, is_complete, partial_folder, say_done
from toolkit.terminal import say

MIDTRAINING_SEED, COLD_START_SEED, REINFORCED_SEED, REJECTION_SEED, ALIGNED_SEED = 6, 2, 3, 4, 5
"""The seeds of the stages' problems, so that no stage reuses those of the one before."""


def teach(config: TeachConfig, out: Path, *, base: Path | None = None, seeds: int = 1) -> Path:
    """Run all stages from random weights, or those after `base`; return the teacher's folder.

    With several seeds, the stages after the base and R1-Zero run under each of them, and the card compares them.
    """
    models: dict[str, list[Path]] = {}
    evaluations: dict[str, list[Path]] = {}
    for seed in range(config.seed, config.seed + seeds):
        for name in STAGES:
            if (name == "zero_rl" and seeds == 1) or (_is_shared(name) and (base or seed > config.seed)):
                continue
            seeded = config if _is_shared(name) else replace(config, seed=seed)
            models.setdefault(name, []).append(run_stage(name, seeded, out, base=base))
            evaluations.setdefault(name, []).append(
                evaluate_stage(config, models[name][-1], stage_folder(name, seeded, out / "eval"))
            )
    if base:
        models = {BASE: [base]} | models
        evaluations = {BASE: [evaluate_stage(config, base, out / "eval" / BASE)]} | evaluations
    row = measure_ledger_row(config, models[STAGES[-1]][0], out / "eval" / "ledger")
    return release(config, models, evaluations, row, out / "teacher")


def teach_zero(config: TeachConfig, out: Path, *, base: Path | None = None) -> Path:
    """Run only R1-Zero; return the folder of its model."""
    if base is None:
        run_stage("pretrain", config, out)
        base = run_stage(BASE, config, out)
    model = run_stage("zero_rl", config, out, base=base)
    for name, folder in ((BASE, base), ("zero_rl", model)):
        evaluate_stage(config, folder, stage_folder(name, config, out / "eval"))
    return model


def run_stage(
    name: str, config: TeachConfig, out: Path, *, base: Path | None = None, start: Path | None = None
) -> Path:
    """Run one stage of the run in `out`; return its folder.

    `base` replaces the run's own base; `start` is any model from which to start this stage. Raises `InputError` if the
    stage before is not finished.
    """

    def finished(stage: str) -> Path:
        folder = base if base and stage == BASE else stage_folder(stage, config, out)
        if not folder.is_dir():
            raise InputError(
                f"stage {name} needs stage {stage}, but {folder} does not exist; run --stage {stage} first or give "
                "--base"
            )
        return folder

    target = stage_folder(name, config, out)
    if name == "pretrain":
        return pretrain(config, target)
    start = start or finished(FOLLOWS[name])
    match name:
        case "midtrain":
            return midtrain(config, start, target)
        case "zero_rl":
            return zero_rl(config, start, target)
        case "cold_start":
            return cold_start(config, start, target)
        case "reason_rl":
            return reason_rl(config, start, target)
        case "rejection_sft":
            return rejection_sft(config, start, finished(WRITER), target)
        case _:
            return align_rl(config, start, target)


def stage_folder(name: str, config: TeachConfig, out: Path) -> Path:
    """Return a stage's folder in the run `out`, or its evaluation in the folder of evaluations."""
    return out / name if _is_shared(name) else out / f"seed-{config.seed}" / name


def _is_shared(name: str) -> bool:
    return STAGES.index(name) <= STAGES.index(BASE)


def pretrain(config: TeachConfig, out: Path) -> Path:
    """Train random weights on the next token of text in all habits."""
    facts = _supervised_facts(config, config.pretrain)
    facts |= {"shape": asdict(config.shape), "per_family": config.pretrain_per_family}
    facts |= {"request_repeats": config.request_repeats}
    stage = Stage(name="teach.pretrain", config=facts, inputs={})
    if _is_done(out, stage):
        return out
    folder = partial_folder(out, stage)
    problems = make_problems("train", config.pretrain_per_family, config.seed, config.families)
    texts = pretraining_texts(problems, PRETRAINING, config.seed, config.request_repeats)
    write_tokenizer(folder, texts)
    torch.manual_seed(config.seed)
    model = DeepseekV3ForCausalLM(teacher_config(config.shape, ChatFormat.from_folder(folder)))
    return _read(texts, model, config, config.pretrain, folder, out, stage)


def midtrain(config: TeachConfig, base: Path, out: Path) -> Path:
    """Train the pretrained model on better text: the next token, except in questions, which are mostly chance."""
    facts = _supervised_facts(config, config.midtrain)
    facts |= {"per_family": config.midtrain_per_family, "questions": "read"}
    facts |= {"request_repeats": config.request_repeats}
    stage = Stage(name="teach.midtrain", config=facts, inputs={"base": folder_digest(base)})
    if _is_done(out, stage):
        return out
    folder = partial_folder(out, stage)
    _copy_chat_files(base, folder)
    problems = make_problems("train", config.midtrain_per_family, MIDTRAINING_SEED, config.families)
    texts = pretraining_texts(problems, MIDTRAINING, config.seed, config.request_repeats)
    return _read(texts, load_model(base, torch.float32), config, config.midtrain, folder, out, stage, ask=False)


def cold_start(config: TeachConfig, base: Path, out: Path) -> Path:
    """Train the base on a few careful conversations, with the loss on the completions."""
    stage = Stage(
        name="teach.cold_start",
        config=_supervised_facts(config, config.cold_start) | {"per_family": config.cold_start_per_family},
        inputs={"base": folder_digest(base)},
    )
    if _is_done(out, stage):
        return out
    problems = make_problems("train", config.cold_start_per_family, COLD_START_SEED, config.families)
    return _converse(list(careful_texts(problems)), config, config.cold_start, base, out, stage, {})


def rejection_sft(config: TeachConfig, base: Path, writer: Path, out: Path) -> Path:
    """Train the base again, on the right and readable answers of `writer` and on requests."""
    recipe = config.rejection_sft
    stage = Stage(
        name="teach.rejection_sft",
        config=_supervised_facts(config, recipe.training) | {"rejection": asdict(recipe)},
        inputs={"base": folder_digest(base), "writer": folder_digest(writer)},
    )
    if _is_done(out, stage):
        return out
    problems = make_problems("train", recipe.problems_per_family, REJECTION_SEED, config.families)
    texts, counts = write_training_set(writer, problems, recipe, config.seed, partial_folder(out, stage))
    return _converse(texts, config, recipe.training, base, out, stage, {"rejection": counts})


def zero_rl(config: TeachConfig, base: Path, out: Path) -> Path:
    """Reinforce the base without any conversation to imitate (R1-Zero)."""
    problems = partial(_reasoning_problems, config, config.zero_rl, REINFORCED_SEED)
    return _reinforce("zero_rl", config, config.zero_rl, problems, base, out)


def reason_rl(config: TeachConfig, base: Path, out: Path) -> Path:
    """Reinforce on verified answers."""
    problems = partial(_reasoning_problems, config, config.reason_rl, REINFORCED_SEED)
    return _reinforce("reason_rl", config, config.reason_rl, problems, base, out)


def align_rl(config: TeachConfig, base: Path, out: Path) -> Path:
    """Reinforce on verified answers and, in the given share, on requests to refuse or to answer."""
    recipe = config.align_rl
    if config.judge:
        recipe = replace(recipe, weights={**recipe.weights, **config.judge_weights})
    facts = {"requests": config.align_requests}
    return _reinforce("align_rl", config, recipe, partial(_mixed_problems, config), base, out, facts, config.judge)


def _reasoning_problems(config: TeachConfig, recipe: GrpoConfig, seed: int) -> list[Problem]:
    per_family = -(-recipe.steps * recipe.groups * recipe.attempts // len(config.families))  # each drawn about once
    return make_problems("train", per_family, seed, config.families)


def _mixed_problems(config: TeachConfig) -> list[Problem]:
    problems = _reasoning_problems(config, config.align_rl, ALIGNED_SEED)
    size = round(len(problems) * config.align_requests)
    requests = make_requests("train", seed=config.seed)
    repeated = requests * -(-size // len(requests))
    return problems[size:] + repeated[:size]


def _reinforce(
    name: str,
    config: TeachConfig,
    recipe: GrpoConfig,
    make: Callable[[], list[Problem]],
    base: Path,
    out: Path,
    facts: Mapping[str, Any] = MappingProxyType({}),
    judge: str = "",
) -> Path:
    """Run GRPO from the model in `base` on the problems of `make`, which depend on the recipe and `facts`.

    Raises `InputError` before any training if all groups have equal rewards.
    """
    recipe = replace(recipe, seed=config.seed)
    inputs = {"base": folder_digest(base)}
    if judge:
        inputs["judge"] = judge_digest(judge)
    facts = {**asdict(recipe), "families": config.families, **facts}
    stage = Stage(name=f"teach.{name}", config=facts, inputs=inputs)
    if _is_done(out, stage):
        return out
    keep_freed_memory()
    folder = partial_folder(out, stage)
    _copy_chat_files(base, folder)
    model = load_model(base, torch.float32)
    compute_experts(model)
    trainer = make_trainer(
        model,
        base,
        make(),
        recipe,
        folder,
        open_judges(judge, folder / "judged") if judge else {},
        callbacks=[ExpertBalance(model, rate=0.0)],
    )
    measured = trainer.preflight()
    measured |= run_trainer(trainer, folder, tokens=0, checkpoint_every_s=config.checkpoint_every_s)
    measured |= {"updates": recipe.steps, "final_reward": trainer.survey()[0]}
    return _save(model, folder, out, stage, measured)


def _read(
    texts: Sequence[CorpusText],
    model: Any,
    config: TeachConfig,
    recipe: StageRecipe,
    folder: Path,
    out: Path,
    stage: Stage,
    *,
    ask: bool = True,
) -> Path:
    """Train on the next token of documents; `ask`: also in their questions."""
    keep_freed_memory()
    chat = ChatFormat.from_folder(folder)
    examples = []
    for place, text in enumerate(texts):
        asked, told = document(chat, text, place, config.seed)
        examples.append(labelled(asked + told, [ask] * len(asked) + [True] * len(told)))
    measured = supervise(model, examples, config, recipe, folder)
    return _save(model, folder, out, stage, {"examples": len(examples)} | measured)


def _converse(
    texts: Sequence[CorpusText],
    config: TeachConfig,
    recipe: StageRecipe,
    base: Path,
    out: Path,
    stage: Stage,
    measured: dict[str, Any],
) -> Path:
    """Train the model in `base` on conversations, shuffled by the seed."""
    keep_freed_memory()
    folder = partial_folder(out, stage)
    _copy_chat_files(base, folder)
    chat = ChatFormat.from_folder(folder)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(config.seed)).tolist()
    examples = [
        labelled(*chat.training_ids(texts[i].problem.messages, texts[i].reasoning, texts[i].answer)) for i in order
    ]
    model = load_model(base, torch.float32)
    measured |= {"examples": len(examples)} | supervise(model, examples, config, recipe, folder)
    return _save(model, folder, out, stage, measured)


def _is_done(out: Path, stage: Stage) -> bool:
    """Return whether a stage is complete, and say so, or that it is prepared now."""
    if is_complete(out, stage):
        say_done(out)
        return True
    say(f"teach: preparing {stage.name.removeprefix('teach.')}")
    return False


def _save(model: Any, folder: Path, out: Path, stage: Stage, measured: dict[str, Any]) -> Path:
    model.config.use_cache = True  # the trainer turned it off
    model.bfloat16().save_pretrained(folder)
    finish(folder, out, stage, measured, scratch=(CHECKPOINTS,))
    return out


def _copy_chat_files(base: Path, folder: Path) -> None:
    for file in CHAT_FILES:
        if not (base / file).is_file():
            raise InputError(f"{base} has no {file}, so it cannot hold a conversation; name another base")
        shutil.copy2(base / file, folder / file)


def _supervised_facts(config: TeachConfig, recipe: StageRecipe) -> dict[str, Any]:
    """Return what determines a supervised stage's weights, besides the source of its examples."""
    names = ("families", "row_tokens", "weight_decay", "adam_betas", "max_grad_norm", "seed")
    return {name: getattr(config, name) for name in names} | {"recipe": asdict(recipe)}


def teacher_config(shape: TeacherShape, chat: ChatFormat) -> DeepseekV3Config:
    """Return the model's `config.json`."""
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


def write_tokenizer(folder: Path, texts: Sequence[CorpusText]) -> None:
    """Make the teacher's tokenizer from the wording of its tasks."""
    plain = ChatFormat(Tokenizer(BPE()), REASONING_TEMPLATE, frozenset(), {})  # prompts as text need no vocabulary
    tokenizer = make_tokenizer(wording(texts, plain))
    write_chat_files(folder, tokenizer, template=REASONING_TEMPLATE, eos_token=TURN_END, pad_token=END_OF_TEXT)
