"""Seconds a token under real limits: ours and a peer's, by turns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench import paced
from bench.children import BenchError
from bench.limits import Limits
from bench.paced import Paced
from bench.random_models import TINYLLAMA
from bench.report import Measured
from bench.speed import by_turns
from bench.suite import Measure
from bench.window_models import WindowModels

MB = 10**6  # limits and rates of disks are decimal
TOKENS = 8
ACCELERATE_TOKENS, ACCELERATE_PACE, OUR_LIMIT = 3, 500 * MB, 400 * MB
ACCELERATE_LIMITS = range(700 * MB, 2600 * MB, 100 * MB)


def against_llama(name: str, share: float, mb_s: int) -> Measure:
    """How to measure a row: the limit a share of the GGUF's tensor bytes, the disk so fast.

    Of one run, our s/token is the mean over its tokens (what `generate` reports) and theirs the
    median, which forgives them a slow token; between runs, medians are compared.
    """

    def measure(models: WindowModels, rounds: int) -> list[Measured]:
        limit = Limits(int(share * models.tensor_bytes), mb_s * MB)
        gguf = models.gguf()
        taken = by_turns(
            {
                "picoedge": lambda: under(models, limit),
                "llama.cpp": lambda: paced.llama(gguf, limit, TOKENS),
            },
            rounds,
        )
        return [ratio(name, taken["picoedge"], taken["llama.cpp"], "llama.cpp")]

    return measure


def under(models: WindowModels, limit: Limits) -> Paced:
    """Our run on the 1.1B shape with the whole limit for a budget; remembered by its limit."""
    run = paced.ours(models.pack(), limit, TOKENS, "--memory", str(limit.memory_bytes))
    models.runs.setdefault(limit, []).append(run)
    return run


def ratio(name: str, ours: Sequence[Paced], theirs: Sequence[Paced], peer: str) -> Measured:
    """Their median seconds a token ÷ ours."""
    mine, other = ([run.s_per_token for run in runs] for runs in (ours, theirs))
    value = statistics.median(other) / statistics.median(mine)
    runs = tuple(b / a for a, b in zip(mine, other, strict=True))
    read = statistics.median(run.bytes_per_token or 0 for run in theirs) / MB
    note = (
        f"{statistics.median(mine):.3f} s/token, {peer} {statistics.median(other):.3f} "
        f"(and {read:.0f} MB read a token)"
    )
    raw = {"picoedge": [r.raw() for r in ours], peer: [r.raw() for r in theirs]}
    return Measured(name, value, runs, raw, note)


def against_accelerate(models: WindowModels, rounds: int) -> list[Measured]:
    """Their s/token at the smallest limit they survive, every time, ÷ ours under 400 MB."""
    for nbytes in ACCELERATE_LIMITS:
        try:
            return [_against_accelerate_at(nbytes, models, rounds)]
        except BenchError as error:
            last = error
    raise BenchError(f"Accelerate survives no limit below {ACCELERATE_LIMITS[-1]}: {last}")


def _against_accelerate_at(nbytes: int, models: WindowModels, rounds: int) -> Measured:
    folder = models.offload()
    theirs, ours = Limits(nbytes, ACCELERATE_PACE), Limits(OUR_LIMIT, ACCELERATE_PACE)
    first = paced.accelerate(folder, TINYLLAMA, theirs, 2)  # soon killed, where it is too little
    taken = by_turns(
        {
            "picoedge": lambda: under(models, ours),
            "Accelerate": lambda: paced.accelerate(folder, TINYLLAMA, theirs, ACCELERATE_TOKENS),
        },
        max(1, rounds // 2),
    )
    row = ratio("accelerate", taken["picoedge"], taken["Accelerate"], "Accelerate")
    raw = {**row.raw, "limit_bytes": nbytes, "at_that_limit_first": first.raw()}
    note = f"{row.note}; its smallest limit {nbytes / MB:.0f} MB"
    return Measured(row.name, row.value, row.runs, raw, note)
