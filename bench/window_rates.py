"""How fast weights stream, beside what `dd` reads from the same files."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from bench import paced
from bench.limits import Limits
from bench.paced import Paced
from bench.report import Measured
from bench.speed import by_turns
from bench.suite import Measure
from bench.window_models import WindowModels

SLICE_LAYERS = 4  # of the 70B shape: 2.1 GB with its head, so that the disk is the clock
SLICE_BUDGET = 200 << 20
TOKENS = 4
READS = {
    "dd buffered 4M": ("4M", False),
    "dd buffered 16M": ("16M", False),
    "dd direct 4M": ("4M", True),
    "dd direct 16M": ("16M", True),
}


def stream_rate(name: str, mb_s: int | None) -> Measure:
    """How to measure streamed bytes a second ÷ the best that dd does, at a pace or at none."""

    def measure(models: WindowModels, rounds: int) -> list[Measured]:
        pack = models.slice_of_70b(SLICE_LAYERS)
        pace = None if mb_s is None else mb_s * 10**6
        files = [*sorted(pack.glob("layer-*.safetensors")), pack / "head.safetensors"]
        taken: dict[str, list[float]] = by_turns(
            {
                "picoedge": lambda: streamed(_run(pack, pace)),
                **{side: _dd(files, pace, *how) for side, how in READS.items()},
            },
            rounds,
        )
        return [against_best(name, taken)]

    return measure


def _run(pack: Path, pace: int | None) -> Paced:
    limit = Limits(SLICE_BUDGET, pace)
    return paced.ours(pack, limit, TOKENS, "--memory", str(SLICE_BUDGET))


def _dd(files: list[Path], pace: int | None, block: str, direct: bool) -> Callable[[], float]:
    return lambda: paced.dd_rate(files, Limits(None, pace), block=block, direct=direct)


def streamed(run: Paced) -> float:
    """Bytes a second that a run streamed while it decoded."""
    return float(run.report["plan"]["streamed_bytes_per_token"] / run.s_per_token)


def against_best(name: str, taken: dict[str, list[float]]) -> Measured:
    """Our median rate ÷ the median of whichever way of reading is fastest."""
    medians = {side: statistics.median(rates) for side, rates in taken.items()}
    best = max((side for side in medians if side != "picoedge"), key=lambda side: medians[side])
    runs = tuple(a / b for a, b in zip(taken["picoedge"], taken[best], strict=True))
    note = f"{medians['picoedge'] / 1e6:.0f} MB/s, {best} {medians[best] / 1e6:.0f}"
    return Measured(name, medians["picoedge"] / medians[best], runs, {"bytes_s": taken}, note)
