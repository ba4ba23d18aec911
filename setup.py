"""What pyproject.toml cannot say: the kernels use nothing of Python's, so one wheel serves every Python of a platform,
and Zig compiles those of another platform here.

    TOOLKIT_WHEEL=win_amd64 pip wheel . --no-deps -w dist        (`make wheels` builds all of TARGETS)
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

TARGETS = {
    "manylinux_2_28_x86_64": "x86_64-linux-gnu.2.28",
    "manylinux_2_28_aarch64": "aarch64-linux-gnu.2.28",
    "macosx_11_0_arm64": "aarch64-macos.11.0",
    "win_amd64": "x86_64-windows-gnu",
    "win_arm64": "aarch64-windows-gnu",
}
"""Zig's name of each platform that a wheel can be built for, with the oldest system that it runs on."""
ZIG = "ziglang==0.17.1"
VARIABLE = "TOOLKIT_WHEEL"
"""The environment variable that names one of them; without it the wheel is of this machine, by its own compiler."""
PLATFORM = os.environ.get(VARIABLE, "")
if PLATFORM and PLATFORM not in TARGETS:
    sys.exit(f"{VARIABLE} ({PLATFORM!r}) must be one of {', '.join(TARGETS)}; unset it for a wheel of this machine")


class Library(build_ext):
    """Compiles `export.runtime.kernels._library` into a file without a Python's name."""

    def get_ext_filename(self, fullname: str) -> str:
        windows = PLATFORM.startswith("win") if PLATFORM else sys.platform == "win32"
        return os.path.join(*fullname.split(".")) + (".dll" if windows else ".so")

    def build_extension(self, ext: Extension) -> None:
        if not PLATFORM:
            super().build_extension(ext)
            return
        path = Path(self.get_ext_fullpath(ext.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        zig = [sys.executable, "-m", "ziglang", "cc", "-target", TARGETS[PLATFORM], "-shared", "-fPIC", "-s"]
        subprocess.run([*zig, *ext.extra_compile_args, *ext.sources, "-o", str(path)], check=True)


class PlatformWheel(bdist_wheel):
    """A wheel of a platform, for any Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", PLATFORM or super().get_tag()[2]


setup(
    cmdclass={"bdist_wheel": PlatformWheel, "build_ext": Library},
    setup_requires=[ZIG] if PLATFORM else [],
    options={"build": {"build_base": f"build/{PLATFORM}"}} if PLATFORM else {},
)
