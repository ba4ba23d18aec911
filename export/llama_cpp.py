"""llama.cpp with the very weights of a checkpoint, to compare with: written as GGUF, quantized there, and run.

Needs llama-cpp-python, which compiles for the machine that it runs on; nothing else in the project does.
Source: the GGUF specification; llama.h for what is called.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, TokenType
from numpy.typing import NDArray

from export.checkpoint import Checkpoint, tensor_shapes
from toolkit.chat_format import ChatFormat
from toolkit.errors import InputError
from toolkit.gguf_checkpoint import LAYER_PARAMETERS

Floats = NDArray[np.float32]
Quantization = Literal["Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q8_0"]

TOP_PARAMETERS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
ROTATED_HALVES = ("LlamaForCausalLM", "MistralForCausalLM")
"""Architectures that llama.cpp runs as its `llama`."""


def is_installed() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


class LlamaCpp:
    """A GGUF file, loaded; a `Decoder` of one row as far as comparisons need it."""

    def __init__(self, path: Path, *, threads: int, max_length: int) -> None:
        """Raises `InputError` where llama-cpp-python is missing."""
        try:
            from llama_cpp import Llama
        except ImportError as error:
            raise InputError(
                "comparing with a GGUF must have llama-cpp-python (not installed); "
                'CMAKE_ARGS="-DLLAVA_BUILD=OFF" pip install llama-cpp-python'
            ) from error
        self._model = Llama(
            str(path), n_ctx=max_length, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self.vocab_size = self._model.n_vocab()
        tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
        looked_up = tensors["token_embd.weight"].n_bytes if "output.weight" in tensors else 0
        self._weight_bytes = sum(tensor.n_bytes for tensor in tensors.values()) - int(looked_up)
        layers, kv_width = int(self._model.metadata["llama.block_count"]), tensors["blk.0.attn_k.weight"].shape[1]
        self._position_bytes = int(2 * 2 * layers * kv_width)  # key and value, in fp16

    def step_bytes(self, context: int) -> int:
        """Bytes of weights and cache that a step reads."""
        return self._weight_bytes + self._position_bytes * context

    def read(self, tokens_T: Sequence[int]) -> int:
        """Forget everything, read a prompt; returns the most probable next token."""
        self._model.reset()
        return self._eval(tokens_T)

    def append(self, token: int) -> int:
        """Read one more token; returns the most probable next one."""
        return self._eval([token])

    def _eval(self, tokens_T: Sequence[int]) -> int:
        self._model.eval(list(tokens_T))
        return int(self._model.sample(temp=0.0))

    def score(self, tokens_T: Sequence[int]) -> Floats:
        """logits_TV after each token of a text."""
        import llama_cpp

        context, count = self._model.ctx, len(tokens_T)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        batch = llama_cpp.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for position, token in enumerate(tokens_T):
            batch.token[position], batch.pos[position] = token, position
            batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
            batch.logits[position] = True
        assert llama_cpp.llama_decode(context, batch) == 0
        rows = [
            np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, position), (self.vocab_size,)).copy()
            for position in range(count)
        ]
        llama_cpp.llama_batch_free(batch)
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
        writer.add_tensor_info(_gguf_name(name), shape, np.dtype(dtype), size, raw_dtype=kind)
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


def permute(weight_HAD: Floats, num_heads: int) -> Floats:
    """Each head's rotary halves as pairs: the inverse of `toolkit.gguf_checkpoint.unpermute`."""
    rows, hidden_size = weight_HAD.shape
    halves = weight_HAD.reshape(num_heads, 2, rows // num_heads // 2, hidden_size)
    pairs = halves.transpose(0, 2, 1, 3)
    return np.ascontiguousarray(pairs.reshape(rows, hidden_size))


def _gguf_name(name: str) -> str:
    if name in TOP_PARAMETERS:
        return TOP_PARAMETERS[name]
    _, _, layer, module = name.removesuffix(".weight").split(".", 3)
    kinds = {parameter: kind for kind, parameter in LAYER_PARAMETERS.items()}
    return f"blk.{layer}.{kinds[module]}.weight"


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
    writer.add_add_bos_token(False)
