"""Opens a model once for a whole export, which hands down its tensors, its tokenizer and its float model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from export.checkpoint.tensors import Checkpoint
from toolkit.formats.chat_format import ChatFormat
from toolkit.model.decoder import load_model


@dataclass(frozen=True, kw_only=True)
class Source:
    """An opened model; `dataclasses.replace(source)` copies it without the float model in memory."""

    checkpoint: Checkpoint
    chat_folder: Path
    """The folder that holds the tokenizer and the template."""
    chat_format: ChatFormat

    @cached_property
    def float_model(self) -> PreTrainedModel:
        """The whole model in float32, loaded when it is first needed and then kept."""
        return float_model(self.checkpoint)


@torch.no_grad()
def float_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """Load a checkpoint through transformers, and replace the tensors that transformers would read differently."""
    logging.set_verbosity_error()
    model = load_model(checkpoint.folder, torch.float32)
    for name in checkpoint.read_here_only:
        model.get_parameter(name).copy_(checkpoint.tensor(name))
    return model
