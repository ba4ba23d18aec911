"""Streams the tensors of a Hugging Face folder, some rows at a time, from one or many safetensors files.

Invariant: names are the checkpoint's own, and the values that leave this module are finite float32 of the shapes that
the configuration promises. Source: the safetensors format and Hugging Face's `model.safetensors.index.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import softplus

from export.checkpoint.decoder_families import MATRICES
from export.checkpoint.heads import are_arranged, arranged, has_heads_as_rows
from export.checkpoint.model_config import ModelConfig, read_model_config
from export.checkpoint.safetensors_file import StoredRows, open_safetensors
from toolkit.errors import InputError
from toolkit.field_types import check_type
from toolkit.generation.generate import Floats
from toolkit.records import read_object
from toolkit.sources.adapter_folder import Adapter, NeedsPeft
from toolkit.sources.model_names import is_exported
from toolkit.sources.safetensors_header import INDEX, SINGLE, SLICE_WEIGHTS
from toolkit.terminal import listed

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
LARGEST = 65504.0
"""The largest fp16 value: weights and scales are stored in fp16 somewhere on the way."""

XIELU_ALPHAS, XIELU_BUFFERS = ("alpha_p", "alpha_n"), ("beta", "eps")
"""What transformers' xIELU learns, and what it keeps beside that, in each layer."""
COMPUTED = "rotary_emb.inv_freq"
"""The end of names of tensors that old checkpoints hold and every loader computes again."""


class Checkpoint:
    """A model folder: its configuration, and its tensors by name, with an adapter's changes if there is one."""

    def __init__(self, folder: Path, adapter: Path | None = None) -> None:
        """Open a folder; raises `InputError` if a file is missing, cut short, or lacks a tensor that the configuration
        needs, and `NeedsPeft` if the adapter cannot be streamed."""
        self.folder = folder
        config = read_model_config(folder)
        self.adapter = Adapter(adapter) if adapter else None
        self._stored, self._repeated = read_headers(folder)
        self.config = self._as_tied_as_stored(config)
        self.is_untied = config.tie_word_embeddings and not self.config.tie_word_embeddings
        """Whether the files hold two matrices although config.json says that they are tied."""
        self.shapes = tensor_shapes(self.config)
        for name, shape in self.shapes.items():
            if name not in self._stored:
                raise InputError(f"{folder} lacks the tensor {name}; get the whole checkpoint again")
            self._stored[name].check_type(name)
            found = self._stored[name].shape
            if found != shape:
                raise InputError(
                    f"{name} in {folder} has shape {found} instead of {shape} as in its config.json; get both from one "
                    "place"
                )
        self._refuse_others()
        for name in sorted(self.adapter.targets) if self.adapter else ():
            self._check_target(name)
        if self.adapter:
            self.adapter.check_targets(n for n, shape in self.shapes.items() if len(shape) == 2 and n != EMBEDDING)

    @property
    def read_here_only(self) -> list[str]:
        """The tensors that transformers would read differently: changed by the adapter, or stored in several files."""
        changed = self.adapter.targets if self.adapter else set()
        return sorted(changed | (self._repeated & self.shapes.keys()))

    @property
    def head(self) -> str:
        """The name of the output head's tensor."""
        return EMBEDDING if self.config.tie_word_embeddings else LM_HEAD

    def slices(self, name: str) -> Iterator[torch.Tensor]:
        """Read one tensor some rows at a time, as float32.

        Raises `InputError` if it holds NaN, an infinity or a huge value.
        """
        rows = self._stored[name].rows
        step = max(1, SLICE_WEIGHTS // self._stored[name].row_size)
        for begin in range(0, rows, step):
            values = self._rows(name, begin, min(begin + step, rows))
            self._check_values(name, values)
            yield values

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor as float32; raises as `slices` does."""
        tensor = torch.empty(self.shapes[name] or (1,))
        begin = 0
        for values in self.slices(name):
            tensor[begin : begin + len(values)] = values
            begin += len(values)
        return tensor.reshape(self.shapes[name])

    def parts(self, name: str) -> Iterator[torch.Tensor]:
        """Read the rows of a stored matrix or bias some at a time, with heads as the graph has them
        (`export.checkpoint.heads`); raises as `slices` does."""
        for source in checkpoint_names(self.config, name):
            is_whole = are_arranged(self.config) and has_heads_as_rows(source)
            for values in [self.tensor(source)] if is_whole else self.slices(source):
                yield arranged(self.config, source, values)

    def whole(self, name: str) -> torch.Tensor:
        """Read a stored matrix or bias, in the order of the graph."""
        return torch.cat(list(self.parts(name)))

    def stored_shape(self, name: str) -> tuple[int, int]:
        """Return the rows and columns of a stored matrix."""
        shapes = [self.shapes[source] for source in checkpoint_names(self.config, name)]
        rows, columns = sum(shape[0] for shape in shapes), shapes[0][1]
        attended, *kept = self.config.qkv_sizes
        if ".qkv_proj." in name:
            rows = attended + sum(kept)
        return rows, attended if ".o_proj." in name else columns

    def array(self, name: str) -> Floats:
        """Read one tensor as a float32 array; raises as `slices` does."""
        array: Floats = self.tensor(name).numpy()
        return array

    def size_bytes(self, name: str) -> int:
        """Return the bytes of a tensor in its file."""
        return self._stored[name].size_bytes(self._stored[name].rows)

    def _as_tied_as_stored(self, config: ModelConfig) -> ModelConfig:
        """Read the flag as transformers 5 does: one stored matrix serves as both, and two that differ stay two."""
        embedding, head = (self._stored.get(name) for name in (EMBEDDING, LM_HEAD))
        if not config.tie_word_embeddings or head is None:
            return config
        if embedding is None:
            self._stored[EMBEDDING] = head
            return config
        return config if embedding.equals(head) else replace(config, tie_word_embeddings=False)

    def _refuse_others(self) -> None:
        """Refuse tensors that the configuration does not describe: without such a bias, norm or layer, the model would
        be another."""
        others = sorted(
            name for name in self._stored.keys() - self.shapes.keys() - {LM_HEAD} if not name.endswith(COMPUTED)
        )
        if others:
            raise InputError(
                f"config.json in {self.folder} has no place for {listed(others)}; "
                "get weights and config.json of one model"
            )

    def _rows(self, name: str, begin: int, end: int) -> torch.Tensor:
        values = self._stored[name].read(begin, end)
        if self.adapter and name in self.adapter.targets:
            down_LK, up_NL = (torch.from_numpy(factor) for factor in self.adapter.factors(name))
            values += up_NL[begin:end] @ down_LK
        return values

    def _check_target(self, name: str) -> None:
        assert self.adapter
        shape = self.shapes.get(name, ())
        if name == EMBEDDING or (name == LM_HEAD and not shape):
            raise NeedsPeft(f"the adapter changes {name}, which is no matrix of its own, so PEFT merges it")
        if len(shape) != 2:
            raise InputError(
                f"the adapter changes {name}, which is no linear layer of {self.folder}; give its own --base"
            )
        self.adapter.check_shape(name, shape)

    def _check_values(self, name: str, values: torch.Tensor) -> None:
        low, high = torch.aminmax(values)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            count = int((~torch.isfinite(values)).sum())
            raise InputError(f"{name} in {self.folder} holds {count} NaN or infinite values; get the checkpoint again")
        if max(-float(low), float(high)) > LARGEST:
            worst = max(-float(low), float(high))
            raise InputError(
                f"{name} in {self.folder} holds {worst:g}, more than fp16 can store ({LARGEST:g}); choose another "
                "checkpoint"
            )


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor that the graph is made of, in the order of the model."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    for layer in range(config.num_hidden_layers):
        shapes.update({f"model.layers.{layer}.{name}": shape for name, shape in _layer_shapes(config)})
    shapes |= {f"model.norm.{end}": (hidden,) for end in _norm_ends(config)}
    if not config.tie_word_embeddings:
        shapes[LM_HEAD] = (config.vocab_size, hidden)
    return shapes


def _layer_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, intermediate, family = config.hidden_size, config.intermediate_size, config.family
    for norm in family.norms:
        yield from ((f"{norm}.{end}", (hidden,)) for end in _norm_ends(config))
    if family.qk_norm:
        for name, size in zip("qk", config.stored_qkv_sizes, strict=False):
            yield f"self_attn.{name}_norm.weight", (config.head_dim if family.qk_norm == "each head" else size,)
    for stored, parts, columns, has_bias in (
        ("self_attn.qkv_proj", config.stored_qkv_sizes, hidden, config.qkv_bias),
        ("self_attn.o_proj", (hidden,), config.stored_qkv_sizes[0], config.output_bias),
        ("mlp.gate_up_proj", (intermediate,) * (2 if family.has_gate else 1), hidden, config.mlp_bias),
        ("mlp.down_proj", (hidden,), intermediate, config.mlp_bias),
    ):
        sources = family.sources[stored]
        for source, rows in zip(sources, parts if len(sources) > 1 else (sum(parts),), strict=True):
            yield f"{source}.weight", (rows, columns)
            if has_bias:
                yield f"{source}.bias", (rows,)
    if config.activation == "xielu":
        yield from {f"mlp.act_fn.{name}": (1,) for name in XIELU_ALPHAS}.items()
        yield from ((f"mlp.act_fn.{name}", ()) for name in XIELU_BUFFERS)


def _norm_ends(config: ModelConfig) -> tuple[str, ...]:
    return ("weight", "bias") if config.family.norms_center else ("weight",)


def checkpoint_names(config: ModelConfig, name: str) -> list[str]:
    """Name the checkpoint's tensors whose rows, one after another, form a stored one."""
    for module, sources in config.family.sources.items():
        if f".{module}." in name:
            return [name.replace(module, source) for source in sources]
    return [name]


def read_headers(folder: Path) -> tuple[dict[str, StoredRows], frozenset[str]]:
    """Find every tensor by name in the file that the index names; returns also the names that several files hold."""
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return open_safetensors(folder / SINGLE), frozenset()
    if not index.is_file() and is_exported(folder):
        raise InputError(f"{folder} is an exported folder already; export the model that it was made from")
    if not index.is_file():
        raise InputError(
            f"{folder} holds neither {SINGLE} nor {INDEX}; fetch them, or let transformers write them from other "
            "weights (from_pretrained and save_pretrained)"
        )
    weight_map: Any = read_object(index).get("weight_map")
    check_type(weight_map, dict[str, str], f"weight_map in {index}")
    named = {name: Path(file).name for name, file in weight_map.items()}
    stored: dict[str, StoredRows] = {}
    repeated = set()
    for file in sorted(set(named.values())):
        for name, rows in open_safetensors(folder / file).items():
            repeated |= {name} & stored.keys()
            if name not in stored or named.get(name) == file:
                stored[name] = rows
    for name, file in named.items():
        if name not in stored or stored[name].path.name != file:
            raise InputError(f"{folder / file} lacks {name}, which {INDEX} says is there; get the checkpoint again")
    for name in sorted(repeated - named.keys()):
        raise InputError(
            f"several files in {folder} hold {name}, and {INDEX} does not say which is meant; get the checkpoint again"
        )
    return stored, frozenset(repeated)


def vectors(checkpoint: Checkpoint) -> dict[str, Floats]:
    """Return by name what norms multiply by and add, biases, joined as the stored matrices are, and the numbers of an
    activation."""
    config = checkpoint.config
    norms = [name for name in checkpoint.shapes if name.split(".")[-2] in _norm_names(config)]
    found = {name: arranged(config, name, _norm(checkpoint, name)).numpy() for name in norms}
    biases = {
        "self_attn.qkv_proj": config.qkv_bias,
        "self_attn.o_proj": config.output_bias,
        "mlp.gate_up_proj": config.mlp_bias,
        "mlp.down_proj": config.mlp_bias,
    }
    layers = [f"model.layers.{layer}" for layer in range(config.num_hidden_layers)]
    modules = [module for module in MATRICES if biases[module]]
    names = [f"{layer}.{module}.bias" for layer in layers for module in modules]
    found |= {name: checkpoint.whole(name).numpy() for name in names}
    for layer in layers if config.activation == "xielu" else ():
        found |= _xielu(checkpoint, f"{layer}.mlp.act_fn")
    return found


def _norm_names(config: ModelConfig) -> set[str]:
    return {"norm", "q_norm", "k_norm", *config.family.norms}


def _norm(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    adds_one = checkpoint.config.family.norms_add_one and name.endswith("weight")
    return checkpoint.tensor(name) + float(adds_one)


def _xielu(checkpoint: Checkpoint, prefix: str) -> dict[str, Floats]:
    """Return an activation's numbers as they are computed with: alphas above 0, and above beta."""
    numbers = {name: checkpoint.tensor(f"{prefix}.{name}") for name in (*XIELU_ALPHAS, *XIELU_BUFFERS)}
    for name, least in (("alpha_p", 0.0), ("alpha_n", numbers["beta"])):
        numbers[name] = softplus(numbers[name]) + least
    return {f"{prefix}.{name}": number.numpy() for name, number in numbers.items()}
