"""Checks a student completely before any expensive work, loads it, and saves it.

A student needs an architecture that can be trained here, complete and finite float weights, a template into which
thoughts can be put (`distill.students`), and an embedding row for every id of its tokenizer. It is saved as a plain
bf16 checkpoint.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from distill.students.architectures import check_architecture
from distill.students.proof import prove_voice
from distill.training import document_attention
from distill.training.optimizers.choice import STATE_BYTES
from distill.training.quantized_base import dequantized, is_quantized, load_nf4, merged
from distill.training.train_config import TrainConfig
from toolkit.errors import InputError
from toolkit.formats.chat_format import REASONING_TEMPLATE, ChatFormat
from toolkit.model.decoder import load_model
from toolkit.model.loading import check_rows, not_finite, quantization
from toolkit.model.precision import compute_dtype
from toolkit.records import Problem
from toolkit.sources.model_names import is_exported
from toolkit.terminal import say


@dataclass(frozen=True, kw_only=True)
class StudentFacts:
    """Facts from a check of the whole student."""

    parameters: int
    max_tokens: int
    """The longest trainable example: the student's context."""


def check_student(
    student: Path, *, context_tokens: int = 0, targets: Sequence[str] = (), biases: str = "none"
) -> StudentFacts:
    """Load the student's weights once, as bf16, and check everything that would fail later.

    `context_tokens`, `targets` and `biases`: of `TrainConfig`, the last two being those of adapters. Raises
    `InputError` naming what is wrong with the student.
    """
    check_architecture(student)
    if method := quantization(student):
        raise InputError(
            f"the student {student} is quantized by {method} and cannot be trained; choose the float model that it was "
            "made from"
        )
    if is_exported(student):
        raise InputError(
            f"the student {student} is an exported model and cannot be trained; choose the model that it was made from"
        )
    prove_voice(student)
    model: Any = load_model(student, torch.bfloat16)
    check_rows(student, model)
    if name := not_finite(model):
        raise InputError(f"the student's weight {name} is not finite; get the checkpoint again")
    check_targets(model, targets)
    _check_biases(model, targets, biases)
    _set_context(model, context_tokens)
    if (context := model.config.max_position_embeddings) < 1:
        raise InputError(
            f"max_position_embeddings ({context}) in {student / 'config.json'} must be at least 1; get the file again, "
            "or set train.context_tokens"
        )
    return StudentFacts(parameters=sum(parameter.numel() for parameter in model.parameters()), max_tokens=context)


def check_room(facts: StudentFacts, folder: Path, config: TrainConfig, *, stages: int = 1) -> None:
    """Raise `InputError` if the disk of `folder` has no room for the trained student and its checkpoints.

    `stages`: how many follow each other, each with checkpoints and weights of its own, which stay until the run is
    finished. Checkpoints of adapters are small and do not count.
    """
    weights = torch.bfloat16.itemsize
    checkpoint = best = 0
    if not config.lora_rank:
        checkpoint = compute_dtype().itemsize + STATE_BYTES[config.optimizer]
        best = compute_dtype().itemsize
    # a checkpoint is removed only after a new one is complete
    needed = facts.parameters * (stages * (weights + config.checkpoints_kept * checkpoint) + checkpoint + best)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"the student and its checkpoints need {needed / 1e9:.1f} GB on the disk of {folder}, which has "
            f"{free / 1e9:.1f} GB free; free some, choose another --out, or train adapters (--lora)"
        )


def check_lengths(
    facts: StudentFacts, chat_format: ChatFormat, problems: Sequence[Problem], *, max_tokens: int, asked_tokens: int
) -> None:
    """Check the longest example (`max_tokens`), and warn if the teacher may write more (`asked_tokens`).

    Raises `InputError` if it is longer than the student can read, or if no question fits.
    """
    if max_tokens > facts.max_tokens:
        raise InputError(
            f"the longest example ({max_tokens} tokens) exceeds what the student reads at once ({facts.max_tokens}); "
            "lower --max-tokens, or set train.context_tokens if it was trained for more than its configuration says"
        )
    shortest = min(len(chat_format.prompt_ids(problem.messages)) for problem in problems)
    if shortest >= max_tokens:
        raise InputError(
            f"the shortest question ({shortest} tokens) leaves no room in the longest example ({max_tokens} tokens); "
            "raise --max-tokens"
        )
    if asked_tokens > max_tokens:
        say(
            f"the teacher may write {asked_tokens} tokens, but examples longer than {max_tokens} are not trained on; "
            "to train on them, raise --max-tokens"
        )


def load_student(
    folder: Path, chat_format: ChatFormat, quantization: str = "", *, context_tokens: int = 0
) -> PreTrainedModel:
    """Load the model to train, in the dtype in which its steps compute; it ends texts as its chat format does.

    `quantization` and `context_tokens`: of `TrainConfig`. Raises `InputError` if its weights cannot be read.
    """
    student = load_trainable(folder, quantization)
    _set_context(student, context_tokens)
    ends = sorted(chat_format.stop_ids)
    for settings in (student.config, student.generation_config):
        settings.eos_token_id = ends[0] if len(ends) == 1 else ends
        if settings.pad_token_id is None or chat_format.template == REASONING_TEMPLATE:
            settings.pad_token_id = chat_format.end_id
    return student


def load_trainable(folder: Path, quantization: str = "") -> PreTrainedModel:
    """Load a model with the attention that trains on documents; raises `InputError` if its weights cannot be read."""
    model = load_nf4(folder) if quantization else load_model(folder, compute_dtype())
    if torch.cuda.is_available():
        _use_gpu_kernels(model)
    else:
        model.set_attn_implementation(document_attention.NAME)
    return model


def _use_gpu_kernels(student: PreTrainedModel) -> None:
    """Let FlashAttention and Liger's norms, rotations and MLPs run where a GPU has them; the head and loss are ours."""
    if find_spec("flash_attn") and compute_dtype() == torch.bfloat16:
        student.set_attn_implementation("flash_attention_2")
    if find_spec("liger_kernel"):
        from transformers.integrations.liger import apply_liger_kernel

        apply_liger_kernel(student, {"fused_linear_cross_entropy": False, "cross_entropy": False})


def add_adapters(student: PreTrainedModel, config: TrainConfig) -> PeftModel:
    """Put low-rank adapters on the student's matrices; only these are trained.

    Raises `InputError` if the student has none of the name of a target.
    """
    check_targets(student, config.lora_targets)
    torch.manual_seed(config.seed)
    adapters = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_targets) or "all-linear",
        use_rslora=config.lora_rslora,
        use_dora=config.lora_dora,
        bias=config.lora_bias,
    )
    # PEFT asks transformers 5.23 by the old name whether layers are computed again
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # adapters keep the base's dtype, since masters hold their precision: fp32 ones would make every product fp32
    model = get_peft_model(student, adapters, autocast_adapter_dtype=False)
    for parameter in model.parameters():
        if parameter.requires_grad:  # on quantized layers they are made in fp32
            parameter.data = parameter.data.to(compute_dtype())
    return model


def causal_lm_of(model: Any) -> Any:
    """Return the causal language model itself, below its adapters if it has any."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


class KeepsTypes:
    """Lets trainers keep the dtypes of weights: TRL makes adapters of a quantized model bf16 on any machine, and PEFT
    restores adapters in fp32."""

    model: Any

    def keep_types(self, types: Mapping[str, torch.dtype]) -> None:
        """Give the weights these dtypes, now and after a checkpoint is loaded."""
        self._types = types
        for name, parameter in self.model.named_parameters():
            if parameter.dtype != types.get(name, parameter.dtype):
                parameter.data = parameter.data.to(types[name])

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(*args, **kwargs)  # type: ignore[misc]
        self.keep_types(self._types)


def types_of(model: nn.Module) -> dict[str, torch.dtype]:
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


def saved_digests(model: nn.Module) -> dict[str, str]:
    """Return a digest of each weight as it is saved, in bf16. Tied weights count once.

    Values below half of float16's smallest number count as 0: rows of zeros, of ids that occur in no text, move a
    little with the optimizer's epsilon, which means nothing.
    """
    return {name: _saved_digest(dequantized(parameter)) for name, parameter in model.named_parameters()}


def save_student(
    model: PreTrainedModel | PeftModel, folder: Path, student: Path | None = None, *, apart: bool = False
) -> PreTrainedModel:
    """Write a plain bf16 checkpoint with adapters merged, or the adapters `apart`; return the merged model.

    `student`: the folder that a quantized model was loaded from, whose shapes and other weights are taken again.
    """
    plain: Any = model
    if isinstance(model, PeftModel):
        if apart:
            model.save_pretrained(folder)
            (folder / "README.md").unlink(missing_ok=True)  # a card without contents
        if is_quantized(model):
            assert student is not None
            plain = merged(model, student)
            plain.config.update({name: getattr(model.config, name) for name in ("eos_token_id", "pad_token_id")})
            plain.generation_config = model.generation_config
        else:
            plain = model.merge_and_unload()
    plain.to(torch.bfloat16)
    if not apart:
        plain.save_pretrained(folder)
    saved: PreTrainedModel = plain
    return saved


def count_changed(before: Mapping[str, str], after: Mapping[str, str]) -> int:
    """Count the weights of a trained student that differ from those that it started from.

    Raises `InputError` if none does: such a student has learned nothing.
    """
    changed = sum(digest != before[name] for name, digest in after.items())
    if not changed:
        raise InputError(
            f"training changed none of the student's {len(after)} tensors, rounded to bf16 as they are saved; raise "
            "--learning-rate, train for more updates, or give more problems"
        )
    return changed


def _set_context(student: Any, context_tokens: int) -> None:
    if context_tokens:
        student.config.max_position_embeddings = context_tokens


def check_targets(student: Any, targets: Sequence[str]) -> None:
    """Raise `InputError`, which names the nearest, if one of `lora_targets` is no layer that can have adapters."""
    layers = _layers_for_adapters(student)
    kinds = {name.rpartition(".")[2] for name in layers}
    for target in targets:
        if any(_is_named(name, target) for name in layers):
            continue
        near = get_close_matches(target.rpartition(".")[2], kinds, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(kinds))}"
        if target.rpartition(".")[2] == "lm_head":
            hint = "the loss reads the head's weights themselves, so adapters on it would not be trained; leave it out"
        raise InputError(
            f"train.lora_targets names {target!r:.60}, which the student has no linear layer of for adapters; {hint}"
        )


def _check_biases(student: Any, targets: Sequence[str], biases: str) -> None:
    """Raise `InputError` if the student has none of the biases that are to be trained beside adapters."""
    if biases == "none":
        return
    adapted = [
        layer
        for name, layer in _layers_for_adapters(student).items()
        if not targets or any(_is_named(name, target) for target in targets)
    ]
    has_some = any(layer.bias is not None for layer in adapted)
    if biases == "all":
        has_some = any("bias" in name for name, _ in student.named_parameters())
    if not has_some:
        of = "" if biases == "all" else " in the layers that have adapters"
        raise InputError(f"train.lora_bias ({biases}) has no effect, since the student has no biases{of}; leave it out")


def _layers_for_adapters(student: Any) -> dict[str, nn.Linear]:
    head = causal_lm_of(student).get_output_embeddings()
    return {
        name: module for name, module in student.named_modules() if isinstance(module, nn.Linear) and module is not head
    }


def _is_named(layer: str, target: str) -> bool:
    """Whether PEFT puts an adapter on a layer because of a target: its name, or the end of it from a dot on."""
    return layer == target or layer.endswith(f".{target}")


def _saved_digest(weight: torch.Tensor) -> str:
    values = weight.to("cpu", torch.bfloat16).to(torch.float16) + 0.0  # -0 becomes 0
    return hashlib.blake2b(values.contiguous().numpy().data, digest_size=16).hexdigest()
