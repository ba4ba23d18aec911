"""Runs optimum's exporter in an environment of its own.

    <cache folder>/environments/optimum-onnx-0.1.0/     venv: optimum-onnx needs an older transformers than ours
    <scratch>/source/    config.json as that transformers reads it, and links to the weights; no code, no tokenizer
    <scratch>/graph/     model.onnx, which optimum writes

`REQUIREMENTS` are the project's dependency on optimum: the toolkit's own environment cannot hold it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from filelock import FileLock
from huggingface_hub.constants import ENV_VARS_TRUE_VALUES

from toolkit.errors import InputError, shortage
from toolkit.machine.environment import interpreter, is_made
from toolkit.machine.user_folders import cache_folder
from toolkit.records import read_object
from toolkit.terminal import say

OPTIMUM = "optimum-onnx 0.1.0"
REQUIREMENTS = (
    "optimum-onnx==0.1.0",
    "transformers==4.57.6",
    "torch==2.13.0",
    "onnx==1.23.2",
    "onnxruntime==1.31.1",
)
"""optimum-onnx 0.1.0, the newest there is, refuses transformers 4.58 and newer."""
SIZE = "about 1.3 GB with torch's CPU build, several times more with CUDA's"
PROGRAM = Path(__file__).with_name("optimum_program.py")
RUNS_CODE = ("auto_map", "_attn_implementation", "attn_implementation", "_attn_implementation_internal")
"""Keys of a `config.json` that make older libraries look for code; nothing that optimum exports needs them."""


def environment_folder() -> Path:
    return cache_folder() / "environments" / OPTIMUM.replace(" ", "-")


def has_environment() -> bool:
    return is_made(environment_folder(), REQUIREMENTS)


def optimum_python(*, may_install: bool) -> Path:
    """Return the Python of optimum's environment, which is made if it `may_install` what that needs.

    Raises `InputError` if there is none and it may not, if fetching is forbidden, or if pip cannot install them.
    """
    home = environment_folder()
    if not has_environment() and not may_install:
        raise InputError(
            f"--exporter optimum needs {OPTIMUM} in an environment of its own, and {home} holds none; give "
            f"--install-optimum to have pip install {', '.join(REQUIREMENTS)} there ({SIZE})"
        )
    offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    if not has_environment() and offline.upper() in ENV_VARS_TRUE_VALUES:
        raise InputError(
            f"{OPTIMUM} is not in {home} yet, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids fetching it; "
            "unset that"
        )
    home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(home.parent / ".lock"):
        if not has_environment():
            say(f"export: making an environment for {OPTIMUM} in {home} ({SIZE})")
        return interpreter(home, REQUIREMENTS, module="optimum.exporters.onnx")


def export_by_optimum(python: Path, folder: Path, scratch: Path) -> Path:
    """Have a checkpoint exported into an empty scratch folder; returns the path of the graph.

    Raises `InputError` if optimum does not know the architecture, or cannot read the checkpoint, or if the machine is
    too small.
    """
    source, graph = scratch / "source", scratch / "graph"
    source.mkdir()
    values = older_config(read_object(folder / "config.json"))
    (source / "config.json").write_text(json.dumps(values), encoding="utf-8")
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]:
        _link(path, source / path.name)
    name = str((values.get("architectures") or [values.get("model_type")])[0])
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [python, "-I", PROGRAM, source, graph, str(os.getpid())],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        check=False,
    )
    if done.returncode and (error := shortage(done.stderr, "the output folder")):
        raise error
    if done.returncode < 0:
        raise InputError(
            f"{OPTIMUM} was ended by signal {-done.returncode} while it exported {folder}, as happens if the memory is "
            "too small; close programs and run the same command again"
        )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it does not say why"])[-1]
        raise InputError(f"{OPTIMUM} cannot export {name} of {folder}: {why}; choose another model")
    return graph / "model.onnx"


def older_config(values: dict[str, Any]) -> dict[str, Any]:
    """Return a `config.json` as transformers 4 reads it, which keeps in several keys what 5 has in `rope_parameters`,
    and may call the number of experts otherwise.

    Raises `InputError` if each kind of layer has its own, for which transformers 4 has no keys.
    """
    older = {key: value for key, value in values.items() if key not in RUNS_CODE}
    if "num_local_experts" in older:
        older.setdefault("num_experts", older["num_local_experts"])
    rope = older.pop("rope_parameters", None)
    if not isinstance(rope, dict):
        return older
    if any(isinstance(value, dict) for value in rope.values()):
        raise InputError(
            f"rope_parameters of each kind of layer ({', '.join(rope)}) cannot be exported by {OPTIMUM}, whose "
            "transformers has no place for them; choose another model"
        )
    rope = dict(rope)
    theta, share = rope.pop("rope_theta", None), rope.pop("partial_rotary_factor", None)
    is_neox = older.get("model_type") == "gpt_neox"
    for key, value in (
        ("rotary_emb_base" if is_neox else "rope_theta", theta),
        ("rotary_pct" if is_neox else "partial_rotary_factor", share),
    ):
        if value is not None:
            older[key] = value
    if rope.get("rope_type", "default") != "default":
        older["rope_scaling"] = rope
    return older


def _link(path: Path, link: Path) -> None:
    """Name a file a second time; copies it where a system refuses links."""
    try:
        link.symlink_to(path.resolve())
    except OSError:
        shutil.copyfile(path, link)
