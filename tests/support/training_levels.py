"""The kernels of training on every level that this processor can run."""

from __future__ import annotations

import ctypes as ct
import os
import platform
import shlex
import subprocess
from pathlib import Path

from picoedge.kernels import loader
from picoedge.kernels.training import NativeTrainingKernels

_SOURCES = Path(loader.__file__).parent


def training_levels(folder: Path) -> list[NativeTrainingKernels]:
    """A build for no processor in particular, made in `folder`, then each built level."""
    target = folder / "_native_portable.so"
    words = [*shlex.split(os.environ.get("CC") or "gcc"), "-std=c11", "-O1"]
    words += ["-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared", "-pthread"]
    subprocess.run([*words, str(_SOURCES / "training.c"), "-o", str(target), "-lm"], check=True)
    flags = loader.cpu_flags(Path("/proc/cpuinfo").read_text())
    names = loader.usable_levels(platform.machine(), flags)
    built = [target, *(_SOURCES / f"_native_{name}.so" for name in names)]
    return [NativeTrainingKernels(ct.CDLL(str(path)), path.stem) for path in built]
