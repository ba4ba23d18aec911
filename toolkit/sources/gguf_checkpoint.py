"""Turns a GGUF file into a Hugging Face folder: weights as precise as they are stored, exact tokenizer, own template.

Weights are dequantized in slices of a tensor's rows and written at once, so memory holds one slice. Of some families
(`toolkit.sources.gguf_families`) llama.cpp stores the rows of each query and key head in the order in which its rotary
kernel reads them (pairs); transformers' order (halves) is restored here.

    GGUF row order of a head      x0 y0 x1 y1 x2 y2 …      rotary pairs side by side
    transformers' row order       x0 x1 x2 … y0 y1 y2 …    first halves, then second halves

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

from toolkit.errors import InputError, MissingExtra
from toolkit.formats.chat_format import ChatFormat, write_chat_files
from toolkit.machine.advice import advise
from toolkit.sources.gguf_families import GGUF_FAMILIES, LLAMA_LAYER, QK_NORMS, GgufFamily, shortest
from toolkit.sources.gguf_header import Facts, GgufTensor, read_parts
from toolkit.sources.gguf_tokenizer import build_tokenizer
from toolkit.sources.safetensors_header import SLICE_WEIGHTS, write_header
from toolkit.terminal import say
from toolkit.voice.reasoning_template import ending_with_eos

SPECIAL_TOKENS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
"""The facts that hold the ids; only the second is required."""
OTHER_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
"""Facts with further end tokens: of a turn, and of a message that calls a tool."""
WITHOUT_EFFECT = (
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
"""Facts of a model, behind its architecture's name, that are read here, or that llama.cpp does not compute with; any
other may change the model."""

TOP_PARAMETERS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
"""Names of the tensors outside of layers in both file formats, as a family's `layer` has them for a layer."""


def write_checkpoint(source: Path, folder: Path) -> None:
    """Write config.json, generation_config.json, model.safetensors and the chat files of a GGUF model into a folder.

    Raises `InputError` if the file is not a GGUF of a known family, or has a tokenizer that cannot be rebuilt exactly.
    """
    if not find_spec("gguf"):
        raise MissingExtra("gguf", "distill")
    facts, parts = read_parts(source)
    _refuse_unsupported(facts)
    family, _ = _family(facts)
    facts |= _lists(parts, family)
    tensors = {name: tensor for part in parts.values() for name, tensor in part.items()}
    config = model_config(facts, tied="output.weight" not in tensors)
    _check_shapes(tensors, config, family)
    for part in parts.values():
        _check_places(part)
    tokenizer = build_tokenizer(facts)
    tokens = facts["tokenizer.ggml.tokens"]
    write_chat_files(
        folder,
        tokenizer,
        template=_template(facts, source),
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
    write_parameters(parts, config, family, folder / "model.safetensors")


def _lists(parts: Mapping[Path, dict[str, GgufTensor]], family: GgufFamily) -> dict[str, list[float]]:
    """Take the tensors that are settings out of the files' tensors, and return their numbers."""
    found = {}
    for source, tensors in parts.items():
        for name in tensors.keys() & set(family.own_lists):
            tensor = tensors.pop(name)
            with source.open("rb") as packed:
                pages = mmap.mmap(packed.fileno(), 0, access=mmap.ACCESS_READ)
            values = _dequantized(name, tensor, _stored_rows(name, tensor, pages))
            found[name] = [shortest(value) for value in values.ravel().tolist()]
    return found


def _template(facts: Facts, source: Path) -> str:
    """Return the chat template; a base model without any gets the one that base students get."""
    if "tokenizer.chat_template" in facts:
        return facts.text("tokenizer.chat_template")
    say(f"{source} has no chat template, as base models have none: it can be exported, and will not know turns")
    return ending_with_eos(begins=facts.get("tokenizer.ggml.add_bos_token") is True)


def _family(facts: Facts) -> tuple[GgufFamily, str]:
    """Return the architecture and the prefix of its facts."""
    name = str(facts.get("general.architecture"))
    if name not in GGUF_FAMILIES:
        raise InputError(
            f"the GGUF architecture {name!s:.60} must be one of {', '.join(GGUF_FAMILIES)}; "
            "take the model's safetensors"
        )
    return GGUF_FAMILIES[name], f"{name}."


def _refuse_unsupported(facts: Facts) -> None:
    family, prefix = _family(facts)
    heads, size = (facts.count(f"{prefix}{name}") for name in ("attention.head_count", "embedding_length"))
    if not _is_normed(family) and size % (2 * heads):
        raise InputError(f"{prefix}embedding_length ({size}) must be {heads} heads of an even size; get the file again")
    head_dim = _head_dim(facts)
    supported = {
        "rope.scaling.type": "none",
        "rope.scaling.factor": 1.0,
        "expert_count": 0,
        "expert_used_count": 0,
        "rope.dimension_count": head_dim,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.causal": True,
        "use_parallel_residual": False,
        "vocab_size": len(facts.texts("tokenizer.ggml.tokens")),
    }
    without_effect = {*WITHOUT_EFFECT, *family.own_facts}
    if facts.get(f"{prefix}rope.scaling.type") == "none":  # a factor without a type would scale
        without_effect.add("rope.scaling.factor")
    for name, found in facts.items():
        fact = name.removeprefix(prefix)
        if fact == name or fact in without_effect:
            continue
        if fact not in supported:
            raise InputError(
                f"{name} ({found!s:.60}) may change the model and is not supported; take the model's safetensors"
            )
        if found != supported[fact]:
            raise InputError(
                f"{name} ({found!s:.60}) must be {supported[fact]!s:.60}; take the model's safetensors instead"
            )


def _is_normed(family: GgufFamily) -> bool:
    """Whether each head of queries and keys is normed."""
    return QK_NORMS.keys() <= family.layer.keys()


def _head_dim(facts: Facts) -> int:
    """Return the size of a head: where queries and keys are normed it may be any, else the heads make the width."""
    family, prefix = _family(facts)
    if _is_normed(family):
        return facts.count(f"{prefix}attention.key_length")
    return facts.count(f"{prefix}embedding_length") // facts.count(f"{prefix}attention.head_count")


def _check_shapes(tensors: Mapping[str, GgufTensor], config: Mapping[str, Any], family: GgufFamily) -> None:
    """Raise `InputError` unless every tensor of the model is there, in the shape that the metadata gives."""
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if config["num_hidden_layers"] * len(family.layer) > len(found):
        raise InputError(
            f"block_count ({config['num_hidden_layers']}) of the GGUF file needs more than its {len(found)} "
            "tensors; get it again"
        )
    expected = dict(_shapes(config, family))
    for name in sorted(found.keys() - expected.keys()):
        raise InputError(
            f"the GGUF tensor {name} is not of a {config['model_type']} model with {config['num_hidden_layers']} "
            "layers; take the model's safetensors instead"
        )
    for name, shape in expected.items():
        if found.get(name, shape if name == "output.weight" else None) != shape:
            raise InputError(f"{name} of the GGUF file has the shape {found.get(name)}, not {shape}; get it again")


def _shapes(config: Mapping[str, Any], family: GgufFamily) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, feed_forward, vocabulary = (config[f"{name}_size"] for name in ("hidden", "intermediate", "vocab"))
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    attended, kept = (head_dim * config[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
    yield from {"token_embd.weight": (vocabulary, hidden), "output_norm.weight": (hidden,)}.items()
    yield "output.weight", (vocabulary, hidden)
    matrices = {
        "attn_q": (attended, hidden),
        "attn_k": (kept, hidden),
        "attn_v": (kept, hidden),
        "attn_qkv": (attended + 2 * kept, hidden),
        "attn_output": (hidden, attended),
        "ffn_gate": (feed_forward, hidden),
        "ffn_up": (feed_forward * (1 if "ffn_gate" in family.layer else 2), hidden),
        "ffn_down": (hidden, feed_forward),
    }
    norms = dict.fromkeys(family.layer, (hidden,)) | dict.fromkeys(QK_NORMS, (head_dim,))
    shapes: dict[str, tuple[int, ...]] = {kind: (norms | matrices)[kind] for kind in family.layer}
    for layer in range(config["num_hidden_layers"]):
        yield from ((f"blk.{layer}.{kind}.weight", shape) for kind, shape in shapes.items())
        yield from ((f"blk.{layer}.{kind}.bias", shapes[kind][:1]) for kind in family.biases)


def model_config(facts: Facts, *, tied: bool) -> dict[str, Any]:
    """Return the `config.json` that a GGUF's metadata describes."""
    family, prefix = _family(facts)
    config = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "hidden_size": facts.count(f"{prefix}embedding_length"),
        "intermediate_size": facts.count(f"{prefix}feed_forward_length"),
        "num_hidden_layers": facts.count(f"{prefix}block_count"),
        "num_attention_heads": facts.count(f"{prefix}attention.head_count"),
        "num_key_value_heads": facts.count(f"{prefix}attention.head_count_kv"),
        "max_position_embeddings": facts.count(f"{prefix}context_length"),
        "vocab_size": len(facts.texts("tokenizer.ggml.tokens")),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": shortest(facts.positive(f"{prefix}attention.layer_norm_rms_epsilon")),
        "rope_theta": facts.positive(f"{prefix}rope.freq_base"),
        "tie_word_embeddings": tied,
        **{
            name: facts.token_id(fact)
            for name, fact in SPECIAL_TOKENS.items()
            if fact in facts or name == "eos_token_id"
        },
        "torch_dtype": "float32",
    }
    own = family.own_settings(facts, prefix)
    if "rope_parameters" in own:
        del config["rope_theta"]
    if _is_normed(family):
        own["head_dim"] = _head_dim(facts)
    return config | own


def write_parameters(
    parts: Mapping[Path, Mapping[str, GgufTensor]], config: dict[str, Any], family: GgufFamily, path: Path
) -> None:
    """Write every parameter under its checkpoint name, as precise as it is stored, as a safetensors file.

    `parts`: the tensors of each GGUF file.
    """
    named = {parameter_name(name, family): each for part in parts.values() for name, each in part.items()}
    with path.open("wb") as file:
        write_header(
            file,
            {name: tensor.shape for name, tensor in named.items()},
            {name: dtype_of(tensor) for name, tensor in named.items()},
        )
        for source, tensors in parts.items():
            with source.open("rb") as packed:
                pages = mmap.mmap(packed.fileno(), 0, access=mmap.ACCESS_READ)
            for name, tensor in tensors.items():
                for rows in parameter_rows(name, tensor, pages, config, family):
                    file.write(np.ascontiguousarray(rows).view(np.uint8).data.cast("B"))
                advise(pages, "MADV_DONTNEED")  # pages that were read count as this process's memory


def dtype_of(tensor: GgufTensor) -> str:
    """Return the type of safetensors that holds a tensor's floats; those of codes and their scales need F32."""
    from gguf.constants import GGMLQuantizationType

    kinds = {GGMLQuantizationType.BF16.value: "BF16", GGMLQuantizationType.F16.value: "F16"}
    return kinds.get(tensor.kind, "F32")


def parameter_rows(
    name: str, tensor: GgufTensor, pages: mmap.mmap, config: dict[str, Any], family: GgufFamily
) -> Iterator[NDArray[Any]]:
    """Yield a parameter in slices of its rows, as the bits of its `dtype_of`."""
    from ml_dtypes import bfloat16

    dtype = {"BF16": bfloat16, "F16": np.float16, "F32": np.float32}[dtype_of(tensor)]
    stored = _stored_rows(name, tensor, pages)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    kind = name.split(".")[-2] if family.permutes else ""
    less = family.norms_hold_one_more and name.endswith("norm.weight")
    step = max(1, SLICE_WEIGHTS // tensor.shape[-1])
    if kind in heads:  # slices of whole heads, whose rows are reordered
        head_dim = len(stored) // heads[kind]
        step = max(1, step // head_dim) * head_dim
    for begin in range(0, len(stored), step):
        rows = _dequantized(name, tensor, stored[begin : begin + step])
        if kind in heads:
            rows = unpermute(rows, len(rows) // head_dim)
        yield (rows - np.float32(less)).astype(dtype)


def _dequantized(name: str, tensor: GgufTensor, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        with np.errstate(all="ignore"):  # what is not finite is refused below, in one line
            values: NDArray[np.float32] = dequantize(rows, GGMLQuantizationType(tensor.kind))
    except NotImplementedError as error:
        raise InputError(f"{name} of the GGUF file: {error}; take the model's safetensors instead") from error
    if not np.isfinite(values).all():
        raise InputError(f"{name} of the GGUF file holds NaN or infinite values; get it again")
    return values


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


def parameter_name(name: str, family: GgufFamily) -> str:
    """Return the checkpoint's name of a GGUF tensor."""
    match name.split("."):
        case ["blk", layer, kind, "weight" | "bias" as end] if kind in family.layer:
            return f"model.layers.{layer}.{family.layer[kind]}.{end}"
        case [kind, "weight"] if kind in TOP_PARAMETERS:
            return f"{TOP_PARAMETERS[kind]}.weight"
    raise InputError(f"the GGUF tensor {name} is not known; take the model's safetensors instead")


def tensor_name(parameter: str) -> str:
    """Return the GGUF's name of a Llama checkpoint's parameter."""
    match parameter.removesuffix(".weight").split(".", 3):
        case ["model", "layers", layer, module]:
            kinds = {module: kind for kind, module in LLAMA_LAYER.items()}
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
