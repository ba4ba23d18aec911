"""llama.cpp with the very weights of a checkpoint, to compare with: written as GGUF, quantized there, and run.

Needs llama-cpp-python, which compiles for the machine that it runs on; nothing else in the project does.
Source: the GGUF specification; llama.h for what is called.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, TokenType
from numpy.typing import NDArray

from export.checkpoint import Checkpoint, tensor_shapes
from toolkit.chat_format import ChatFormat
from toolkit.errors import InputError
from toolkit.gguf_checkpoint import permute, tensor_name

Floats = NDArray[np.float32]
Quantization = Literal["Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q8_0"]

BATCH = 512
"""Tokens that llama.cpp reads at once; its own default."""
ROTATED_HALVES = ("LlamaForCausalLM", "MistralForCausalLM")
"""Architectures that llama.cpp runs as its `llama`."""


def is_installed() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


def library() -> ModuleType:
    """Raises `InputError` where llama-cpp-python is missing."""
    try:
        return importlib.import_module("llama_cpp")
    except ImportError as error:
        raise InputError(
            "comparing with a GGUF must have llama-cpp-python (not installed); "
            'CMAKE_ARGS="-DLLAVA_BUILD=OFF" pip install llama-cpp-python'
        ) from error


class LlamaCpp:
    """A GGUF file, loaded; a `Decoder` of one row as far as comparisons need it."""

    def __init__(self, path: Path, *, threads: int, max_length: int) -> None:
        """Raises `InputError` where llama-cpp-python is missing."""
        self._api: Any = library()
        self._path = path
        self._model = self._api.Llama(
            str(path), n_ctx=max_length, n_batch=BATCH, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self.vocab_size = self._model.n_vocab()
        self._batch = self._api.llama_batch_init(BATCH, 0, 1)
        self._length = 0

    def step_bytes(self, context: int) -> int:
        """Bytes of weights and cache that a step reads; our reader of the file takes its time and memory for it."""
        tensors = {tensor.name: tensor for tensor in GGUFReader(self._path).tensors}
        looked_up = tensors["token_embd.weight"].n_bytes if "output.weight" in tensors else 0
        weight_bytes = sum(tensor.n_bytes for tensor in tensors.values()) - int(looked_up)
        layers, kv_width = int(self._model.metadata["llama.block_count"]), tensors["blk.0.attn_k.weight"].shape[1]
        position_bytes = int(2 * 2 * layers * kv_width)  # key and value, in fp16
        return int(weight_bytes + position_bytes * context)

    def read(self, tokens_T: Sequence[int]) -> int:
        """Forget everything, read a prompt; returns the most probable next token."""
        self._forget()
        return int(self._decode(tokens_T, every=False)[-1].argmax())

    def append(self, token: int) -> int:
        """Read one more token; returns the most probable next one."""
        return int(self._decode([token], every=False)[-1].argmax())

    def score(self, tokens_T: Sequence[int]) -> Floats:
        """logits_TV after each token of a text."""
        self._forget()
        return self._decode(tokens_T, every=True)

    def _forget(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._model.ctx), True)
        self._length = 0

    def _decode(self, tokens_T: Sequence[int], *, every: bool) -> Floats:
        """Read tokens behind those read before, by batches; logits after each of them, or after the last alone."""
        api, context = self._api, self._model.ctx
        last = len(tokens_T) - 1
        rows: list[Floats] = []
        for begin in range(0, len(tokens_T), BATCH):
            piece = tokens_T[begin : begin + BATCH]
            for place, token in enumerate(piece):
                self._batch.token[place], self._batch.pos[place] = token, self._length + place
                self._batch.n_seq_id[place], self._batch.seq_id[place][0] = 1, 0
                self._batch.logits[place] = every or begin + place == last
            self._batch.n_tokens = len(piece)
            failed = api.llama_decode(context, self._batch)
            if failed:
                raise RuntimeError(f"llama_decode returned {failed} at position {self._length}")
            self._length += len(piece)
            rows += [
                np.ctypeslib.as_array(api.llama_get_logits_ith(context, place), (self.vocab_size,)).copy()
                for place in range(len(piece))
                if every or begin + place == last
            ]
        return np.stack(rows)


def quantize(source: Path, out: Path, kind: Quantization, *, threads: int) -> None:
    """Quantize a float GGUF file as llama.cpp does by default."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    parameters.nthread = threads
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), parameters)
    if failed:
        raise InputError(f"{source} must be a GGUF that llama.cpp quantizes to {kind}; it returned {failed}")


def write_gguf(folder: Path, path: Path) -> None:
    """Write a checkpoint as a GGUF file in fp16, its norms in fp32, one tensor in memory."""
    checkpoint = Checkpoint(folder)
    facts = checkpoint.config
    if facts.architecture not in ROTATED_HALVES:
        raise InputError(
            f"architecture {facts.architecture} must be one of {', '.join(ROTATED_HALVES)} to be written as GGUF"
        )
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(facts.max_position_embeddings)
    writer.add_embedding_length(facts.hidden_size)
    writer.add_block_count(facts.num_hidden_layers)
    writer.add_feed_forward_length(facts.intermediate_size)
    writer.add_head_count(facts.num_attention_heads)
    writer.add_head_count_kv(facts.num_key_value_heads)
    writer.add_key_length(facts.head_dim)
    writer.add_value_length(facts.head_dim)
    writer.add_rope_dimension_count(facts.head_dim)
    writer.add_rope_freq_base(facts.rope_theta)
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
    """The byte-level BPE of a tokenizer that splits digits, padded to the model's vocabulary."""
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
