"""Writes the small files of an exported folder, which loaders and the chat read beside the graph."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from export.checkpoint.source import DecoderSizes, FloatSource
from export.runtime.model_shape import GENAI_CONFIG
from toolkit.errors import InputError, ToolkitError
from toolkit.formats.chat_format import TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from toolkit.machine.allowance import physical_cores
from toolkit.records import TRAINED_ON, read_object
from toolkit.runs import discard
from toolkit.sources.model_names import MODEL_FILE

LAST_USE = ("truncation", "padding")
MODEL_FILES = ("config.json", "generation_config.json", TRAINED_ON)
TEXT_FILES = (
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


@contextmanager
def discarded_if_refused(folder: Path, out: Path) -> Iterator[None]:
    """Remove the partial folder of `out` if it cannot be exported; what a full disk stopped is kept, to be resumed."""
    try:
        yield
    except ToolkitError:
        discard(folder)
        raise
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{out} cannot be written: {why}; fix that and run the same command again") from error


def write_package(source: FloatSource, folder: Path) -> None:
    """Copy the source's configuration and tokenizer, and write its chat template, wherever the source keeps it, and
    onnxruntime-genai's configuration.
    """
    model_folder, config = source.folder, source.sizes
    chat_folder, chat_format = source.chat_folder, source.chat_format
    last = max(chat_format.tokenizer.get_vocab().values(), default=0)
    if last >= config.vocab_size:
        raise InputError(
            f"the tokenizer of {chat_folder} (its last id is {last}) must fit the model's vocab_size "
            f"({config.vocab_size}); take model and tokenizer from one place"
        )
    for path in [model_folder / name for name in MODEL_FILES] + [chat_folder / name for name in TEXT_FILES]:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    if source.is_untied:
        facts = {"tie_word_embeddings": False}
        _write_json(folder / "config.json", read_object(model_folder / "config.json") | facts)
    _write_tokenizer(chat_folder / TOKENIZER, folder / TOKENIZER)
    (folder / TEMPLATE).write_bytes(chat_format.template.encode())
    eos_token_ids = sorted(chat_format.stop_ids)
    if not (folder / "generation_config.json").is_file():
        _write_json(folder / "generation_config.json", {"eos_token_id": eos_token_ids})
    _write_json(folder / GENAI_CONFIG, genai_config(config, eos_token_ids))


def _write_tokenizer(source: Path, copy: Path) -> None:
    """Copy a tokenizer without the settings of its last use (truncation, padding, the dropout of merges in training),
    which other loaders would apply."""
    content = read_object(source)
    model = content.get("model")
    drops = isinstance(model, dict) and bool(model.get("dropout"))
    if not drops and not any(content.get(name) for name in LAST_USE):
        shutil.copyfile(source, copy)
        return
    if drops:
        content["model"] |= {"dropout": None}
    copy.write_text(json.dumps(content | dict.fromkeys(LAST_USE), ensure_ascii=False), encoding="utf-8")


def genai_config(config: DecoderSizes, eos_token_ids: list[int]) -> dict[str, Any]:
    """Make the configuration that onnxruntime-genai reads before it opens the graph; its own default is one thread."""
    return {
        "model": {
            "type": config.model_type,
            "bos_token_id": eos_token_ids[0],
            "eos_token_id": eos_token_ids,
            "pad_token_id": eos_token_ids[0],
            "context_length": config.max_position_embeddings,
            "vocab_size": config.vocab_size,
            "decoder": {
                "session_options": {"intra_op_num_threads": physical_cores(), "provider_options": []},
                "filename": MODEL_FILE,
                "hidden_size": config.hidden_size,
                "head_size": config.padded_head_dim,
                "num_attention_heads": config.num_attention_heads,
                "num_key_value_heads": config.num_key_value_heads,
                "num_hidden_layers": config.num_hidden_layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": config.max_position_embeddings,
            "past_present_share_buffer": True,
        },
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
