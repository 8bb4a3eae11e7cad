"""Every level of the C kernels that this machine can run, and one without a processor's flags."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from ctypes import CDLL
from dataclasses import dataclass
from pathlib import Path

from picoedge.files import take_lock
from picoedge.kernels import loader
from picoedge.kernels.native import NativeKernels
from picoedge.kernels.reference.backend import NumpyKernels

KERNELS = Path(loader.__file__).parent
THREADS = (1, 2, 3)


@dataclass(frozen=True)
class Backends:
    """Every level with every number of threads, `portable` on one thread first, and NumPy."""

    native: list[NativeKernels]
    numpy: NumpyKernels
    library: CDLL  # of the best level

    @property
    def portable(self) -> NativeKernels:
        return self.native[0]


def build_portable(folder: Path) -> Path:
    """Compile the C file with no flag that names a processor, once a folder."""
    target = folder / "_native_portable.so"
    with (folder / "_native_portable.lock").open("w") as lock:
        take_lock(lock.fileno(), None)
        if not target.exists():
            _compile_portable(target.with_suffix(".new"))
            target.with_suffix(".new").rename(target)
    return target


def _compile_portable(target: Path) -> None:
    words = [*shlex.split(os.environ.get("CC") or "gcc"), "-std=c11", "-O1"]
    words += ["-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared", "-pthread"]
    words += [str(KERNELS / "native.c"), "-o", str(target), "-lm"]
    subprocess.run(words, check=True)


def built_levels() -> list[Path]:
    flags = loader.cpu_flags(Path("/proc/cpuinfo").read_text())
    levels = loader.usable_levels(platform.machine(), flags)
    return [path for path in (KERNELS / f"_native_{name}.so" for name in levels) if path.exists()]
