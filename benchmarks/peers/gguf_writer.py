"""Writes a checkpoint as a GGUF file, to compare with llama.cpp's quantizations of the very same weights.

It is separate from `export.runtime.llama_cpp`, whose process is measured, since it needs torch to read a checkpoint.
Source: the GGUF specification.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from transformers import AutoConfig

from export.checkpoint.tensors import Checkpoint, tensor_shapes
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.sources.gguf_checkpoint import permute, tensor_name

ROTATED_HALVES = ("LlamaForCausalLM", "MistralForCausalLM")
"""Architectures that llama.cpp runs as its `llama`."""


def write_gguf(folder: Path, path: Path) -> None:
    """Write a checkpoint as a GGUF file in fp16, norms in fp32, with one tensor in memory at a time."""
    checkpoint = Checkpoint(folder)
    facts = checkpoint.config
    if facts.architecture not in ROTATED_HALVES:
        raise InputError(
            f"cannot write architecture {facts.architecture} as GGUF; it must be one of {', '.join(ROTATED_HALVES)}"
        )
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(facts.max_position_embeddings)
    writer.add_embedding_length(facts.hidden_size)
    writer.add_block_count(facts.num_hidden_layers)
    writer.add_feed_forward_length(facts.intermediate_size)
    writer.add_head_count(facts.num_attention_heads)
    writer.add_head_count_kv(facts.num_key_value_heads)
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(facts.head_dim)
    writer.add_rope_freq_base(AutoConfig.from_pretrained(folder).rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(facts.rms_norm_eps)
    writer.add_vocab_size(facts.vocab_size)
    _add_tokenizer(writer, ChatFormat.from_folder(folder), facts.vocab_size)
    shapes = tensor_shapes(facts)
    for name, shape in shapes.items():
        dtype, kind = (np.float32, GGMLQuantizationType.F32) if len(shape) == 1 else (np.float16, None)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        writer.add_tensor_info(tensor_name(name), shape, np.dtype(dtype), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    heads = {"q_proj": facts.num_attention_heads, "k_proj": facts.num_key_value_heads}
    for name, shape in shapes.items():
        array = checkpoint.array(name)
        module = name.split(".")[-2]
        if module in heads:
            array = permute(array, heads[module])
        writer.write_tensor_data(array.astype(np.float32 if len(shape) == 1 else np.float16))
    writer.close()


def _add_tokenizer(writer: GGUFWriter, chat_format: ChatFormat, vocab_size: int) -> None:
    """Add the byte-level BPE of a tokenizer that splits digits, padded to the model's vocabulary."""
    state: dict[str, Any] = json.loads(chat_format.tokenizer.to_str())
    special = {token["content"] for token in state["added_tokens"] if token["special"]}
    names = {id: token for token, id in chat_format.tokenizer.get_vocab().items()}
    tokens = [names.get(id, f"[unused{id}]") for id in range(vocab_size)]
    kinds = [
        TokenType.UNUSED if id not in names else TokenType.CONTROL if names[id] in special else TokenType.NORMAL
        for id in range(vocab_size)
    ]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    stop_id = min(chat_format.stop_ids)
    writer.add_bos_token_id(stop_id)
    writer.add_eos_token_id(stop_id)
    writer.add_pad_token_id(stop_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(chat_format.template)
