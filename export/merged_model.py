"""Opens a model, and has PEFT merge an adapter beforehand if it cannot be merged while the base is read
(`toolkit.sources.adapter_folder`).

    base + adapter ─ PEFT's merge_and_unload ─ <cache folder>/models/<adapter>-<digest>/

PEFT merges what our formula does not know: patterns of ranks and scales, DoRA, modules and embeddings that were trained
whole, vocabularies that grew, pickled weights. Invariant: every tensor of the adapter's file is finite and finds its
place, or nothing is left. Meanwhile the whole model is in memory in float32; it takes as much on disk.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from export.checkpoint.model_config import read_model_config
from export.checkpoint.source import Source
from export.checkpoint.tensors import EMBEDDING, LM_HEAD, Checkpoint, tensor_shapes
from export.dequantized_model import float_folder
from export.folder.package import MODEL_FILES, TEXT_FILES
from toolkit.errors import InputError, MissingExtra
from toolkit.formats.chat_format import CHAT_FILES, TOKENIZER, ChatFormat
from toolkit.machine.allowance import memory
from toolkit.machine.user_folders import cached_model_folder
from toolkit.model.decoder import load_model
from toolkit.records import read_object
from toolkit.runs import Stage, discard, files_digest, finish, is_complete, partial_folder
from toolkit.sources.adapter_folder import CONFIG, NeedsPeft
from toolkit.sources.safetensors_header import SINGLE
from toolkit.terminal import listed, say

SAMPLED_TOKENS = 24
MOST_MOVED = 0.01
"""The relative error of logits that rounding may cause when an adapter is merged."""
RESIZED = {f"base_model.model.{name}" for name in (EMBEDDING, LM_HEAD)}
"""The names under which an adapter keeps the matrices of a vocabulary that grew."""


def open_source(base: Path, adapter: Path | None) -> Source:
    """Open a model, with its adapter merged: while tensors are read where that can be, else by PEFT beforehand."""
    base = float_folder(base)
    chat_folder = adapter if adapter and (adapter / TOKENIZER).is_file() else base  # they were trained with it
    try:
        checkpoint = Checkpoint(base, adapter)
    except NeedsPeft as error:
        assert adapter
        say(f"export: {error}")
        chat_folder = merged_folder(base, adapter, chat_folder)
        checkpoint = Checkpoint(chat_folder)
    chat_format = ChatFormat.from_folder(chat_folder, model_folder=checkpoint.folder)
    return Source(checkpoint=checkpoint, chat_folder=chat_folder, chat_format=chat_format)


def merged_folder(base: Path, adapter: Path, chat_folder: Path) -> Path:
    """Return the cache's folder of the merged model, and make it if there is none for these very folders.

    `chat_folder` holds its tokenizer and template. Raises `InputError` if PEFT does not merge the whole adapter, or the
    memory is too small.
    """
    inputs = {"base": files_digest(base), "adapter": files_digest(adapter)}
    out = cached_model_folder(adapter.resolve().name, inputs)
    stage = Stage(name="merge", config={}, inputs=inputs)
    if is_complete(out, stage):
        return out
    folder = partial_folder(out, stage)
    say(f"export: PEFT merges {adapter} into {out}")
    try:
        _write_model(base, _merge(base, adapter), folder)
        for path in [base / name for name in MODEL_FILES] + [chat_folder / name for name in (*TEXT_FILES, *CHAT_FILES)]:
            if path.is_file() and path.name != "config.json":
                shutil.copyfile(path, folder / path.name)
    except BaseException:
        discard(folder)
        raise
    finish(folder, out, stage, {"base": str(base), "adapter": str(adapter)})
    return out


def _merge(base: Path, adapter: Path) -> dict[str, Tensor]:
    """Return the merged model's tensors, without the head if it is the embedding."""
    try:
        from peft import PeftModel
        from peft.utils import load_peft_weights, set_peft_model_state_dict
    except ImportError as error:
        raise MissingExtra(error.name or "peft", "distill") from error
    kind = read_object(adapter / CONFIG).get("peft_type")
    try:
        weights = load_peft_weights(str(adapter), device="cpu")
        _check_finite(adapter, weights)
        model: Any = _loaded(base, weights)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted: Any = PeftModel.from_pretrained(model, str(adapter))
        placed = set_peft_model_state_dict(adapted, weights)
        if placed.unexpected_keys:
            raise InputError(
                f"its model has no place for {listed(placed.unexpected_keys)}; get it again, or give its own --base"
            )
        if not hasattr(adapted, "merge_and_unload"):
            raise InputError(f"peft_type {kind} does not change weights; export an adapter that does, such as LoRA")
        before = _some_logits(adapted)
        merged = adapted.merge_and_unload(safe_merge=True)
    except InputError as error:
        raise InputError(f"PEFT cannot merge the adapter {adapter} into {base}: {error}") from error
    except Exception as error:  # PEFT's kinds of adapters each raise their own
        line = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"PEFT cannot merge the adapter {adapter} into {base}: {type(error).__name__}: {line}; "
            "merge it where it was trained, and export the result"
        ) from error
    moved = _relative_error(before, _some_logits(merged))
    if moved > MOST_MOVED:
        say(
            f"export: merging changed what {adapter} computes: logits differ by {moved:.0%}, as happens if an adapter "
            "changes an embedding that the head shares; measure the export before you use it"
        )
    tensors: dict[str, Tensor] = merged.state_dict()
    if LM_HEAD in tensors and tensors[LM_HEAD].data_ptr() == tensors[EMBEDDING].data_ptr():
        del tensors[LM_HEAD]
    return tensors


def _some_logits(model: Any) -> Tensor:
    """Compute logits_BTV of a few tokens."""
    model.eval()
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.arange(SAMPLED_TOKENS)[None] % model.config.vocab_size).logits
    return logits


def _relative_error(expected: Tensor, found: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _loaded(base: Path, weights: dict[str, Tensor]) -> torch.nn.Module:
    """Load the base, with as many tokens as the adapter's own embedding or head has."""
    _check_memory(base)
    model: Any = load_model(base, torch.float32)
    rows = {len(weights[name]) for name in RESIZED & weights.keys()}
    if rows and rows != {model.config.vocab_size}:
        model.resize_token_embeddings(max(rows), mean_resizing=False)
    loaded: torch.nn.Module = model
    return loaded


def _write_model(base: Path, tensors: dict[str, Tensor], folder: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / SINGLE, {"format": "pt"})
    facts = {"vocab_size": len(tensors[EMBEDDING]), "tie_word_embeddings": LM_HEAD not in tensors}
    (folder / "config.json").write_text(json.dumps(read_object(base / "config.json") | facts, indent=1) + "\n")


def _check_finite(adapter: Path, weights: dict[str, Tensor]) -> None:
    for name, tensor in sorted(weights.items()):
        if not torch.isfinite(tensor).all():
            raise InputError(f"{name} in the adapter {adapter} holds NaN or infinite values; train it again")


def _check_memory(base: Path) -> None:
    shapes = tensor_shapes(read_model_config(base)).values()
    needed, available = 4 * sum(torch.Size(shape).numel() for shape in shapes), memory().available_bytes
    if needed > available:
        raise InputError(
            f"merging needs memory for the float model ({needed / 1e9:.1f} GB; {available / 1e9:.1f} GB are free); "
            "close programs, or merge it on another machine and export the result"
        )
