"""`python -m tests.export.aarch64 DIR [--home runs/aarch64]`: checks that an exported folder gives the same logits on
arm64 as here. `tests.export.aarch64_kernels` checks the kernels there.

On Debian, its arm64 Python, the index's arm64 wheels and our own are unpacked into a folder and run there by qemu-user.
Nothing is installed. It takes minutes and a network, so no test does it.

    home/
    ├── apt/    packages and their lists
    ├── root/   what is in them, and an arm64 processor's `/proc/cpuinfo`, without which onnxruntime does not start
    ├── site/   wheels
    └── ours/   our own wheel, from the sources as they are

Shapes: T steps, V vocabulary.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
PACKAGES = ("python3", "libstdc++6")
REQUIREMENTS = (
    "filelock",
    "httpx2",
    "huggingface_hub",
    "jinja2",
    "numpy",
    "onnxruntime",
    "platformdirs",
    "psutil",
    "tokenizers",
)
PLATFORM = "manylinux_2_28_aarch64"
PLATFORMS = (PLATFORM, "manylinux_2_17_aarch64", "manylinux2014_aarch64")
CPU_FACTS = "processor : 0\nFeatures : fp asimd aes atomics asimdhp asimddp\nCPU implementer : 0x41\nCPU part : 0xd0b\n"
"""Of a Cortex-A76, which a Raspberry Pi 5 has; onnxruntime reads them. What our kernels ask is qemu's own answer."""
EVERY_INSTRUCTION = ("-cpu", "max")
MOST_KL = 1e-4
DECODE = """
import sys
from pathlib import Path
import numpy as np
from export.runtime.decoder import OnnxDecoder

decoder = OnnxDecoder(Path(sys.argv[1]), cache=sys.argv[2])
ids = np.random.default_rng(0).integers(0, decoder.model.vocab_size, 160).tolist()
logits = [decoder.start([ids[:140]])[0], *(decoder.step(np.array([token]))[0] for token in ids[140:])]
np.save(sys.argv[3], np.stack(logits))
"""


def prepare(home: Path) -> list[str | Path]:
    """Fetch and unpack what is missing; returns the command that runs arm64's Python."""
    root, site, apt = home / "root", home / "site", home / "apt"
    python = root / "usr/bin/python3"
    if not python.is_symlink():
        for name in ("state/lists/partial", "cache/archives/partial"):
            (apt / name).mkdir(parents=True, exist_ok=True)
        (apt / "status").touch()
        places = {"Dir::State": apt / "state", "Dir::State::status": apt / "status", "Dir::Cache": apt / "cache"}
        named = {"APT::Architecture": "arm64", "APT::Architectures::": "arm64", "APT::Sandbox::User": "root", **places}
        options = [word for name, value in named.items() for word in ("-o", f"{name}={value}")]
        _run("apt-get", "-qq", *options, "update")
        _run("apt-get", "-qq", *options, "install", "--no-install-recommends", "--download-only", "-y", *PACKAGES)
        _run(
            "apt-get",
            "-qq",
            "-o",
            "APT::Sandbox::User=root",
            "download",
            "qemu-user-static",
            cwd=apt / "cache/archives",
        )
        for package in sorted((apt / "cache/archives").glob("*.deb")):
            _run("dpkg-deb", "-x", package, root)
        (root / "proc").mkdir(exist_ok=True)
        (root / "proc/cpuinfo").write_text(CPU_FACTS, encoding="ascii")
    if not site.is_dir():
        version = python.readlink().name.removeprefix("python")
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--python-version", version]
        _run(*pip, *platforms, "--target", site, "-c", ROOT / "constraints.txt", *REQUIREMENTS)
    _unpack_ours(home)
    return [root / "usr/bin/qemu-aarch64-static", *EVERY_INSTRUCTION, "-L", root, python, "-S"]


def _unpack_ours(home: Path) -> None:
    """Build our wheel for arm64 and unpack it."""
    for name in ("wheel", "ours"):
        shutil.rmtree(home / name, ignore_errors=True)
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        home / "wheel",
        ROOT,
    ]
    subprocess.run(pip, env=os.environ | {"TOOLKIT_WHEEL": PLATFORM}, check=True)
    [wheel] = (home / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home / "ours")


def environment(home: Path) -> dict[str, str]:
    """Return the environment of programs that use the packages there."""
    return os.environ | {"PYTHONPATH": os.pathsep.join((str(home / "ours"), str(home / "site")))}


def decode(
    python: Sequence[str | Path], folder: Path, cache: str, path: Path, variables: Mapping[str, str]
) -> NDArray[np.float64]:
    """Return logits_TV at the end of a prompt and after each step."""
    subprocess.run([*python, "-c", DECODE, folder, cache, path], env=variables, check=True)
    logits_TV: NDArray[np.float64] = np.load(path).astype(np.float64)
    return logits_TV


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.export.aarch64", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="an exported folder")
    add_home(parser)
    options = parser.parse_args()
    home, folder = options.home.absolute(), options.folder.absolute()
    there = prepare(home)
    is_close = True
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    for cache in ("exact", *(["int8"] if (folder / "model.int8-cache.onnx").is_file() else [])):
        ours_TV = _log_softmax(decode([sys.executable], folder, cache, home / "here.npy", here))
        theirs_TV = _log_softmax(decode(there, folder, cache, home / "there.npy", environment(home)))
        kl = float((np.exp(ours_TV) * (ours_TV - theirs_TV)).sum(-1).mean())
        same = float((ours_TV.argmax(-1) == theirs_TV.argmax(-1)).mean())
        print(f"{cache} keys and values: mean KL {kl:.1e} (at most {MOST_KL:.0e}), same first choice {same:.1%}")
        is_close = is_close and kl <= MOST_KL
    sys.exit(not is_close)


def add_home(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--home", type=Path, default=Path("runs/aarch64"), help="default: %(default)s")


def _log_softmax(logits_TV: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted_TV = logits_TV - logits_TV.max(-1, keepdims=True)
    log_probs_TV: NDArray[np.float64] = shifted_TV - np.log(np.exp(shifted_TV).sum(-1, keepdims=True))
    return log_probs_TV


def _run(*words: str | Path, cwd: Path | None = None) -> None:
    subprocess.run(words, check=True, cwd=cwd)


if __name__ == "__main__":
    main()
