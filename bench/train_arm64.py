"""Steps of training by the aarch64 kernels, under qemu: Debian's Python and NumPy for arm64.

    python -m bench.train_arm64      # the hash of the weights after 20 steps, by level

Nothing is installed: packages are unpacked into a folder, which qemu shows to the program as its
root. Needs qemu-aarch64-static, aarch64-linux-gnu-gcc, apt-get and dpkg-deb, and the network once.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.children import ROOT, BenchError, Unready, run

# level -> a processor that qemu knows and that has it, and no more
PROCESSORS = {"neon": "cortex-a72", "dotprod": "neoverse-n1", "i8mm": "max"}
_COMPILER, _QEMU = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
_TOOLS = (_COMPILER, _QEMU, "apt-get", "dpkg-deb")
_LIBRARIES = "/usr/lib/aarch64-linux-gnu"
_TIMEOUT_S = 1800.0
_STEPS = {"model": "1m", "steps": 20, "micro_batches": 1, "length": 64}


def hashes(bits: Mapping[str, Any], levels: Sequence[str] = tuple(PROCESSORS)) -> dict[str, str]:
    """The hash by level of the job `bits` of `bench.train_ours`.

    Raises Unready where a tool is missing or the packages cannot be had, BenchError.
    """
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise Unready(f"{missing[0]} is missing: see .ci/run")
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as scratch:
        root = unpacked_python(Path(scratch))
        found = {}
        for level in levels:
            library = cross_compiled(Path(scratch), level)
            command = emulated_python(root, PROCESSORS[level])
            request = {"job": "bits", "threads": 1, "library": str(library), **bits}
            found[level] = run(
                [*command, "-m", "bench.train_ours"],
                stdin=json.dumps(request), timeout_s=_TIMEOUT_S,
            ).json()  # fmt: skip
        return found


def unpacked_python(folder: Path) -> Path:
    """A root folder with Python and NumPy for arm64. Raises Unready."""
    apt, root = folder / "apt", folder / "root"
    for name in ("lists/partial", "archives/partial"):
        (apt / name).mkdir(parents=True)
    root.mkdir()
    (apt / "status").touch()  # nothing counts as installed
    settings = {
        "Dir::State": apt, "Dir::State::status": apt / "status", "Dir::Cache": apt,
        "APT::Architecture": "arm64", "APT::Architectures": "arm64",
        "APT::Install-Recommends": "false", "APT::Sandbox::User": "root", "Debug::NoLocking": "1",
    }  # fmt: skip
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    for command in (["update"], ["-y", "--download-only", "install", "python3-numpy"]):
        _call(["apt-get", "-qq", *options, *command])
    for package in sorted((apt / "archives").glob("*.deb")):
        _call(["dpkg-deb", "-x", str(package), str(root)])
    return root


def emulated_python(root: Path, processor: str) -> list[str]:
    """The command of that Python on a processor of qemu's."""
    interpreter = sorted((root / "usr" / "bin").glob("python3.*[0-9]"))[0]
    paths = ":".join(f"{_LIBRARIES}/{name}" for name in ("blas", "lapack"))
    return [
        _QEMU, "-cpu", processor, "-L", str(root), "-E", f"LD_LIBRARY_PATH={paths}",
        str(interpreter),
    ]  # fmt: skip


def cross_compiled(folder: Path, level: str) -> Path:
    """The kernels of a level, with the flags of setup.py."""
    target = folder / f"{level}.so"
    sources = [str(ROOT / "picoedge" / "kernels" / f"{name}.c") for name in ("native", "training")]
    name = f'-DPICOEDGE_LEVEL="{level}"'
    _call([_COMPILER, *flags_of(level), name, *sources, "-o", str(target), "-lm"])
    return target


def flags_of(level: str) -> list[str]:
    """The compiler's flags for a level, as setup.py has them. Raises BenchError."""
    build = (ROOT / "setup.py").read_text()
    common = re.search(r"^COMMON = \[(.*?)^\]", build, re.MULTILINE | re.DOTALL)
    own = re.search(rf'^ *"{level}": "([^"]*)"', build, re.MULTILINE)
    if common is None or own is None:
        raise BenchError(f"setup.py has no flags for {level}")
    return [*re.findall(r'^ *"(-[^"]*)"', common[1], re.MULTILINE), *own[1].split()]


def _call(command: Sequence[str]) -> None:
    """Run one tool. Raises Unready with the end of what it said."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
    )  # fmt: skip
    if done.returncode != 0:
        tail = (done.stderr.strip() or done.stdout.strip())[-400:]
        raise Unready(f"{command[0]} ended with {done.returncode}: {tail}")


if __name__ == "__main__":
    print(json.dumps(hashes(_STEPS)))
