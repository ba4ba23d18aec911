"""Quantizes a checkpoint to int4 by Olive and by onnxruntime-genai's model builder, for comparison.

Their dependencies conflict with ours and with each other's: Olive 0.13 calls the builder as it was before 0.15. So each
has an environment of its own, where its command line runs; the resulting folders are read here, through onnxruntime.

Source: `olive optimize --dry_run` for Olive's defaults; its documentation of the passes; `--help` of the builder.

Shapes: B texts of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.runtime.session import open_session
from toolkit.errors import InputError
from toolkit.generation.generate import Floats
from toolkit.machine.environment import interpreter

Passes = dict[str, dict[str, Any]]
"""Olive's passes over a model, in order, each with its settings."""

BUILDER = (
    "torch==2.13.0",
    "transformers==5.23.0",
    "onnx-ir==1.1.0",
    "onnxruntime==1.31.1",
    "onnxruntime-genai==0.18.0",
)
OLIVE = (
    "torch==2.13.0",
    "transformers==4.57.6",
    "accelerate==1.12.0",
    "datasets==4.7.0",
    "olive-ai==0.13.0",
    "onnxruntime==1.31.1",
    "onnxruntime-genai==0.14.1",
)
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OLIVE_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}
ALGORITHMS = ("default", "k_quant_mixed")
"""The builder's algorithms: nearest in blocks of 32; and with a search for scales, some matrices in eight bits."""


def optimize() -> Passes:
    """Return the passes of `olive optimize --precision int4 --block_size 64`.

    64 is the largest block that divides SmolLM2-135M's 576 columns; the default of 128 fails.
    """
    return {
        "gptq": {"type": "Gptq", "bits": 4, "sym": True, "group_size": 64, "data_config": "texts"},
        "builder": {
            "type": "ModelBuilder",
            "precision": "int4",
            "int4_block_size": 64,
            "int4_accuracy_level": 4,
            "int4_op_types_to_quantize": ["MatMul", "Gather"],
        },
    }


def with_head() -> Passes:
    """Return the same with zero points and a calibrated head."""
    passes = optimize()
    return passes | {"gptq": passes["gptq"] | {"sym": False, "lm_head": True}}


def mixed() -> Passes:
    """Return the most faithful recipe found: smaller blocks, and eight bits for the head, the embedding and the
    matrices that llama.cpp's Q4_K_M also favours."""
    blocks = {"sym": False, "group_size": 32}
    return {
        "mixed": {"type": "SelectiveMixedPrecision", "algorithm": "k_quant_mixed"},
        "gptq": {"type": "Gptq", "bits": 4, "lm_head": True, "data_config": "texts"} | blocks,
        # `mixed` overrides a pass's own bits, but not its overrides
        "embedding": {"type": "Rtn", "embeds": True, "overrides": {"model.embed_tokens": {"bits": 8}}} | blocks,
        "builder": {"type": "ModelBuilder", "precision": "int4", "int4_block_size": 32, "int4_accuracy_level": 4},
    }


RECIPES = {"optimize": optimize, "with head": with_head, "k_quant_mixed": mixed}


class BuiltModel:
    """A loaded folder in the builder's layout; a `Scorer`."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        """Open the graph; raises `InputError` if onnxruntime cannot."""
        decoder = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
        self._session = open_session(folder / decoder["filename"], threads=threads, prepacked=False)
        nothing = np.empty((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), dtype=np.float32)
        names = [value.name for value in self._session.get_inputs()]
        self._past = {name: nothing for name in names if name.startswith("past_key_values.")}

    def score(self, tokens_T: Sequence[int], *, first: int = 0) -> Floats:
        """Return logits_TV after each token of a text from index `first` on."""
        ids_BT = np.array([tokens_T], dtype=np.int64)
        feeds = {"input_ids": ids_BT, "attention_mask": np.ones_like(ids_BT)}
        [logits_BTV] = self._session.run(["logits"], feeds | self._past)
        logits_TV: Floats = logits_BTV[0, first:]
        return logits_TV


def write_folders(model: Path, texts: Sequence[str], out: Path) -> dict[str, Path]:
    """Quantize a checkpoint by both into folders under `out`, Olive calibrated on the texts; return them by name."""
    folders = {}
    for algorithm in ALGORITHMS:
        folders[f"onnxruntime-genai {algorithm}"] = folder = out / f"genai-{algorithm}"
        arguments = ["-i", str(model), "-o", str(folder), "-c", f"{folder}-cache", "-p", "int4", "-e", "cpu"]
        arguments += ["--extra_options", f"algo_config={algorithm}"]
        _run(interpreter(out / "environments/builder", BUILDER), "onnxruntime_genai.models.builder", arguments, folder)
    text_file = out / "olive-texts.jsonl"
    text_file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    for name, passes in RECIPES.items():
        folders[f"Olive {name}"] = folder = out / f"olive-{name.replace(' ', '-')}"
        recipe = Path(f"{folder}.json")
        recipe.write_text(json.dumps(_recipe(model, folder, passes(), text_file), indent=1), encoding="utf-8")
        _run(interpreter(out / "environments/olive", OLIVE), "olive", ["run", "--config", str(recipe)], folder)
    return folders


def _recipe(model: Path, out: Path, passes: Passes, texts: Path) -> Mapping[str, Any]:
    """Return the configuration that `olive run` reads."""
    whole_texts = {
        "strategy": "line-by-line",
        "max_seq_len": 2048,
        "pad_to_max_len": False,
        "add_special_tokens": False,
    }
    return {
        # in float32, because calibration sums in the checkpoint's fp16 would be rounded
        "input_model": {"type": "HfModel", "model_path": str(model), "load_kwargs": {"torch_dtype": "float32"}},
        "data_configs": [
            {
                "name": "texts",
                "type": "HuggingfaceContainer",
                "load_dataset_config": {"data_name": "json", "data_files": str(texts), "split": "train"},
                "pre_process_data_config": {"model_name": str(model), "task": "text-generation"} | whole_texts,
                "dataloader_config": {"batch_size": 1},
            }
        ],
        "passes": passes,
        "systems": {
            "here": {
                "type": "LocalSystem",
                "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
            }
        },
        "host": "here",
        "target": "here",
        "no_artifacts": True,
        "cache_dir": f"{out}-cache",
        "output_dir": str(out),
    }


def _run(python: Path, module: str, arguments: Sequence[str], out: Path) -> None:
    """Run a module offline that rewrites a folder; its output goes into a log beside it.

    Raises `InputError` if no model is written, which Olive does not report.
    """
    shutil.rmtree(out, ignore_errors=True)
    log = Path(f"{out}.log")
    with log.open("w", encoding="utf-8") as file:
        command = [str(python), "-m", module, *arguments]
        subprocess.run(command, env=os.environ | OFFLINE, stdout=file, stderr=subprocess.STDOUT, check=True)
    if not (out / "model.onnx").is_file():
        raise InputError(f"{module} did not write {out}/model.onnx; {log} says why")
