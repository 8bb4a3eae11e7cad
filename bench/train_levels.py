"""The hash of a short run by each instruction set that can run here, and by a build for none."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import train_arm64
from bench.children import ROOT, BenchError, Unready, worker

# Levels of the build, by the processor's kind: what cannot be run is told.
LEVELS = {"x86_64": ("avx2", "avxvnni", "avx512"), "aarch64": ("neon", "dotprod", "i8mm")}
PORTABLE = ["-std=c11", "-O2", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared"]


def hashes(bits: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """(hash by level, levels that were not run)."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as folder:
        library = portable_library(Path(folder))
        found["portable"] = worker("train_ours", job="bits", threads=1, library=library, **bits)
    here = worker("train_levels")
    for level in here:
        found[level] = worker("train_ours", job="bits", threads=1, kernels=level, **bits)
    if platform.machine() != "aarch64":
        try:
            found |= train_arm64.hashes(bits)
        except Unready as missing:
            print(f"aarch64 is not run: {missing}", file=sys.stderr)
    left_out = [level for levels in LEVELS.values() for level in levels if level not in found]
    return found, left_out


def portable_library(folder: Path) -> str:
    """The kernels compiled for no instruction set in particular."""
    target = str(folder / "portable.so")
    sources = [str(ROOT / "picoedge" / "kernels" / f"{name}.c") for name in ("native", "training")]
    compiler = shlex.split(os.environ.get("CC") or "gcc")
    command = [*compiler, *PORTABLE, "-pthread", *sources, "-o", target, "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"the portable kernels were not built: {done.stderr[-400:]}")
    return target


def main() -> None:
    """Print the levels that are built and that this processor can run."""
    import json

    from picoedge.kernels.loader import cpu_flags, usable_levels

    flags = cpu_flags(Path("/proc/cpuinfo").read_text())
    levels = usable_levels(platform.machine(), flags)
    kernels = ROOT / "picoedge" / "kernels"
    print(json.dumps([each for each in levels if (kernels / f"_native_{each}.so").exists()]))


if __name__ == "__main__":
    main()
