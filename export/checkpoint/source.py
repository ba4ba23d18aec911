"""Opens a model once for a whole export, which hands down its tensors, its tokenizer and its float model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from export.checkpoint.model_config import ModelConfig
from export.checkpoint.tensors import Checkpoint
from toolkit.formats.chat_format import ChatFormat
from toolkit.model.decoder import load_model


class DecoderSizes(Protocol):
    """The numbers that loaders of an exported folder and the gate read; names are those of `config.json`."""

    @property
    def model_type(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def padded_head_dim(self) -> int:
        """The size of a head in the graph's cache."""

    @property
    def max_position_embeddings(self) -> int: ...


class FloatSource(Protocol):
    """A float model beside which an exported folder is packed and compared, whoever wrote the graph."""

    @property
    def folder(self) -> Path: ...
    @property
    def chat_folder(self) -> Path: ...
    @property
    def chat_format(self) -> ChatFormat: ...
    @property
    def sizes(self) -> DecoderSizes: ...
    @property
    def is_untied(self) -> bool:
        """Whether embedding and head are two matrices although `config.json` says that they are tied."""

    @property
    def float_model(self) -> PreTrainedModel: ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """An opened model; `dataclasses.replace(source)` copies it without the float model in memory."""

    checkpoint: Checkpoint
    chat_folder: Path
    """The folder that holds the tokenizer and the template."""
    chat_format: ChatFormat

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    @property
    def sizes(self) -> ModelConfig:
        return self.checkpoint.config

    @property
    def is_untied(self) -> bool:
        return self.checkpoint.is_untied

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
