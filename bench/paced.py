"""One process under limits, ours or a peer's: seconds and bytes a token, and the group's peak."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import children, limits
from bench.children import BenchError
from bench.limits import Limits
from bench.random_models import Shape

N_CTX, THREADS = 256, 2
PROMPT = "a lamp in the tower by the sea"  # 10 tokens of the random models' vocabulary, and one
LONG_PROMPT = " ".join([PROMPT] * 23)  # 231: nearly all of the context
TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Paced:
    """How a run went. `bytes_read` and `peak_bytes` are the controllers' of the whole process."""

    s_per_token: float
    bytes_read: int
    peak_bytes: int
    wall_s: float
    bytes_per_token: float | None = None  # where the process looked at the counter on its way
    report: dict[str, Any] = field(default_factory=dict)

    def raw(self) -> dict[str, Any]:
        """Plain values for the raw figures."""
        return dataclasses.asdict(self)


def _caged(
    folder: Path, limit: Limits, command: Sequence[str], request: dict[str, Any] | None = None,
    home: Path | None = None,
) -> tuple[Any, int, int, float]:  # fmt: skip
    """(the answer, bytes read, peak bytes, seconds) of one child; a killed one is an error."""
    with limits.caged(folder, limit) as cage:
        stdin = ""
        if request is not None:
            stdin = json.dumps({**request, "counter": dataclasses.asdict(cage.counter)})
        try:
            done = children.run(
                command, stdin=stdin, timeout_s=TIMEOUT_S, inside=cage.command, home=home
            )
        except BenchError as error:
            killed = "killed for want of memory: " if cage.was_killed() else ""
            raise BenchError(f"{killed}{error}") from error
        return done.json(), cage.counter.read(), cage.peak_bytes(), done.wall_s


def ours(
    pack: Path, limit: Limits, n: int, *extra: str, prompt: str = PROMPT, home: Path | None = None
) -> Paced:  # fmt: skip
    """`picoedge generate`: a prompt, a short one unless given, and n tokens."""
    command = [
        sys.executable, "-m", "picoedge", "generate", str(pack), "--raw", "-p", prompt,
        "-n", str(n), "--ignore-eos", "--temperature", "0", "-c", str(N_CTX),
        "-t", str(THREADS), "--json", *extra,
    ]  # fmt: skip
    report, bytes_read, peak, wall_s = _caged(pack, limit, command, home=home)
    if len(report["tokens"]) != n:
        raise BenchError(f"{len(report['tokens'])} tokens, not {n}")
    return Paced(report["s_per_token"], bytes_read, peak, wall_s, None, report)


def llama(gguf: Path, limit: Limits, n: int) -> Paced:
    """llama.cpp with mmap, its own choice of attention and the smallest buffers."""
    request = {"path": str(gguf), "n_ctx": N_CTX, "threads": THREADS, "n": n}
    return _peer("peers_llama_paced", gguf.parent, limit, request)


def accelerate(folder: Path, shape: Shape, limit: Limits, n: int) -> Paced:
    """Transformers with Accelerate's disk offload, in f32."""
    request = {
        "folder": str(folder), "shape": dataclasses.asdict(shape), "threads": THREADS, "n": n
    }  # fmt: skip
    return _peer("peers_accelerate", folder, limit, request)


def _peer(module: str, folder: Path, limit: Limits, request: dict[str, Any]) -> Paced:
    command = [sys.executable, "-m", f"bench.{module}"]
    answer, bytes_read, peak, wall_s = _caged(folder, limit, command, request)
    seconds, per_token = answer["seconds"], statistics.mean(answer["bytes"])
    return Paced(statistics.median(seconds), bytes_read, peak, wall_s, per_token, answer)


def worker(module: str, folder: Path, limit: Limits, request: dict[str, Any]) -> Paced:
    """A worker of ours, which answers with `s_per_token` and whatever else it knows."""
    command = [sys.executable, "-m", f"bench.{module}"]
    answer, bytes_read, peak, wall_s = _caged(folder, limit, command, request)
    return Paced(answer["s_per_token"], bytes_read, peak, wall_s, None, answer)


# The clock runs beside dd alone: neither the shell's start nor the wait for its end is timed.
_DD = """flags=$1; shift
began=$(date +%s%N)
for f; do dd if="$f" of=/dev/null $flags status=none || exit 1; done
echo "$began $(date +%s%N)"
"""


def dd_rate(files: Sequence[Path], limit: Limits, *, block: str, direct: bool) -> float:
    """Bytes a second that `dd` reads the files at, one after another, caches dropped."""
    flags = f"bs={block} iflag=direct" if direct else f"bs={block}"
    with limits.caged(files[0].parent, limit) as cage:
        command = ["/bin/sh", "-c", _DD, "dd", flags, *map(str, files)]
        done = children.run(command, inside=cage.command)
    began, ended = map(int, done.stdout.split())
    return sum(file.stat().st_size for file in files) * 1e9 / (ended - began)
