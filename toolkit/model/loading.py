"""Loads a checkpoint completely or not at all.

transformers fills a tensor that a checkpoint lacks with random numbers, drops one that its architecture has no place
for, and only reports both. Here each of these is an error that names the tensor.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from toolkit.errors import InputError
from toolkit.formats.chat_format import TOKENIZER, load_tokenizer
from toolkit.records import read_object
from toolkit.sources.safetensors_header import read_header
from toolkit.terminal import listed

FLOATS = ("BF16", "F16", "F32", "F64")
"""Types in which weights may be stored, by their names in safetensors."""
PLAIN_OUTPUTS = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
"""Settings that override what a `config.json` may ask for beside the logits, which are all that is read."""
NO_ADAPTERS = "no-adapters"
"""A folder that does not exist, in which transformers is told to look for adapters, so that it takes none from the
model's folder."""


def load_whole(auto_class: Any, folder: Path, *, extra_allowed: bool = False, **settings: Any) -> PreTrainedModel:
    """Load the model of a local folder with one of transformers' auto classes.

    `extra_allowed`: the checkpoint may hold more, such as the head of the model that a classifier was made from.
    Raises `InputError` if the folder holds no model, or if its tensors are not those of the architecture that its
    `config.json` describes, or are integers of a quantized model.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; give a model folder")
    method = quantization(folder)
    disable_progress_bar()  # loading local weights takes only a moment
    try:
        with _reports_silenced():
            model: PreTrainedModel
            model, found = auto_class.from_pretrained(
                folder,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # so that they are named below
                output_loading_info=True,
                adapter_kwargs={"subfolder": NO_ADAPTERS},
                **(PLAIN_OUTPUTS | settings),
            )
        stored = {} if method else _stored_types(folder)
    except Exception as error:  # safetensors, JSON and quantizers each raise their own
        quantized = f" (it is quantized by {method}: choose the model that it was made from)" if method else ""
        raise InputError(f"{folder} must hold a model that transformers can load{quantized}: {error}") from error
    _refuse_other_tensors(folder, found, extra_allowed)
    _refuse_codes(folder, stored)
    return model


def quantization(folder: Path) -> str | None:
    """Return how the model of a folder is quantized according to its `config.json`; None if it is not."""
    config = read_object(folder / "config.json")
    settings = config.get("quantization_config") or config.get("compression_config")  # vLLM's compressor, until 2024
    if not settings:
        return "MLX" if isinstance(config.get("quantization"), dict) else None
    return str(settings.get("quant_method", "an unknown method")) if isinstance(settings, dict) else str(settings)


def check_rows(folder: Path, model: PreTrainedModel, *, added: bool = True) -> None:
    """Raise `InputError` if the tokenizer of a folder has ids that its model has no embedding for.

    `added`: whether tokens that were added to the vocabulary count, such as one for padding, which no text has.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    ids = load_tokenizer(folder / TOKENIZER).get_vocab(with_added_tokens=added)
    token, last = max(ids.items(), key=lambda entry: entry[1], default=("", -1))
    if last >= rows:
        raise InputError(
            f"the tokenizer of {folder} has ids beyond the model's embedding of {rows} rows ({token!r} is {last}); get "
            "tokenizer and weights of one model"
        )


def not_finite(model: torch.nn.Module) -> str | None:
    """Return the name of the first weight that holds NaN or an infinity; None if all are finite."""
    for name, parameter in model.named_parameters():
        total: Any = parameter.detach().sum(dtype=torch.float64)
        if not torch.isfinite(total.full_tensor() if isinstance(total, DTensor) else total):
            return name
    return None


def _refuse_other_tensors(folder: Path, found: dict[str, Any], extra_allowed: bool) -> None:
    """Raise `InputError` if a tensor has another shape than the architecture's, is missing, or has no place in it."""
    if mismatched := sorted(found["mismatched_keys"]):
        name, shape, expected = mismatched[0]
        raise InputError(
            f"the shape of {name} in the checkpoint {folder} ({list(shape)}) must equal that of its config.json "
            f"({list(expected)}); {len(mismatched)} in all differ; get weights and config.json of one model"
        )
    if missing := sorted(found["missing_keys"]):
        raise InputError(
            f"the checkpoint {folder} must hold every tensor of its architecture, but lacks {listed(missing)}; "
            "get the whole checkpoint again"
        )
    if (unexpected := sorted(found["unexpected_keys"])) and not extra_allowed:
        raise InputError(
            f"the checkpoint {folder} must hold only tensors of its architecture, which has no place for "
            f"{listed(unexpected)}; get weights and config.json of one model"
        )


def _refuse_codes(folder: Path, stored: dict[str, str]) -> None:
    """Raise `InputError` if weights are stored as integers: codes of a quantized model mean nothing as floats."""
    for name, dtype in sorted(stored.items()):
        if dtype not in FLOATS and name.endswith(".weight"):
            raise InputError(
                f"the weights in {folder} must be floats ({', '.join(FLOATS)}), but {name} is {dtype}, as in a "
                "quantized model; choose the model that it was made from"
            )


def _stored_types(folder: Path) -> dict[str, str]:
    """Return the dtype of each tensor, from the headers of the folder's safetensors files."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        found |= {name: facts.dtype for name, facts in read_header(path).items()}
    return found


@contextmanager
def _reports_silenced() -> Iterator[None]:
    """Keep transformers from printing a table of missing tensors, which the error names in one line."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_nothing)  # a higher level would make it print other things
    try:
        yield
    finally:
        logger.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False
