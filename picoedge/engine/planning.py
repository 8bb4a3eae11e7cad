"""A memory budget, divided: what a model takes beside its weights, and how these are then held.

Pure: what the board can do and what the process takes already come in as arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from picoedge.config import ModelConfig
from picoedge.errors import MemoryBudgetError
from picoedge.kernels.blocks import BLOCK_COLS
from picoedge.kernels.cache_size import kv_cache_bytes
from picoedge.store.slices import Slice
from picoedge.store.units import Unit
from picoedge.store.window_plan import Rates, WindowPlan, plan_window, span_bytes
from picoedge.units import format_size

BATCHES = (256, 128, 64, 32, 16)  # tokens a prompt is cut into, each read of the weights
_UNIT_SIZES = tuple(1 << n for n in range(20, 27))  # 1 to 64 MB
_MOST_UNITS = 2500  # each costs a few KB of bound kernels
_BLOCK_BYTES = 48  # of 32 quantized activations
_TYPICAL_ANSWER = 64  # tokens; with a typical prompt of ...
_TYPICAL_PROMPT = 256

Cut = Callable[[int], tuple[Unit, ...]]


@dataclass(frozen=True)
class Budget:
    """What there is to plan with, in bytes. `fixed` is taken whatever the plan says."""

    total: int
    fixed: int  # interpreter, libraries, tokenizer, and what they will still grow by


@dataclass(frozen=True)
class Reading:
    """How streamed units are read: "direct" or "mmap", and what that takes beside the window."""

    io: str
    rates: Rates
    reserve: int = 0


@dataclass(frozen=True)
class MemoryPlan:
    """Where every byte of a budget goes."""

    budget: Budget
    n_ctx: int
    kv_bits: int
    batch: int
    kv_cache: int
    activations: int
    reading: Reading
    window: WindowPlan

    @property
    def total(self) -> int:
        """Bytes taken when the context is full; at most the budget."""
        held = self.window.resident_bytes + self.window.window_bytes
        if self.window.streamed:
            held += self.reading.reserve
        return self.budget.fixed + self.kv_cache + self.activations + held

    def to_json(self) -> dict[str, Any]:
        """Plain values, sizes in MB (2 ** 20 bytes)."""
        window, forecast = self.window, self.window.forecast
        return {
            "budget_mb": self.budget.total / (1 << 20),
            "fixed_mb": self.budget.fixed / (1 << 20),
            "kv_cache_mb": self.kv_cache / (1 << 20),
            "activations_mb": self.activations / (1 << 20),
            "resident_mb": window.resident_bytes / (1 << 20),
            "window_mb": window.window_bytes / (1 << 20),
            "total_mb": self.total / (1 << 20),
            "n_ctx": self.n_ctx,
            "kv_bits": self.kv_bits,
            "batch": self.batch,
            "units": len(window.units),
            "streamed_units": len(window.streamed),
            "window_depth": window.ring.depth,
            "streamed_bytes_per_token": window.streamed_bytes,
            "touched_bytes_per_token": window.touched_bytes,
            "predicted_s_per_token": forecast.s_per_token,
            "predicted_disk_s": forecast.disk_s,
            "predicted_compute_s": forecast.compute_s,
            "clock": forecast.clock,
            "window_io": self.reading.io,
        }


def plan_memory(
    config: ModelConfig,
    part: Slice,
    cut: Cut,
    budget: Budget,
    readings: tuple[Reading, ...],
    *,
    n_ctx: int,
    kv_bits: int,
) -> MemoryPlan:
    """The plan that answers a typical prompt soonest. Raises MemoryBudgetError with the figures.

    `cut` gives the units for a size of unit. Of the ways of reading that are given, the better is
    taken. `kv_bits` is of the cache: 32, 16 or 8.
    """
    cache = cache_bytes(config, part, n_ctx, kv_bits)

    def plan(batch: int, reading: Reading, size: int) -> MemoryPlan | None:
        units = cut(size)
        activations = activation_bytes(config, units, batch, n_ctx)
        left = budget.total - budget.fixed - cache - activations
        window = plan_window(units, left, reading.rates, reserve=reading.reserve)
        if window is None:
            return None
        return MemoryPlan(budget, n_ctx, kv_bits, batch, cache, activations, reading, window)

    sizes, least = _sizes(cut), min(BATCHES[-1], n_ctx)
    tried = [plan(least, reading, size) for reading in readings for size in sizes]
    best = _best(tried)
    if best is None:
        raise _too_small(config, part, cut(sizes[0]), budget, readings, n_ctx, kv_bits)
    larger = {min(batch, n_ctx) for batch in BATCHES} - {least}
    size = max(span_bytes(unit) for unit in best.window.units)
    return _best([best, *(plan(batch, best.reading, size) for batch in larger)]) or best


def _best(plans: Iterable[MemoryPlan | None]) -> MemoryPlan | None:
    return min((plan for plan in plans if plan is not None), key=_typical_s, default=None)


def _typical_s(plan: MemoryPlan) -> float:
    """Seconds of a typical prompt and answer, but for computing the prompt: that is in any plan."""
    prompt = min(_TYPICAL_PROMPT, plan.n_ctx // 2)
    passes = math.ceil(prompt / plan.batch)
    forecast = plan.window.forecast
    return passes * forecast.disk_s + _TYPICAL_ANSWER * forecast.s_per_token


def _sizes(cut: Cut) -> tuple[int, ...]:
    """Sizes of units worth trying: not so small that there are thousands, one of each cut."""
    sizes: list[int] = []
    counts: set[int] = set()
    for size in _UNIT_SIZES:
        count = len(cut(size))
        if count not in counts and (count <= _MOST_UNITS or size == _UNIT_SIZES[-1]):
            counts.add(count)
            sizes.append(size)
    return tuple(sizes[:4])


def cache_bytes(config: ModelConfig, part: Slice, n_ctx: int, kv_bits: int) -> int:
    """The full cache of keys and values of a slice, and the tables of rotations."""
    layer = kv_cache_bytes(n_ctx, len(part.attention), config.head_dim, kv_bits)
    tables = 2 if config.windowed_layers else 1
    rope = 2 * 4 * n_ctx * (config.head_dim // 2) * tables
    return config.num_hidden_layers * layer + rope


def activation_bytes(
    config: ModelConfig, units: tuple[Unit, ...], batch: int, n_ctx: int
) -> int:
    """Buffers for a chunk of `batch` tokens: the model's, and the kernels' quantized copies."""
    hidden, width = config.hidden_size, config.head_dim
    groups = max((len(unit.shards) for unit in units if unit.kind == "attention"), default=0)
    ffn = max((len(unit.shards) for unit in units if unit.kind == "ffn"), default=0)
    shards = sum(len(unit.shards) for unit in units if unit.kind == "ffn" and unit.layer == 0)
    cols = ffn * (config.intermediate_size // shards) if shards else 0
    heads = groups * config.heads_per_group * width
    floats = hidden + heads + (heads + 2 * groups * width) + 2 * cols
    blocks = hidden + 2 * heads + 2 * cols  # runs of a kind may have two widths
    per_token = 4 * floats + 8 * hidden + _BLOCK_BYTES * blocks // BLOCK_COLS
    scores = 4 * 2 * 8 * 2 * n_ctx  # per thread 8 rows, allocated twice as large: two threads
    return batch * per_token + scores + 4 * config.vocab_size


def _too_small(
    config: ModelConfig,
    part: Slice,
    units: tuple[Unit, ...],
    budget: Budget,
    readings: tuple[Reading, ...],
    n_ctx: int,
    kv_bits: int,
) -> MemoryBudgetError:
    cache = cache_bytes(config, part, n_ctx, kv_bits)
    activations = activation_bytes(config, units, min(BATCHES[-1], n_ctx), n_ctx)
    window = 2 * max(map(span_bytes, units)) + min(reading.reserve for reading in readings)
    least = budget.fixed + cache + activations + window
    remedies = ["a smaller --ctx-size"] if cache > budget.fixed // 8 else []
    if kv_bits > 8:
        remedies.append("--kv-bits 8")
    return MemoryBudgetError(
        f"{format_size(budget.total)} of memory cannot hold the smallest window: interpreter and "
        f"tokenizer {format_size(budget.fixed)} + context of {n_ctx} tokens {format_size(cache)} + "
        f"buffers {format_size(activations)} + window {format_size(window)} = "
        f"{format_size(least)}",
        f"allow more with --memory, or take {', '.join(remedies)}{' or ' if remedies else ''}"
        "a model of fewer bits, or more boards",
    )
