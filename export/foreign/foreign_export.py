"""`toolkit export --exporter optimum`: an exported folder of an architecture that our own graph does not write.

    checkpoint ─ optimum, in its own environment ─ float graph ─ matrices → model.onnx.data ─┐
                                                       └── nodes, our inputs → model.onnx ───┴─ gate → manifest.json

Invariant: as in `export.pipeline`, the folder gets its final name only if the gate passes, which compares it with the
float model of the transformers that the toolkit uses. An export that was killed begins anew.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from export.checkpoint.tensors import read_headers
from export.checks.gate import check_source, leave_out_gate, pass_gate
from export.checks.goldens import Chats
from export.checks.parity import Bounds
from export.folder.package import discarded_if_refused, write_package
from export.folder.weights_file import WeightsFile
from export.foreign.cache_interface import cache_sizes
from export.foreign.foreign_graph import ForeignGraph, UnfitGraph
from export.foreign.optimum_export import OPTIMUM, REQUIREMENTS, export_by_optimum, optimum_python
from export.foreign.stored_matrices import Matrices, Rounding, found_matrices, matrix_layouts, write_matrices
from export.foreign.turned_graph import turned_graph
from export.presets import WeightType, int4_config, nearest_config
from export.quantization.codes import LARGEST_CODE_BITS
from export.quantization.layout import BLOCK_SIZES, Layout
from toolkit import runs
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.machine.allowance import memory
from toolkit.model.loading import load_whole
from toolkit.progress import Progress
from toolkit.records import read_object
from toolkit.sources.made_card import write_export_card
from toolkit.sources.model_names import MODEL_FILE
from toolkit.terminal import say

LENGTHS = ("max_position_embeddings", "max_seq_len", "seq_length")
"""Keys under which a configuration may say how many positions a model reads."""
COPIES = 4.5
"""How many float models optimum's process takes at most, in memory."""
SCRATCH = "optimum"
"""The folder in an unfinished export that holds optimum's graph, in a folder of its own for each attempt."""


@dataclass(frozen=True, kw_only=True)
class ForeignConfig:
    """How a folder is made; the values mean what those of `export.presets.ExportConfig` mean."""

    source: Path
    out: Path
    rounding: Rounding
    bits: int
    block_size: int
    head_bits: int
    bounds: Bounds | None


@dataclass(frozen=True, kw_only=True)
class ForeignSizes:
    """The numbers of a decoder, from its configuration and from its graph."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    padded_head_dim: int
    max_position_embeddings: int


@dataclass(frozen=True, kw_only=True)
class ForeignSource:
    """A checkpoint of which only transformers knows what its tensors mean."""

    folder: Path
    chat_format: ChatFormat
    sizes: ForeignSizes
    is_untied: bool = False

    @property
    def chat_folder(self) -> Path:
        return self.folder

    @cached_property
    def float_model(self) -> PreTrainedModel:
        """The whole model in float32, loaded when it is first needed and then kept."""
        return load_whole(AutoModelForCausalLM, self.folder, dtype=torch.float32)


def foreign_config(
    source: Path, out: Path, weights: WeightType | Literal["int4"], *, rounding: Rounding = "nearest"
) -> ForeignConfig:
    """Configure an export in the layout of `--quick`, or in that of `--int8`, `--fp16` or `--fp32`.

    `rounding`: `searched` takes ten times as long as `nearest`.
    """
    preset = int4_config(source, out, preset="quick") if weights == "int4" else nearest_config(source, out, weights)
    return ForeignConfig(
        source=source,
        out=out,
        rounding=rounding,
        bits=preset.bits,
        block_size=preset.block_size,
        head_bits=preset.head_bits,
        bounds=preset.bounds,
    )


def export_foreign(config: ForeignConfig, *, may_install: bool) -> dict[str, Any]:
    """Make `config.out` and return its manifest; a folder that this very run has made already is left alone.

    `may_install`: whether optimum's environment may be made. Raises `InputError` if there is none, or if optimum or the
    runner cannot have this architecture, `GateFailed` if parity is out of bounds, and `FolderConflict` if `out` holds
    something else. Whatever is raised, nothing is left under the final name.
    """
    parameters = _parameters(config.source)
    source = open_foreign(config.source)
    chats: Chats = []
    if config.bounds:
        load_whole(AutoModelForCausalLM, config.source, device_map="meta")
        chats = check_source(source)
    stage = _stage(config)
    if runs.is_complete(config.out, stage):
        runs.say_done(config.out)
        write_export_card(config.out, config.source)
        return runs.read_manifest(config.out) or {}
    _check_memory(parameters)
    python = optimum_python(may_install=may_install)
    folder = runs.partial_folder(config.out, stage)
    with discarded_if_refused(folder, config.out):
        say(f"export: {OPTIMUM} writes the graph of {config.source}, which may take minutes")
        scratch = folder / SCRATCH
        shutil.rmtree(scratch, ignore_errors=True)  # of an attempt that was killed
        scratch.mkdir(exist_ok=True)
        try:
            graph = export_by_optimum(python, config.source, Path(tempfile.mkdtemp(dir=scratch)))
            source, measured = write_model(source, config, ForeignGraph(graph), folder)
        finally:
            shutil.rmtree(scratch)
        measured |= _compared(source, config, folder, chats)
        size_bytes = runs.folder_bytes(folder)
        measured |= {"parameters": parameters, "bytes": size_bytes, "bytes_per_parameter": size_bytes / parameters}
        manifest = runs.finish(folder, config.out, stage, measured)
        write_export_card(config.out, config.source)
        return manifest


def write_model(
    source: ForeignSource, config: ForeignConfig, foreign: ForeignGraph, folder: Path
) -> tuple[ForeignSource, dict[str, Any]]:
    """Write weights, graph and the small files; returns the source with the graph's sizes, and what was measured."""
    try:
        layers, heads, head_dim = cache_sizes(foreign)
        sizes = replace(source.sizes, num_hidden_layers=layers, num_key_value_heads=heads, padded_head_dim=head_dim)
        source = replace(source, sizes=sizes)
        matrices = found_matrices(foreign, sizes.vocab_size)
        formats = {"bits": config.bits, "block_size": config.block_size, "head_bits": config.head_bits}
        layouts = matrix_layouts(foreign, matrices, **formats)
        write_package(source, folder)
        total = sum(matrix.values(foreign).nbytes for matrix in {m.name: m for m in matrices.values()}.values())
        with WeightsFile(folder, end=0) as file, Progress("export", total, in_bytes=True) as progress:
            weights = write_matrices(foreign, matrices, layouts, config.rounding, file, progress.advance)
            matrix_bytes = file.end
            model = turned_graph(foreign, sizes, matrices, weights, file)
            file.sync()
    except UnfitGraph as error:
        raise InputError(
            f"the graph that {OPTIMUM} writes of {config.source} cannot be run here: {error}; choose another model"
        ) from error
    onnx.save(model, folder / MODEL_FILE)
    if config.bits <= LARGEST_CODE_BITS:
        _say_floats(layouts, file.end - matrix_bytes)
    read = {name: weights[name] for name in weights if name not in _only_looked_up(matrices)}
    return source, {"step_bytes": sum(weight.step_bytes for weight in read.values()), "cache": "exact"}


def _only_looked_up(matrices: Matrices) -> set[str]:
    """Return the names of matrices of which a step reads a row."""
    multiplied = {matrix.name for matrix in matrices.values() if matrix.role != "embedding"}
    return {matrix.name for matrix in matrices.values()} - multiplied


def _say_floats(layouts: Mapping[str, Layout], other_bytes: int) -> None:
    """Say what is not in the format that was asked for."""
    floats = sum(layout.bits > LARGEST_CODE_BITS for layout in layouts.values())
    if floats:
        say(
            f"export: {floats:,} of {len(layouts):,} matrices stay in float32: those that choose experts, and those "
            f"whose rows are no multiple of {BLOCK_SIZES[-1]}"
        )
    if other_bytes:
        say(f"export: {other_bytes / 1e6:,.1f} MB of tensors that are no matrices, such as positions, stay in float32")


def _compared(source: ForeignSource, config: ForeignConfig, folder: Path, chats: Chats) -> dict[str, Any]:
    """Run the gate, which writes the record for `toolkit verify`; returns its report."""
    if config.bounds is None:
        return leave_out_gate()
    say(f"export: comparing with the float model in {source.folder}, which may take minutes")
    return pass_gate(source, folder, "exact", config.bounds, [], chats)


def open_foreign(folder: Path) -> ForeignSource:
    """Open a checkpoint; the sizes of its cache are guesses until there is a graph."""
    path = folder / "config.json"
    if read_object(path).get("quantization_config"):
        raise InputError(f"{path} describes a quantized model, which {OPTIMUM} cannot export; take its float model")
    try:
        whole = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        theirs = whole.get_text_config(decoder=True)
        longest = next(int(value) for name in LENGTHS if (value := getattr(theirs, name, None)))
        rope = getattr(theirs, "rope_parameters", None) or {}
        trained = rope["original_max_position_embeddings"] if rope.get("rope_type") == "longrope" else longest
        sizes = ForeignSizes(
            model_type=theirs.model_type,
            vocab_size=theirs.vocab_size,
            hidden_size=theirs.hidden_size,
            num_hidden_layers=theirs.num_hidden_layers,
            num_attention_heads=theirs.num_attention_heads,
            num_key_value_heads=theirs.num_attention_heads,
            padded_head_dim=theirs.hidden_size // theirs.num_attention_heads,
            max_position_embeddings=min(longest, trained),
        )
    except StopIteration:
        raise InputError(f"{path} names none of {', '.join(LENGTHS)}; add the number of positions") from None
    except Exception as error:  # each check of transformers raises its own
        why = " ".join(str(error).split())
        raise InputError(
            f"transformers cannot read {path}: {type(error).__name__}: {why}; get the file again"
        ) from error
    if trained < longest:
        say(
            f"export: it will read up to {trained:,} tokens: for longer texts, it turns queries and keys otherwise, "
            "which is not exported"
        )
    return ForeignSource(folder=folder, chat_format=ChatFormat.from_folder(folder), sizes=sizes)


def _stage(config: ForeignConfig) -> runs.Stage:
    """Identify a run by its settings, what optimum is run with, and its input's digest."""
    settings = {name: value for name, value in asdict(config).items() if not isinstance(value, Path)}
    settings |= {"exporter": "optimum", "requirements": list(REQUIREMENTS)}
    return runs.Stage(name="export", config=settings, inputs={"source": runs.files_digest(config.source)})


def _parameters(folder: Path) -> int:
    """Count the weights of a checkpoint; raises `InputError` if a file of it is missing or cut short."""
    stored, _ = read_headers(folder)
    return sum(int(np.prod(rows.shape)) for rows in stored.values())


def _check_memory(parameters: int) -> None:
    """Check that optimum, which reads the whole model and writes another copy, finds the memory for it."""
    needed, available = COPIES * 4 * parameters, memory().available_bytes
    if needed > available:
        raise InputError(
            f"--exporter optimum needs memory for {COPIES:g} copies of the float model ({needed / 1e9:.1f} GB; "
            f"{available / 1e9:.1f} GB are free); close programs, or export on a larger machine"
        )
