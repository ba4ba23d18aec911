"""What pyproject.toml cannot say: the kernels use nothing of Python's, so one wheel serves every Python of a
platform."""

import os
import sys

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class Library(build_ext):
    """Compiles `export.runtime.kernels._library` into a file without a Python's name."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + (".dll" if sys.platform == "win32" else ".so")


class PlatformWheel(bdist_wheel):
    """A wheel of a platform, for any Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(cmdclass={"bdist_wheel": PlatformWheel, "build_ext": Library})
