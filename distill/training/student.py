"""The model that is trained: checked whole before anything is paid for, loaded, and saved.

A student must be of an architecture that can be trained here, in floats, complete and finite, with a tokenizer whose
ids all have a row of the embedding and hold the tokens of a turn. What it is saved as is a plain bf16 checkpoint.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from distill.training import document_attention
from toolkit.errors import InputError
from toolkit.formats.chat_format import (
    REASONING_TEMPLATE,
    TURN_END,
    TURN_START,
    ChatFormat,
    load_tokenizer,
    write_chat_files,
)
from toolkit.model.decoder import load_model
from toolkit.model.loading import not_finite, quantization
from toolkit.model.precision import compute_dtype
from toolkit.records import Problem, read_object
from toolkit.sources.model_names import is_exported
from toolkit.terminal import say

STUDENT_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type` of the architectures whose forward hands `documents` through to the attention."""
OPTIMIZER_BYTES = 12
"""A trained weight's fp32 master and its two moments."""
CHECKPOINTS_AT_ONCE = 2
"""The one before is removed once a new one is whole."""


@dataclass(frozen=True, kw_only=True)
class StudentFacts:
    """What a check of the whole student found."""

    parameters: int
    max_tokens: int
    """The longest example that it can be trained on: its context, or its sliding window on a CPU."""


def check_student(student: Path) -> StudentFacts:
    """Read the whole student and refuse what would fail later; see the module. Loads its weights once, as bf16.

    Raises `InputError` naming what is wrong with it.
    """
    settings = read_object(student / "config.json")
    model_type = settings.get("model_type")
    if model_type not in STUDENT_TYPES:
        raise InputError(f"the student's architecture ({model_type}) must be one of {', '.join(STUDENT_TYPES)}")
    if method := quantization(student):
        raise InputError(
            f"the student {student} must hold floats, but is quantized by {method}; "
            "choose the model that it was made from"
        )
    if is_exported(student):
        raise InputError(
            f"the student {student} must hold weights to train, but is an exported "
            "model; choose the one that it was made "
            "from"
        )
    tokenizer = load_tokenizer(student / "tokenizer.json")
    for token in (TURN_START, TURN_END):
        if tokenizer.token_to_id(token) is None:
            raise InputError(f"the vocabulary of {student} must hold {token} (ChatML); choose another student")
    model: Any = load_model(student, torch.bfloat16)
    rows = model.get_input_embeddings().weight.shape[0]
    token, last = max(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda entry: entry[1])
    if last >= rows:
        raise InputError(
            f"each id of the student's tokenizer must have a row of its embedding ({rows}), but {token!r} is {last}; "
            "get tokenizer and weights of one model"
        )
    if name := not_finite(model):
        raise InputError(f"the student's weights must be finite, but {name} is not; get the checkpoint again")
    return StudentFacts(
        parameters=sum(parameter.numel() for parameter in model.parameters()), max_tokens=_longest(model.config)
    )


def check_room(facts: StudentFacts, folder: Path, *, lora_rank: int) -> None:
    """Raise `InputError` where the disk of `folder` has no room for the trained student and its checkpoints.

    Of adapters, which are small, no checkpoint is counted.
    """
    checkpoint = 0 if lora_rank else CHECKPOINTS_AT_ONCE * (compute_dtype().itemsize + OPTIMIZER_BYTES)
    best = 0 if lora_rank else compute_dtype().itemsize
    needed = facts.parameters * (torch.bfloat16.itemsize + checkpoint + best)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"the disk of {folder} must have {needed / 1e9:.1f} GB free for the student and its checkpoints; it has "
            f"{free / 1e9:.1f} GB; free some, choose another --out, or train adapters (--lora)"
        )


def check_lengths(
    facts: StudentFacts, chat_format: ChatFormat, problems: Sequence[Problem], *, max_tokens: int, asked_tokens: int
) -> None:
    """Check how long examples may be (`max_tokens`), and say so where the teacher may write more (`asked_tokens`).

    Raises `InputError` where they are longer than the student can read, or where no question fits.
    """
    if max_tokens > facts.max_tokens:
        raise InputError(
            f"the longest example ({max_tokens} tokens) must be at most what the student reads at once "
            f"({facts.max_tokens}); lower --max-tokens"
        )
    shortest = min(len(chat_format.prompt_ids(problem.messages)) for problem in problems)
    if shortest >= max_tokens:
        raise InputError(
            f"the shortest question ({shortest} tokens) must leave room in the longest example ({max_tokens}); "
            "raise --max-tokens"
        )
    if asked_tokens > max_tokens:
        say(
            f"the teacher may write {asked_tokens} tokens, and examples longer than {max_tokens} are not trained on; "
            "--max-tokens raises that"
        )


def write_student_format(student: Path, folder: Path) -> ChatFormat:
    """Write the student's tokenizer with the reasoning template into `folder`, and read the format from there."""
    tokenizer = load_tokenizer(student / "tokenizer.json")
    write_chat_files(folder, tokenizer, template=REASONING_TEMPLATE, eos_token=TURN_END, pad_token=TURN_END)
    return ChatFormat.from_folder(folder)


def load_student(folder: Path, end: int) -> PreTrainedModel:
    """The model that is trained, in the dtype that its steps compute in; `end` becomes its end-of-text token.

    Raises `InputError` where its weights cannot be read.
    """
    student = load_model(folder, compute_dtype())
    for settings in (student.config, student.generation_config):
        settings.eos_token_id = settings.pad_token_id = end
    if not torch.cuda.is_available():
        student.set_attn_implementation(document_attention.NAME)
    return student


def add_adapters(student: PreTrainedModel, rank: int, seed: int) -> PeftModel:
    """The student with low-rank adapters on its matrices, which alone are trained."""
    torch.manual_seed(seed)
    adapters = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    # adapters stay in the base's dtype, as masters keep their precision: fp32 ones would turn every product fp32
    return get_peft_model(student, adapters, autocast_adapter_dtype=False)


def saved_digests(model: nn.Module) -> dict[str, str]:
    """A digest of each weight as it is saved: in bf16. Tied weights count once.

    What is less than half of float16's smallest number counts as 0: rows of zeros, of ids that no text has, move by as
    little as the optimizer is asked for, and mean nothing.
    """
    return {name: _saved_digest(parameter.detach()) for name, parameter in model.named_parameters()}


def save_student(model: PreTrainedModel | PeftModel, folder: Path) -> PreTrainedModel:
    """Write a plain bf16 checkpoint, adapters merged; returns the model as it was saved."""
    plain: Any = model.merge_and_unload() if isinstance(model, PeftModel) else model
    plain.to(torch.bfloat16).save_pretrained(folder)
    saved: PreTrainedModel = plain
    return saved


def count_changed(before: Mapping[str, str], after: Mapping[str, str]) -> int:
    """How many weights of a trained student differ from the ones that it started from.

    Raises `InputError` where none does: such a student has learned nothing.
    """
    changed = sum(digest != before[name] for name, digest in after.items())
    if not changed:
        raise InputError(
            f"at least 1 of the student's {len(after)} tensors must differ from "
            "before training, but in bf16, as they are "
            "saved, all are equal; raise --learning-rate or --epochs, or give more problems"
        )
    return changed


def _saved_digest(weight: torch.Tensor) -> str:
    values = weight.to("cpu", torch.bfloat16).to(torch.float16) + 0.0  # -0 becomes 0
    return hashlib.blake2b(values.contiguous().numpy().data, digest_size=16).hexdigest()


def _longest(config: Any) -> int:
    """Tokens of the longest example; the attention of documents on a CPU has no sliding window."""
    limits: list[int] = [config.max_position_embeddings]
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "sliding_window", None) is not None
    if slides and not torch.cuda.is_available():
        limits.append(config.sliding_window)
    return min(limits)
