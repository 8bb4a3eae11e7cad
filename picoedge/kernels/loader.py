"""Choice of the kernels backend: the best native level this processor has, or NumPy; and why."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from ctypes import CDLL
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from picoedge.errors import PicoedgeError, UsageError
from picoedge.kernels.api import Kernels
from picoedge.kernels.f48 import F48, NativeF48

if TYPE_CHECKING:
    from picoedge.kernels.training import TrainingKernels

# level -> the flags of /proc/cpuinfo it needs, best first. A Pi 4's A72 has no asimddp.
_X86 = {
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "fma", "f16c"},
    "avxvnni": {"avx_vnni", "avx2", "fma", "f16c"},
    "avx2": {"avx2", "fma", "f16c"},
}
_ARM = {
    "i8mm": {"i8mm", "asimddp", "asimdhp"},
    "dotprod": {"asimddp", "asimdhp"},
    "neon": {"asimd"},
}
_LEVELS = {"x86_64": _X86, "AMD64": _X86, "aarch64": _ARM, "arm64": _ARM}


def usable_levels(machine: str, cpu_flags: Iterable[str]) -> list[str]:
    """Levels that a processor with these flags of /proc/cpuinfo can run, best first."""
    flags = set(cpu_flags)
    return [level for level, needs in _LEVELS.get(machine, {}).items() if needs <= flags]


def choose_library(kind: str | None, levels: list[str], folder: Path) -> tuple[Path | None, str]:
    """The library to load (None: the NumPy backend) and the reason, to be shown.

    `kind` is None (the best there is), "numpy", "native", or the name of a level. Raises UsageError
    for `native` or a level if there is none that is usable and built.
    """
    if kind == "numpy":
        return None, "asked for"
    if kind not in (None, "native") and kind not in {*_X86, *_ARM}:
        raise UsageError(f"no kernels named {kind!r}", "choose numpy or native")
    wanted = [level for level in levels if kind in (None, "native", level)]
    for level in wanted:
        path = folder / f"_native_{level}.so"
        if path.exists():
            return path, f"best level built that this processor has ({level})"
    if wanted:
        reason = (
            f"the C kernels are not built ({', '.join(wanted)}): install gcc and picoedge again"
        )
    elif levels:
        reason = f"this processor cannot run {kind}; it can run {', '.join(levels)}"
    else:
        reason = "this processor has none of the instruction sets the C kernels need"
    if kind is not None:
        raise UsageError(f"no {kind} kernels here: {reason}", "or use --kernels numpy")
    return None, reason


def cpu_flags(cpuinfo: str) -> set[str]:
    """Flags of the first processor in the text of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def default_threads() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _open_here(kind: str | None) -> tuple[CDLL | None, str]:
    """The library to compute with, None for NumPy, and why: opened and checked once a process.

    Raises UsageError, PicoedgeError.
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    levels = usable_levels(platform.machine(), cpu_flags(text))
    path, reason = choose_library(kind, levels, Path(__file__).parent)
    if path is None:
        return None, f"NumPy: {reason}"
    from picoedge.kernels.native import open_library

    try:
        return open_library(path), f"{path.stem.removeprefix('_native_')}: {reason}"
    except OSError as error:  # not a library for this machine
        failure = f"{path.name} cannot be loaded: {error}"
        if kind is not None:
            raise PicoedgeError(failure, "install picoedge again") from error
    except PicoedgeError as error:  # built from other sources
        failure = f"{error.message}; {error.hint}"
        if kind is not None:
            raise
    return None, f"NumPy: {failure}"


def load_kernels(kind: str | None = None, threads: int | None = None) -> Kernels:
    """The backend to compute with. `kind`: None (the best), "numpy", "native" or a level's name.

    `threads`: None means all cores this process may use. Raises UsageError if `kind` does not exist
    here, and PicoedgeError if its library cannot be loaded or was built from other sources.
    """
    from picoedge.kernels.reference.backend import NumpyKernels

    library, _ = _open_here(kind)
    count = threads or default_threads()
    if library is None:
        return NumpyKernels(count)
    from picoedge.kernels.native import NativeKernels

    return NativeKernels(library, count)


def load_training_library(kind: str | None = None) -> CDLL | None:
    """The C library that `load_training_kernels` computes with; None: NumPy.

    Raises as `load_kernels` does, and PicoedgeError where its kernels of training alone were built
    from other sources.
    """
    from picoedge.kernels.training_abi import bind_training

    library, _ = _open_here(kind)
    if library is not None:
        bind_training(library)
    return library


def load_training_kernels(kind: str | None = None, *, fast: bool = False) -> TrainingKernels:
    """One thread's kernels of training; `fast`: with BLAS. Raises as `load_training_library`."""
    from picoedge.kernels.reference.training import NumpyTrainingKernels
    from picoedge.kernels.training import BlasTrainingKernels, NativeTrainingKernels

    library = load_training_library(kind)
    if library is None:
        return NumpyTrainingKernels()
    level = library.pe_level().decode()
    return (BlasTrainingKernels if fast else NativeTrainingKernels)(library, level)


def load_f48(kind: str | None = None) -> F48:
    """The f48 codec of the same backend. Raises as `load_kernels` does."""
    library, _ = _open_here(kind)
    return F48() if library is None else NativeF48(library)


def describe_kernels(kind: str | None = None) -> str:
    """One line for `doctor`: the backend and why. Raises as `load_kernels` does."""
    return _open_here(kind)[1]
