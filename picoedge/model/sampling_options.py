"""How a next token is chosen: the figures alone, so that `--help` need not import NumPy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from picoedge.errors import UsageError


@dataclass(frozen=True)
class SamplingOptions:
    """What a sampler does, in the order it does it. Raises UsageError for values out of range.

    The defaults are those people know from llama.cpp, a little calmer (its temperature is 0.8):
    small models wander. `repeat_penalty` is off, so that `temperature=0` is plain greedy.
    """

    repeat_penalty: float = 1.0  # logits of recent tokens are divided by it (1: off)
    repeat_last_n: int = 64  # how many tokens are recent
    top_k: int = 40  # keep the k likeliest (0: all)
    top_p: float = 0.95  # keep the likeliest that together have this probability (1: all)
    min_p: float = 0.05  # keep those at least this share of the likeliest (0: all)
    temperature: float = 0.7  # 0 is greedy
    seed: int | None = None  # None: different each time

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0, 100.0)
        _check("top_k", self.top_k, 0, 2**31)
        _check("top_p", self.top_p, 0.0, 1.0)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("repeat_penalty", self.repeat_penalty, 0.01, 100.0)
        _check("repeat_last_n", self.repeat_last_n, 0, 2**31)
        if self.seed is not None:
            _check("seed", self.seed, 0, 2**64)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise UsageError(f"{name} is {value:g}", f"it must be from {low:g} to {high:g}")
