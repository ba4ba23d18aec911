"""`python -m tests.export.wheels [DIR]`: builds a wheel for each platform on this machine, and checks it.

Each holds the compiled kernels of its platform and nothing of another's, offers what onnxruntime and we call, and needs
nothing that every such system lacks. The wheel of this machine is installed into an environment without a compiler,
where our kernels must run. `tests.export.aarch64_kernels` runs that of arm64; no other can be run here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from toolkit.figures.tables import markdown_table
from toolkit.machine.environment import interpreter

ROOT = Path(__file__).parents[2]
LIEF = "lief==1.0.0"
CALLED = {"RegisterCustomOps", "kernels_here", "choose_kernels"}


@dataclass(frozen=True, kw_only=True)
class Platform:
    """What the library of a wheel must be."""

    file: str
    architecture: str
    least: str
    """The oldest system library or system that it may need."""
    imports: str
    """A pattern of the libraries that it may import."""


GLIBC = r"(libc|libm|libpthread)\.so\.\d|ld-linux.*"
WINDOWS = r"(?i)kernel32\.dll|api-ms-win-crt-.*\.dll"
PLATFORMS = {
    "manylinux_2_28_x86_64": Platform(file="_library.so", architecture="X86_64", least="GLIBC_2.28", imports=GLIBC),
    "manylinux_2_28_aarch64": Platform(file="_library.so", architecture="AARCH64", least="GLIBC_2.28", imports=GLIBC),
    "macosx_11_0_arm64": Platform(
        file="_library.so", architecture="ARM64", least="11.0.0", imports=r"/usr/lib/libSystem\.B\.dylib"
    ),
    "win_amd64": Platform(file="_library.dll", architecture="AMD64", least="", imports=WINDOWS),
    "win_arm64": Platform(file="_library.dll", architecture="ARM64", least="", imports=WINDOWS),
}
SAY_KERNELS = "from export.runtime.kernels.library import kernels_in_words; print(kernels_in_words())"


def build(platform: str, out: Path) -> Path:
    """Build the wheel of a platform and return it."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(ROOT)]
    subprocess.run(pip, env=os.environ | {"TOOLKIT_WHEEL": platform}, check=True)
    shutil.rmtree(ROOT / "build" / platform)
    [wheel] = out.glob(f"*-py3-none-{platform}.whl")
    return wheel


def library_of(wheel: Path, folder: Path) -> Path:
    """Unpack the wheel's only compiled file."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if Path(name).suffix in (".so", ".dll", ".pyd", ".dylib")]
        return Path(archive.extract(name, folder / wheel.stem))


def faults(platform: Platform, library: Path, found: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with a library, by what `wheel_libraries` found."""
    wrong = []
    if library.name != platform.file:
        wrong.append(f"its name is {library.name}, not {platform.file}")
    if found["architecture"] != platform.architecture:
        wrong.append(f"it is for {found['architecture']}, not {platform.architecture}")
    if missing := CALLED - set(found["exported"]):
        wrong.append(f"it does not offer {', '.join(sorted(missing))}")
    strange = [name for name in found["imported"] if not re.fullmatch(platform.imports, name)]
    if strange:
        wrong.append(f"it needs {', '.join(strange)}")
    if _numbers(str(found["least"])) > _numbers(platform.least):
        wrong.append(f"it needs {found['least']}, newer than {platform.least}")
    return wrong


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def installed(wheel: Path, folder: Path) -> str:
    """Install a wheel with what chats need, where no compiler is found, and return which kernels run there."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    without_compiler = {name: value for name, value in os.environ.items() if name not in ("PATH", "CC", "CXX")}
    without_compiler["PATH"] = str(folder / "bin")
    options = ["--quiet", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([python, "-m", "pip", "install", *options, f"{wheel}[chat]"], env=without_compiler, check=True)
    run: list[str | Path] = [python, "-P", "-c", SAY_KERNELS]
    ran = subprocess.run(run, env=without_compiler, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return str(ran.stdout).strip()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.export.wheels", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("dist"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--environments", type=Path, default=Path("runs/wheels"), help="default: %(default)s")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    python = interpreter(options.environments / "lief", [LIEF])
    rows, is_right = [["wheel", "MB", "its library", "needs", "wrong"]], True
    with TemporaryDirectory() as scratch:
        wheels = {platform: build(platform, options.out) for platform in PLATFORMS}
        libraries = [library_of(wheel, Path(scratch)) for wheel in wheels.values()]
        script = Path(__file__).with_name("wheel_libraries.py")
        done = subprocess.run([python, script, *libraries], stdout=subprocess.PIPE, text=True, check=True)
        for (name, wheel), library, line in zip(wheels.items(), libraries, done.stdout.splitlines(), strict=True):
            found = json.loads(line)
            wrong = faults(PLATFORMS[name], library, found)
            is_right = is_right and not wrong
            needs = ", ".join([*filter(None, [found["least"]]), *sorted(found["imported"])])
            size = f"{wheel.stat().st_size / 1e6:.1f}"
            rows.append([wheel.name, size, found["architecture"], needs, "; ".join(wrong) or "nothing"])
        print(markdown_table(rows))
        if sys.platform == "linux" and os.uname().machine == "x86_64":
            kernels = installed(wheels["manylinux_2_28_x86_64"], Path(scratch) / "fresh")
            print(f"\nInstalled where no compiler is: {kernels}")
            is_right = is_right and not kernels.startswith("onnxruntime's")
    sys.exit(not is_right)


if __name__ == "__main__":
    main()
