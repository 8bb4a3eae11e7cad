"""Sampling: logits to a token, by a few small functions that each narrow the candidates.

The order is llama.cpp's: penalty, top-k, top-p, min-p, temperature. A vocabulary of 262,144
costs a fraction of a millisecond: all but the first step work on a few dozen candidates.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from picoedge.config import SamplingOptions
from picoedge.errors import ModelError
from picoedge.kernels.arrays import F32, F64, Indices

GREEDY_BELOW = 1e-4  # temperatures under it are greedy: 1 / temperature must not overflow
_GROUPS = 1024  # groups of logits whose maxima bound the k-th largest; ids of a span in `draw`


@dataclass(frozen=True, eq=False)
class Candidates:
    """Tokens that remain possible, most probable first (ties: lower id first).

    ids [c]; weights f64 [c], probabilities relative to the most probable token; `total`, the sum of
    weights of which the next step's `top_p` is a fraction.
    """

    ids: Indices
    weights: F64
    total: float


class Sampler:
    """Picks tokens by `options`; the same seed gives the same sequence of choices."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options
        self._rng = random.Random(options.seed)  # NumPy's would load 4 MB of code

    def pick(self, logits: F32, history: Sequence[int]) -> int:
        """The next token. logits f32 [vocab]; history: ids of the prompt and the answer so far.

        A temperature below 1e-4 is greedy, like 0. Raises ModelError if the logits are not finite.
        """
        options = self.options
        if options.repeat_penalty != 1.0 and options.repeat_last_n:
            logits = penalized(logits, history[-options.repeat_last_n :], options.repeat_penalty)
        likeliest = greedy(logits)
        if options.temperature < GREEDY_BELOW:
            return likeliest
        uniform = self._rng.random()
        peak = float(logits[likeliest])
        if not 0 < options.top_k < logits.size and options.top_p >= 1 and options.min_p <= 0:
            return draw_from_all(logits, peak, options.temperature, uniform)
        return draw(narrowed(logits, peak, options), options.temperature, uniform)


def greedy(logits: F32) -> int:
    """The most probable token. Raises ModelError if its logit is not finite."""
    token = int(logits.argmax())  # NaN counts as largest, so checking the winner checks all
    if not math.isfinite(logits[token]):
        raise ModelError(
            f"the model's output for token {token} is {logits[token]}",
            "its weights may be damaged: picoedge verify checks them",
        )
    return token


def penalized(logits: F32, recent: Sequence[int], penalty: float) -> F32:
    """A copy of logits in which tokens of `recent` are less probable (Keskar et al. 2019, 4.1)."""
    ids = np.unique(np.asarray(recent, dtype=np.intp))
    ids = ids[(ids >= 0) & (ids < logits.size)]
    out: F32 = logits.copy()
    seen = out[ids]
    out[ids] = np.where(seen > 0, seen / penalty, seen * penalty)
    return out


def narrowed(logits: F32, peak: float, options: SamplingOptions) -> Candidates:
    """The candidates after top-k, top-p and min-p. logits f32 [vocab], whose largest is `peak`."""
    if 0 < options.top_k < logits.size:
        candidates = keep_top_k(logits, peak, options.top_k)
    else:
        candidates = keep_probable(logits, peak, options.top_p, options.min_p)
    return keep_min_p(keep_top_p(candidates, options.top_p), options.min_p)


def keep_top_k(logits: F32, peak: float, k: int) -> Candidates:
    """The k most probable tokens."""
    return _candidates(logits, peak, np.flatnonzero(logits >= _bound_of_top(logits, k)), k)


def _bound_of_top(logits: F32, k: int) -> float:
    """A value that at least k logits reach, and seldom many more.

    The k-th largest of the maxima of groups: 25 times faster than partitioning the whole.
    """
    n = logits.size
    if n < 4 * _GROUPS or k > _GROUPS // 2:
        return float(np.partition(logits, n - k)[n - k])
    maxima = logits[: n - n % _GROUPS].reshape(-1, _GROUPS).max(axis=0)  # [1024]
    return float(np.partition(maxima, _GROUPS - k)[_GROUPS - k])


def keep_probable(logits: F32, peak: float, top_p: float, min_p: float) -> Candidates:
    """All tokens that `min_p` could keep, or enough of them to reach `top_p` of all tokens."""
    total = float(np.exp(logits - np.float32(peak)).sum(dtype=np.float64))
    depths = (-math.log(min_p),) if min_p > 0 else (4.0, 8.0, 16.0, math.inf)
    for depth in depths:
        floor = peak - depth - 1e-3  # f32 may round either way: leave room
        found = _candidates(logits, peak, np.flatnonzero(logits >= floor))
        if found.total > top_p * total:
            break
    return Candidates(found.ids, found.weights, total)


def _candidates(logits: F32, peak: float, ids: Indices, k: int | None = None) -> Candidates:
    ids = ids[np.argsort(-logits[ids], kind="stable")[:k]]
    weights = np.exp(logits[ids].astype(np.float64) - peak)
    return Candidates(ids, weights, float(weights.sum()))


def keep_top_p(candidates: Candidates, top_p: float) -> Candidates:
    """Nucleus sampling: the fewest candidates that reach `top_p` of the total (Holtzman 2020)."""
    if top_p >= 1:
        return candidates
    covered = np.cumsum(candidates.weights)
    count = int(np.searchsorted(covered, top_p * candidates.total)) + 1
    return _first(candidates, count)


def keep_min_p(candidates: Candidates, min_p: float) -> Candidates:
    """Candidates at least `min_p` times as probable as the most probable one."""
    return _first(candidates, int(np.count_nonzero(candidates.weights >= min_p)))


def _first(candidates: Candidates, count: int) -> Candidates:
    weights = candidates.weights[:count]
    return Candidates(candidates.ids[:count], weights, float(weights.sum()))


def draw(candidates: Candidates, temperature: float, uniform: float) -> int:
    """One candidate by its probability at `temperature`; uniform in [0, 1)."""
    covered = np.cumsum(candidates.weights ** (1 / temperature))
    return int(candidates.ids[_index(covered, uniform)])


def draw_from_all(logits: F32, peak: float, temperature: float, uniform: float) -> int:
    """`draw` from the whole vocabulary: first a span of 1024 ids, then a token in it."""
    weights = np.exp((logits - np.float32(peak)) / np.float32(temperature))  # [vocab]
    starts = np.arange(0, weights.size, _GROUPS)
    covered = np.cumsum(np.add.reduceat(weights, starts), dtype=np.float64)
    span = _index(covered, uniform)
    before = covered[span - 1] if span else 0.0
    inside = np.cumsum(weights[starts[span] :][:_GROUPS], dtype=np.float64)
    left = (uniform * covered[-1] - before) / inside[-1]
    return int(starts[span]) + _index(inside, min(max(left, 0.0), 1.0))


def _index(covered: F64, uniform: float) -> int:
    """The index at which running sums `covered` reach `uniform` times the last of them."""
    index = int(np.searchsorted(covered, uniform * covered[-1], side="right"))
    return min(index, covered.size - 1)
