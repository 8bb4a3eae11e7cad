"""Measurements in processes of their own: a clean environment, a peak of memory, an answer.

A worker is `python -m bench.NAME`: one JSON object on stdin, one JSON object as the last line of
stdout. This file imports nothing heavy, because a child's recorded peak begins with its parent's.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 900.0

# OpenBLAS must choose by itself; our own settings come as flags.
_UNSET = (
    "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS",
    "PYTHONDONTWRITEBYTECODE",  # an installed package is compiled
)  # fmt: skip


class BenchError(Exception):
    """A measurement failed: which, and the end of what it said."""


class Unready(BenchError):
    """Nothing can be measured here; the message names the missing thing."""


@dataclass(frozen=True)
class Finished:
    """A child that ended well: what it printed, its peak of memory, its wall and CPU time."""

    stdout: str
    peak_rss_mb: float
    wall_s: float
    cpu_s: float = 0.0

    def json(self) -> Any:
        """The JSON value in the last line of stdout, or in the whole of it."""
        text = self.stdout.strip()
        for candidate in (text.rpartition("\n")[2], text):
            try:
                return json.loads(candidate)
            except ValueError:
                continue
        raise BenchError(f"no JSON at the end of: {text[-400:]!r}")


def clean_environment(environ: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """`environ` without what would change a measurement; no file of the user's is read or kept."""
    kept = {
        name: value
        for name, value in environ.items()
        if name not in _UNSET and not name.startswith("PICOEDGE_")
    }
    homes = dict.fromkeys(("XDG_CONFIG_HOME", "XDG_CACHE_HOME"), str(scratch))
    return {**kept, **homes, "PYTHONPATH": str(ROOT)}


def run(
    command: Sequence[str], *, stdin: str = "", timeout_s: float = TIMEOUT_S,
    inside: Callable[[Sequence[str]], list[str]] = list, home: Path | None = None,
) -> Finished:  # fmt: skip
    """Run one child to its end. Raises BenchError where it fails or takes too long.

    `inside` wraps its command in another that sets limits. `home` is the folder of its measurements
    of the machine; without one it begins from nothing.
    """
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as scratch:
        out, err, given = (Path(scratch, name) for name in ("out", "err", "in"))
        given.write_text(stdin)
        with given.open("rb") as stdin_file, out.open("wb") as stdout, err.open("wb") as stderr:
            began = time.perf_counter()
            child = subprocess.Popen(
                inside(command), stdin=stdin_file, stdout=stdout, stderr=stderr, cwd=ROOT,
                env=clean_environment(os.environ, home or Path(scratch)),
            )  # fmt: skip
            try:
                status, usage = _wait(child, began + timeout_s)
            finally:
                if child.returncode is None:
                    child.kill()
                    child.wait()
            wall_s = time.perf_counter() - began
        if status != 0:
            tail = err.read_text(errors="replace").strip()[-600:]
            raise BenchError(f"{' '.join(command[1:4])} ended with {status}: {tail}")
        text, cpu_s = out.read_text(errors="replace"), usage.ru_utime + usage.ru_stime
        return Finished(text, usage.ru_maxrss / 1024, wall_s, cpu_s)


def _wait(child: subprocess.Popen[bytes], deadline: float) -> tuple[int, resource.struct_rusage]:
    """(exit code, use of resources) of a child, which is killed at the deadline."""
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode, usage
        if time.perf_counter() > deadline:
            raise BenchError(f"{child.args!r} took too long")
        time.sleep(0.01)


def worker(name: str, **request: Any) -> Any:
    """The answer of `python -m bench.NAME` to one request."""
    command = [sys.executable, "-m", f"bench.{name}"]
    return run(command, stdin=json.dumps(request)).json()


def picoedge(*args: str) -> Finished:
    """One `picoedge` command line."""
    return run([sys.executable, "-m", "picoedge", *args])
