"""The part of the build that pyproject.toml cannot say: native kernels and the catalogue.

`picoedge/kernels/*.c` are compiled once per instruction-set level into a plain
shared library (no Python.h) that ctypes loads. All of it is optional: without a compiler, or with
a compiler that does not know a level, the build warns and continues, and the NumPy backend runs.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

SOURCES = [f"picoedge/kernels/{name}.c" for name in ("native", "training")]
HEADERS = [
    f"picoedge/kernels/{name}.h"
    for name in ("abi", "vector", "rounding", "weights", "sgemm", "stacked", "dense")
]
COMMON = [
    "-std=c11",
    "-O3",
    "-ffp-contract=off",  # a fused multiply-add would give each level other bits
    "-fno-math-errno",
    "-fPIC",
    "-shared",
    "-pthread",
]
AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c"
LEVELS = {
    "x86_64": {
        "avx2": "-mavx2 -mfma -mf16c",
        "avxvnni": "-mavx2 -mfma -mf16c -mavxvnni",
        "avx512": AVX512,
    },
    "aarch64": {
        "neon": "-march=armv8-a",
        "dotprod": "-march=armv8.2-a+dotprod+fp16",
        "i8mm": "-march=armv8.2-a+dotprod+i8mm+fp16",
    },
}


def machine() -> str:
    """The target's name in LEVELS; "" for a 32-bit Python on a 64-bit kernel."""
    name = sysconfig.get_platform().rpartition("-")[2].lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name) if sys.maxsize > 2**32 else ""


def compiler() -> list[str]:
    """The C compiler as words of a command: $CC, else Python's own, else one on the PATH."""
    for command in (os.environ.get("CC"), sysconfig.get_config_var("CC"), "cc", "gcc", "clang"):
        words = shlex.split(command or "")
        if words and shutil.which(words[0]):
            return words
    return []


def native_extensions() -> list[Extension]:
    """An extension a level; none without sources or a compiler, so that the wheel is pure."""
    if not Path(SOURCES[0]).is_file() or not compiler():
        print("warning: no C compiler: the NumPy backend of the kernels will run", file=sys.stderr)
        return []
    return [
        Extension(f"picoedge.kernels._native_{level}", SOURCES, depends=HEADERS, optional=True)
        for level in LEVELS.get(machine(), {})
    ]


class BuildNative(build_ext):
    """Calls the compiler itself: Python's own flags must not change the kernels' arithmetic."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        level = ext.name.rpartition("_")[2]
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [
            *compiler(), *COMMON, *LEVELS[machine()][level].split(),
            f'-DPICOEDGE_LEVEL="{level}"', *SOURCES, "-o", str(target), "-lm",
        ]  # fmt: skip
        try:
            result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
            reason = "" if result.returncode == 0 else result.stderr.strip()
        except OSError as error:
            reason = str(error)
        if reason:
            target.unlink(missing_ok=True)
            print(f"warning: kernels for {level} were not built:\n{reason}", file=sys.stderr)


class BuildPackage(build_py):
    """Puts the catalogue of `models/` into the wheel; a checkout is read where it lies."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source in sorted(Path("models").glob("*.toml")):
                self.copy_file(str(source), str(self._catalogue() / source.name))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        names = sorted(path.name for path in Path("models").glob("*.toml"))
        ours = [] if self.editable_mode else [str(self._catalogue() / name) for name in names]
        return [*super().get_outputs(include_bytecode), *ours]

    def _catalogue(self) -> Path:
        folder = Path(self.build_lib, "picoedge", "models")
        folder.mkdir(parents=True, exist_ok=True)
        return folder


class BuildWheel(bdist_wheel):
    """The libraries depend on the machine, but on no Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return ("py3", "none", platform)


setup(
    ext_modules=native_extensions(),
    cmdclass={
        "bdist_wheel": BuildWheel,
        "build_ext": BuildNative,
        "build_py": BuildPackage,
    },
)
