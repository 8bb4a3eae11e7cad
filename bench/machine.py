"""What a figure was measured on. As `python -m bench.machine` it prints itself as JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from bench.children import ROOT

PACKAGES = ("numpy", "llama_cpp_python", "torch", "transformers", "peft", "gguf")


def commit() -> str:
    """The commit measured, with "-dirty" where files differ from it; "unknown" without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def cpu_model(cpuinfo: str) -> str:
    """The processor's name in the text of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or platform.machine()


def describe() -> dict[str, Any]:
    """Processor, cores, memory, Python, packages, BLAS, and which kernels run."""
    import numpy as np

    from picoedge.kernels.loader import default_threads, describe_kernels

    settings: Any = np.show_config(mode="dicts")  # type: ignore[call-overload,unused-ignore]
    blas = settings["Build Dependencies"]["blas"]
    return {
        "cpu": cpu_model(_read("/proc/cpuinfo")),
        "cores": default_threads(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "load_average": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "blas": f"{blas['name']} {blas['version']}",
        "kernels": describe_kernels(),
        **{name: _version(name) for name in PACKAGES},
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(describe()))
