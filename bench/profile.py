"""`python -m bench profile MODEL`: seconds per kernel operation, and Python's share.

MODEL is a .pico folder. Prefill of 256 tokens, and a decode step after them: the kernels are
handed to the model inside a shell that times each bound operation; the rest of a step is Python
between operations. The cost of the shell itself is subtracted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from picoedge.kernels.api import (
    Attend,
    BoundAttend,
    BoundProduct,
    Kernels,
    LowRank,
    Project,
    ProjectSum,
)
from picoedge.kernels.loader import load_kernels
from picoedge.model.transformer import Transformer
from picoedge.store.pack.reader import Pack

STEPS, PROMPT, N_CTX = 32, 256, 1024
PROJECTIONS = {3: "project_qkv", 2: "project_gate_up", 1: "project_head"}  # by their matrices

Spent = defaultdict[str, float]  # operation -> seconds


class Timed:
    """A bound operation that adds what it takes to `spent`."""

    def __init__(self, name: str, operation: Callable[..., None], spent: Spent) -> None:
        self._name, self._operation, self._spent = name, operation, spent

    def _run(self, *args: int) -> None:
        began = time.perf_counter()
        self._operation(*args)
        self._spent[self._name] += time.perf_counter() - began


class TimedProduct(Timed):
    """`api.BoundProduct`, timed."""

    def __call__(self, n: int, first: int = 0) -> None:
        """The operation itself."""
        self._run(n, first)


class TimedAttend(Timed):
    """`api.BoundAttend`, timed."""

    def __call__(self, n: int, position: int) -> None:
        """The operation itself."""
        self._run(n, position)


class TimedKernels:
    """Kernels whose every bound operation is timed; the seconds are in `spent`."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self.name, self.threads = kernels.name, kernels.threads
        self.spent: Spent = defaultdict(float)
        self.bound = 0  # operations that time themselves

    def project(self, op: Project) -> BoundProduct:
        """As the kernels do, timed."""
        self.bound += 1
        name = PROJECTIONS[len(op.weights)]
        return TimedProduct(name, self._kernels.project(op), self.spent)

    def attend(self, op: Attend) -> BoundAttend:
        """As the kernels do, timed."""
        self.bound += 1
        return TimedAttend("attend", self._kernels.attend(op), self.spent)

    def project_sum(self, op: ProjectSum) -> BoundProduct:
        """As the kernels do, timed."""
        self.bound += 1
        name = "project_down" if op.activation else "project_attention"
        return TimedProduct(name, self._kernels.project_sum(op), self.spent)

    def low_rank(self, op: LowRank) -> BoundProduct:
        """As the kernels do, timed."""
        self.bound += 1
        return TimedProduct("adapter", self._kernels.low_rank(op), self.spent)

    def close(self) -> None:
        """As the kernels do."""
        self._kernels.close()


def clock_cost_s() -> float:
    """What one timed operation adds to a step: two clock calls and a dictionary's addition."""
    nothing = TimedProduct("nothing", lambda n, first: None, defaultdict(float))
    began = time.perf_counter()
    for _ in range(10_000):
        nothing(1)
    return (time.perf_counter() - began) / 10_000


def one_run(
    model: Transformer, spent: Spent, tokens: Sequence[int], position: int
) -> tuple[float, dict[str, float]]:
    """(seconds, seconds per operation) of one forward."""
    spent.clear()
    began = time.perf_counter()
    model.forward(tokens, position)
    return time.perf_counter() - began, dict(spent)


def profile(pack: Path, kernels: TimedKernels) -> dict[str, dict[str, float]]:
    """Milliseconds per operation of a prefill, and of a decode step after it."""
    model = Transformer(Pack.open(pack), kernels, N_CTX)
    shell_s = clock_cost_s() * kernels.bound
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, PROMPT).tolist()
    prefill = [one_run(model, kernels.spent, tokens, 0) for _ in range(4)][1:]
    decode = [
        one_run(model, kernels.spent, [token], PROMPT + i) for i, token in enumerate(tokens[:STEPS])
    ]
    return {
        f"prefill of {PROMPT} tokens": breakdown(prefill, shell_s),
        f"decode step at {PROMPT}": breakdown(decode, shell_s),
    }


def breakdown(runs: Sequence[tuple[float, dict[str, float]]], shell_s: float) -> dict[str, float]:
    """Median milliseconds per operation, of the Python between them, and of the whole."""
    names = runs[0][1].keys()
    out = {name: 1e3 * statistics.median(spent[name] for _, spent in runs) for name in names}
    between = [total - sum(spent.values()) - shell_s for total, spent in runs]
    out["python between"] = 1e3 * max(0.0, statistics.median(between))
    out["whole"] = 1e3 * (statistics.median(total for total, _ in runs) - shell_s)
    return out


def table(title: str, times: dict[str, float]) -> str:
    """Markdown: an operation a line, with its share of the whole."""
    lines = [f"| {title} | ms | share |", "|---|---:|---:|"]
    for name, value in times.items():
        lines.append(f"| {name} | {value:.3f} | {value / times['whole']:.1%} |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m bench profile", description=__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL", help="a .pico folder")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--kernels", help="numpy or native")
    options = parser.parse_args(argv)
    kernels = TimedKernels(load_kernels(options.kernels, options.threads))
    try:
        print(f"{options.model}: {kernels.name}, {options.threads} threads\n")
        for title, times in profile(options.model, kernels).items():
            print(table(title, times), end="\n\n")
    finally:
        kernels.close()
    return 0
