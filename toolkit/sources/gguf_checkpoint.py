"""Turns a GGUF file of a Llama model into a Hugging Face folder: bf16 weights, exact tokenizer, own template.

Weights are dequantized in slices of a tensor's rows and written at once, so memory holds one slice. llama.cpp stores
the rows of each query and key head in the order in which its rotary kernel reads them (pairs); transformers' order
(halves) is restored here.

    GGUF row order of a head      x0 y0 x1 y1 x2 y2 …      rotary pairs side by side
    transformers' row order       x0 x1 x2 … y0 y1 y2 …    first halves, then second halves

The tokenizer is built from the vocabulary and merges in the metadata. Its pre-tokenizer splits every digit, as the
`smollm` entry of llama.cpp's table does; transformers' own GGUF loading forgets that.

Shapes: H heads, A head dim, D hidden.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from toolkit.errors import InputError, MissingExtra
from toolkit.formats.chat_format import ChatFormat, write_chat_files
from toolkit.machine.advice import advise
from toolkit.sources.gguf_header import Facts, GgufTensor, read_header
from toolkit.sources.safetensors_header import SLICE_WEIGHTS, write_header

CONTROL, USER_DEFINED = 3, 4
"""Values of `tokenizer.ggml.token_type` for tokens at which text is split before merging (GGUF specification)."""

LAYER_PARAMETERS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SPECIAL_TOKENS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
"""The facts that hold the ids; only the second is required."""
OTHER_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
"""Facts with further end tokens: of a turn, and of a message that calls a tool."""
WITHOUT_EFFECT = {
    f"llama.{name}"
    for name in (
        "attention.head_count",
        "attention.head_count_kv",
        "attention.layer_norm_rms_epsilon",
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "rope.freq_base",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "tensor_data_layout",
    )
}
"""Facts of a Llama model that are read here, or that llama.cpp does not compute with; any other may change the
model."""

TOP_PARAMETERS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
"""Names of the tensors outside of layers in both file formats, as `LAYER_PARAMETERS` has them for a layer."""


def write_checkpoint(source: Path, folder: Path) -> None:
    """Write config.json, generation_config.json, model.safetensors and the chat files of a GGUF model into a folder.

    Raises `InputError` if the file is not a GGUF or not a Llama, or has a tokenizer that cannot be rebuilt exactly.
    """
    if not find_spec("gguf"):
        raise MissingExtra("gguf", "distill")
    header = read_header(source)
    facts = Facts(header.facts)
    _refuse_unsupported(facts)
    config = model_config(facts, tied="output.weight" not in header.tensors)
    _check_shapes(header.tensors, config)
    _check_places(header.tensors)
    tokenizer = build_tokenizer(facts)
    tokens = facts["tokenizer.ggml.tokens"]
    write_chat_files(
        folder,
        tokenizer,
        template=facts.text("tokenizer.chat_template"),
        eos_token=tokens[config["eos_token_id"]],
        pad_token=tokens[config.get("pad_token_id", config["eos_token_id"])],
    )
    special_ids = {name: config[name] for name in SPECIAL_TOKENS if name in config}
    ends = {config["eos_token_id"], *(facts.token_id(name) for name in OTHER_ENDS if name in facts)}
    special_ids["eos_token_id"] = sorted(ends) if len(ends) > 1 else config["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(special_ids, indent=1) + "\n", encoding="utf-8")
    try:
        ChatFormat.from_folder(folder)
    except InputError as error:  # it names a temporary file
        raise InputError(str(error).replace(str(folder), source.name)) from error
    write_parameters(source, header.tensors, config, folder / "model.safetensors")


def _refuse_unsupported(facts: Facts) -> None:
    architecture = facts.get("general.architecture")
    if architecture != "llama":
        raise InputError(
            f"the GGUF architecture {architecture!s:.60} is not supported, only llama; take the model's safetensors"
        )
    heads, size = (facts.count(f"llama.{name}") for name in ("attention.head_count", "embedding_length"))
    whole_head = size // heads
    if size % (2 * heads):
        raise InputError(f"llama.embedding_length ({size}) must be {heads} heads of an even size; get the file again")
    if facts.get("split.count", 0) not in (0, 1):
        raise InputError(
            f"the GGUF file is only one of {facts['split.count']!s:.60} parts of a model; merge them with: "
            "llama-gguf-split --merge"
        )
    supported = {
        "llama.rope.scaling.type": "none",
        "llama.rope.scaling.factor": 1.0,
        "llama.expert_count": 0,
        "llama.expert_used_count": 0,
        "llama.rope.dimension_count": whole_head,
        "llama.attention.key_length": whole_head,
        "llama.attention.value_length": whole_head,
        "llama.attention.causal": True,
        "llama.use_parallel_residual": False,
        "llama.vocab_size": len(facts.texts("tokenizer.ggml.tokens")),
    }
    without_effect = WITHOUT_EFFECT
    if facts.get("llama.rope.scaling.type") == "none":  # a factor without a type would scale
        without_effect = WITHOUT_EFFECT | {"llama.rope.scaling.factor"}
    for name, found in facts.items():
        if not name.startswith("llama.") or name in without_effect:
            continue
        if name not in supported:
            raise InputError(
                f"{name} ({found!s:.60}) may change the model and is not supported; take the model's safetensors"
            )
        if found != supported[name]:
            raise InputError(
                f"{name} ({found!s:.60}) must be {supported[name]!s:.60}; take the model's safetensors instead"
            )


def _check_shapes(tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> None:
    """Raise `InputError` unless every tensor of the model is there, in the shape that the metadata gives."""
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if config["num_hidden_layers"] * len(LAYER_PARAMETERS) > len(found):
        raise InputError(
            f"llama.block_count ({config['num_hidden_layers']}) of the GGUF file needs more than its {len(found)} "
            "tensors; get it again"
        )
    expected = dict(_shapes(config))
    for name in sorted(found.keys() - expected.keys()):
        raise InputError(
            f"the GGUF tensor {name} is not of a Llama model with {config['num_hidden_layers']} layers; "
            "take the model's safetensors instead"
        )
    for name, shape in expected.items():
        if found.get(name, shape if name == "output.weight" else None) != shape:
            raise InputError(f"{name} of the GGUF file has the shape {found.get(name)}, not {shape}; get it again")


def _shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, feed_forward, vocabulary = (config[f"{name}_size"] for name in ("hidden", "intermediate", "vocab"))
    attended = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield from {"token_embd.weight": (vocabulary, hidden), "output_norm.weight": (hidden,)}.items()
    yield "output.weight", (vocabulary, hidden)
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (hidden, hidden),
        "attn_k": (attended, hidden),
        "attn_v": (attended, hidden),
        "attn_output": (hidden, hidden),
        "ffn_norm": (hidden,),
        "ffn_gate": (feed_forward, hidden),
        "ffn_up": (feed_forward, hidden),
        "ffn_down": (hidden, feed_forward),
    }
    for layer in range(config["num_hidden_layers"]):
        yield from ((f"blk.{layer}.{kind}.weight", shape) for kind, shape in shapes.items())


def model_config(facts: Facts, *, tied: bool) -> dict[str, Any]:
    """Return the `config.json` that a GGUF's metadata describes."""
    eps = np.float32(facts.positive("llama.attention.layer_norm_rms_epsilon"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": facts.count("llama.embedding_length"),
        "intermediate_size": facts.count("llama.feed_forward_length"),
        "num_hidden_layers": facts.count("llama.block_count"),
        "num_attention_heads": facts.count("llama.attention.head_count"),
        "num_key_value_heads": facts.count("llama.attention.head_count_kv"),
        "max_position_embeddings": facts.count("llama.context_length"),
        "vocab_size": len(facts.texts("tokenizer.ggml.tokens")),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": float(str(eps)),  # the shortest decimal of the stored float32
        "rope_theta": facts.positive("llama.rope.freq_base"),
        "tie_word_embeddings": tied,
        **{
            name: facts.token_id(fact)
            for name, fact in SPECIAL_TOKENS.items()
            if fact in facts or name == "eos_token_id"
        },
        "torch_dtype": "bfloat16",
    }


def build_tokenizer(facts: dict[str, Any]) -> Tokenizer:
    """Build the byte-level BPE tokenizer that a GGUF's metadata describes."""
    kind = (facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise InputError(
            f"the GGUF tokenizer {kind[0]!s:.60} with {kind[1]!s:.60} is not supported, only gpt2 with smollm; "
            "take the model's safetensors"
        )
    tokens = facts["tokenizer.ggml.tokens"]
    kinds = facts["tokenizer.ggml.token_type"]
    if len(set(tokens)) != len(tokens) or not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise InputError(f"the {len(tokens)} tokens of the GGUF file must be distinct, each with a type; get it again")
    tokenizer = Tokenizer(_merging(tokens, facts["tokenizer.ggml.merges"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = list(zip(tokens, kinds, strict=True))
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, kind in types if kind == CONTROL]
    )
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, kind in types if kind == USER_DEFINED])
    return tokenizer


def _merging(tokens: list[str], merges: Any) -> models.BPE:
    try:
        pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
        return models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 – the library raises Exception itself, and panics
        raise InputError(
            f"each merge of the GGUF file must join two of its tokens: {error!s:.200}; get it again"
        ) from None


def write_parameters(source: Path, tensors: Mapping[str, GgufTensor], config: dict[str, Any], path: Path) -> None:
    """Write every parameter under its checkpoint name, in bf16, as a safetensors file."""
    with source.open("rb") as packed, path.open("wb") as file:
        pages = mmap.mmap(packed.fileno(), 0, access=mmap.ACCESS_READ)
        write_header(file, {parameter_name(name): tensor.shape for name, tensor in tensors.items()})
        for name, tensor in tensors.items():
            for rows in parameter_rows(name, tensor, pages, config):
                file.write(np.ascontiguousarray(rows).data.cast("B"))
            advise(pages, "MADV_DONTNEED")  # pages that were read count as this process's memory


def parameter_rows(name: str, tensor: GgufTensor, pages: mmap.mmap, config: dict[str, Any]) -> Iterator[NDArray[Any]]:
    """Yield a parameter in slices of its rows, as the bits of bf16."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize
    from ml_dtypes import bfloat16

    stored = _stored_rows(name, tensor, pages)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    kind = name.split(".")[-2]
    step = max(1, SLICE_WEIGHTS // tensor.shape[-1])
    if kind in heads:  # slices of whole heads, whose rows are reordered
        head_dim = len(stored) // heads[kind]
        step = max(1, step // head_dim) * head_dim
    for begin in range(0, len(stored), step):
        try:
            with np.errstate(all="ignore"):  # what is not finite is refused below, in one line
                rows = dequantize(stored[begin : begin + step], GGMLQuantizationType(tensor.kind))
        except NotImplementedError as error:
            raise InputError(f"{name} of the GGUF file: {error}; take the model's safetensors instead") from error
        if not np.isfinite(rows).all():
            raise InputError(f"{name} of the GGUF file holds NaN or infinite values; get it again")
        if kind in heads:
            rows = unpermute(rows, len(rows) // head_dim)
        yield rows.astype(bfloat16).view(np.uint16)


def _check_places(tensors: Mapping[str, GgufTensor]) -> None:
    """Raise `InputError` if two tensors overlap."""
    behind, last = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset < behind:
            raise InputError(
                f"{name} of the GGUF file begins at {tensor.offset}, before {last} ends at {behind}; get it again"
            )
        behind, last = tensor.offset + math.prod(tensor.shape[:-1]) * _row_bytes(name, tensor), name


def _row_bytes(name: str, tensor: GgufTensor) -> int:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    if tensor.kind not in {kind.value for kind in GGMLQuantizationType}:
        raise InputError(f"{name} of the GGUF file has an unknown type ({tensor.kind}); get it again")
    block_weights, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
    blocks, left_over = divmod(tensor.shape[-1], block_weights)
    if left_over:
        raise InputError(
            f"{name} of the GGUF file must consist of whole blocks of {block_weights} weights; get it again"
        )
    return blocks * block_bytes


def _stored_rows(name: str, tensor: GgufTensor, pages: mmap.mmap) -> NDArray[np.uint8]:
    """Return a tensor's rows as they are stored; a vector is one row."""
    rows, row_bytes = math.prod(tensor.shape[:-1]), _row_bytes(name, tensor)
    end = tensor.offset + rows * row_bytes
    if end > len(pages):
        raise InputError(f"{name} of the GGUF file ends at {end}, beyond the file's {len(pages)} bytes; get it again")
    return np.frombuffer(pages, np.uint8, end - tensor.offset, tensor.offset).reshape(rows, row_bytes)


def parameter_name(name: str) -> str:
    """Return the checkpoint's name of a GGUF tensor."""
    match name.split("."):
        case ["blk", layer, kind, "weight"] if kind in LAYER_PARAMETERS:
            return f"model.layers.{layer}.{LAYER_PARAMETERS[kind]}.weight"
        case [kind, "weight"] if kind in TOP_PARAMETERS:
            return f"{TOP_PARAMETERS[kind]}.weight"
    raise InputError(f"the GGUF tensor {name} is not of a Llama model; take the model's safetensors instead")


def tensor_name(parameter: str) -> str:
    """Return the GGUF's name of a checkpoint's parameter."""
    match parameter.removesuffix(".weight").split(".", 3):
        case ["model", "layers", layer, module]:
            kinds = {module: kind for kind, module in LAYER_PARAMETERS.items()}
            return f"blk.{layer}.{kinds[module]}.weight"
    kinds = {module: kind for kind, module in TOP_PARAMETERS.items()}
    return f"{kinds[parameter.removesuffix('.weight')]}.weight"


def unpermute(weight_HAD: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Restore transformers' row order of a query or key projection (see the module's drawing)."""
    rows, hidden_size = weight_HAD.shape
    pairs = weight_HAD.reshape(num_heads, rows // num_heads // 2, 2, hidden_size)
    halves = pairs.transpose(0, 2, 1, 3)
    return np.ascontiguousarray(halves.reshape(rows, hidden_size))


def permute(weight_HAD: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Return the inverse of `unpermute`: llama.cpp's row order of a query or key projection."""
    rows, hidden_size = weight_HAD.shape
    halves = weight_HAD.reshape(num_heads, 2, rows // num_heads // 2, hidden_size)
    pairs = halves.transpose(0, 2, 1, 3)
    return np.ascontiguousarray(pairs.reshape(rows, hidden_size))
