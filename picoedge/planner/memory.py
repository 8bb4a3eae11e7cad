"""Divide a memory budget: cache, buffers, resident weights, and a window for streamed ones.

Pure: the board's speeds and what the process already takes are arguments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from picoedge.config import ModelConfig
from picoedge.errors import MemoryBudgetError
from picoedge.kernels.api import kv_cache_bytes
from picoedge.kernels.blocks import BLOCK_COLS
from picoedge.store.shards import Slice, Unit
from picoedge.store.window.plan import (
    RESIDENT_BYTES,
    Rates,
    WindowPlan,
    plan_window,
    smallest_window,
    unit_count,
    widest,
)
from picoedge.units import MB, format_size

BATCHES = (1024, 512, 256, 128, 64, 32, 16)  # tokens a prompt is cut into, each read of the weights
_AMPLE_BATCH = 256  # tokens of a chunk: more of them are computed no faster
_UNIT_SIZES = tuple(1 << n for n in range(20, 27))  # 1 to 64 MB
_MOST_UNITS = 2500  # each costs a few KB of bound kernels
_NUMPY_COPIES = 2  # of a chunk's activations: sums in f32, norms, gates
_NUMPY_SCRATCH = 16 << 20  # bands of weights in f32, by thread, and OpenBLAS's own buffers
_UNIT_BYTES = 5 << 10  # of kernels bound to one unit
_FEW_UNITS = 700  # whose kernels are within what a process grows by anyway
_BLOCK_BYTES = 48  # of 32 quantized activations
DEFAULT_CONTEXT = 4096  # tokens
SMALLEST_DEFAULT_CONTEXT = 512
_TYPICAL_ANSWER = 128  # tokens, after a prompt of this many or a quarter of the context:
_TYPICAL_PROMPT = 256


@dataclass(frozen=True)
class Load:
    """A slice to run: its shards, `runs` of them in order of use, and its context.

    `ffn_shard_cols` is the width of one FFN shard, `head_shard_rows` the height of one of the
    head; `kv_bits` is 32, 16 or 8.
    """

    config: ModelConfig
    part: Slice
    runs: tuple[Unit, ...]
    ffn_shard_cols: int
    n_ctx: int
    kv_bits: int
    head_shard_rows: int = 0
    logit_rows: int = 1  # whose logits are held at once
    numpy: bool = False  # the NumPy backend computes, with temporaries of its own


@dataclass(frozen=True)
class Budget:
    """Memory to plan with, in bytes; `fixed` is taken by the process itself."""

    total: int
    fixed: int  # interpreter, libraries, tokenizer, and what they will still grow by


@dataclass(frozen=True)
class Reading:
    """How streamed units are read ("direct" or "mmap"), and what that takes beside the window."""

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
            "budget_mb": self.budget.total / MB,
            "fixed_mb": self.budget.fixed / MB,
            "kv_cache_mb": self.kv_cache / MB,
            "activations_mb": self.activations / MB,
            "resident_mb": window.resident_bytes / MB,
            "window_mb": window.window_bytes / MB,
            "total_mb": self.total / MB,
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


def plan_memory(load: Load, budget: Budget, readings: Sequence[Reading]) -> MemoryPlan:
    """The plan that answers a typical prompt soonest, by the best of `readings`.

    Raises MemoryBudgetError with the figures.
    """
    cache = cache_bytes(load)

    def plan(batch: int, reading: Reading, size: int) -> MemoryPlan | None:
        activations = activation_bytes(load, size, batch)
        left = budget.total - budget.fixed - cache - activations
        window = plan_window(load.runs, left, reading.rates, size, reserve=reading.reserve)
        if window is None:
            return None
        return MemoryPlan(
            budget, load.n_ctx, load.kv_bits, batch, cache, activations, reading, window
        )

    sizes, least = _sizes(load.runs), min(BATCHES[-1], load.n_ctx)
    tried = [(size, plan(least, reading, size)) for reading in readings for size in sizes]
    best = _best(plan for _, plan in tried)
    if best is None:  # thousands of small units are better than no plan
        rest = [size for size in _UNIT_SIZES if size < sizes[0]]
        tried = [(size, plan(least, reading, size)) for reading in readings for size in rest]
        best = _best(plan for _, plan in tried)
    if best is None:
        raise _too_small(load, budget, min(reading.reserve for reading in readings))
    size = next(size for size, tested in tried if tested is best)
    larger = {min(batch, load.n_ctx) for batch in BATCHES} - {least}
    return _best([best, *(plan(batch, best.reading, size) for batch in larger)]) or best


def _best(plans: Iterable[MemoryPlan | None]) -> MemoryPlan | None:
    return min((plan for plan in plans if plan is not None), key=_preference, default=None)


def _preference(plan: MemoryPlan) -> tuple[float, int, int]:
    """Least for the best plan; where nothing is streamed, chunks of _AMPLE_BATCH are enough."""
    return _typical_s(plan), -min(plan.batch, _AMPLE_BATCH), plan.batch


def _typical_s(plan: MemoryPlan) -> float:
    """Seconds of a typical prompt and answer, but for computing the prompt: all plans need that."""
    prompt = min(max(_TYPICAL_PROMPT, plan.n_ctx // 4), plan.n_ctx // 2)
    passes = math.ceil(prompt / plan.batch)
    forecast = plan.window.forecast
    return passes * forecast.disk_s + _TYPICAL_ANSWER * forecast.s_per_token


def _sizes(runs: Sequence[Unit]) -> list[int]:
    """Sizes of units to try: not so small that there are thousands of units."""
    least = sum(run.nbytes for run in runs) // _MOST_UNITS
    return [size for size in _UNIT_SIZES if size >= least][:4] or [_UNIT_SIZES[-1]]


def cache_bytes(load: Load) -> int:
    """Bytes of a slice's full KV cache, and of the tables of rotary embedding."""
    config, n_ctx = load.config, load.n_ctx
    layer = kv_cache_bytes(n_ctx, len(load.part.attention), config.head_dim, load.kv_bits)
    tables = 2 if config.windowed_layers else 1
    rope = 2 * 4 * n_ctx * (config.head_dim // 2) * tables
    return config.num_hidden_layers * layer + rope


def activation_bytes(load: Load, most: int, batch: int) -> int:
    """Buffers for a chunk of `batch` tokens: the model's, the kernels' own, and bound kernels.

    `most` is the size of a streamed unit: no run of shards is computed together that takes more
    than that, or than a resident unit takes.
    """
    config = load.config
    together = max(most, RESIDENT_BYTES)
    groups, shards = (
        max((widest(run, together) for run in load.runs if run.kind == kind), default=0)
        for kind in ("attention", "ffn")
    )
    hidden, cols = config.hidden_size, shards * load.ffn_shard_cols
    heads = groups * config.heads_per_group * config.head_dim
    floats = hidden + heads + (heads + 2 * groups * config.head_dim) + 2 * cols
    blocks = hidden + 2 * heads + 2 * cols  # runs of a kind may have two widths
    per_token = 4 * floats + 8 * hidden + _BLOCK_BYTES * blocks // BLOCK_COLS
    scores = 4 * 2 * 8 * 2 * load.n_ctx  # 8 rows a thread, of two, allocated twice as large
    columns = config.vocab_size if load.part.owns_head else _own_columns(load)
    logits = 4 * load.logit_rows * columns
    if load.part.owns_head and load.logit_rows > 1:
        logits += 16 * config.vocab_size  # one row in f64, and its exponentials
    rest = scores + logits + _bound_bytes(load, most)
    if load.numpy:
        return _NUMPY_COPIES * batch * per_token + _NUMPY_SCRATCH + rest
    return batch * per_token + rest


def _own_columns(load: Load) -> int:
    """How many logits a slice computes."""
    return len(load.part.head_shards) * load.head_shard_rows


def _bound_bytes(load: Load, most: int) -> int:
    """Bytes of kernels bound to units, where there are thousands."""
    units = sum(unit_count(run, len(run.shards), most) for run in load.runs)
    return _UNIT_BYTES * max(0, units - _FEW_UNITS)


def check_room(load: Load, budget: Budget) -> None:
    """Raise MemoryBudgetError where not even the smallest window fits."""
    if _least(load, 0) + budget.fixed > budget.total:
        raise _too_small(load, budget, 0)


def _least(load: Load, reserve: int) -> int:
    """Bytes of the smallest plan, beside what is fixed."""
    size = _UNIT_SIZES[0]
    activations = activation_bytes(load, size, min(BATCHES[-1], load.n_ctx))
    return cache_bytes(load) + activations + smallest_window(load.runs, size) + reserve


def _too_small(load: Load, budget: Budget, reserve: int) -> MemoryBudgetError:
    cache = cache_bytes(load)
    activations = activation_bytes(load, _UNIT_SIZES[0], min(BATCHES[-1], load.n_ctx))
    least = budget.fixed + _least(load, reserve)
    window = least - budget.fixed - cache - activations
    remedies = ["a smaller --ctx-size"] if cache > budget.fixed // 8 else []
    if load.kv_bits == 16:
        remedies.append("--kv-bits 8")
    return MemoryBudgetError(
        f"{format_size(budget.total)} of memory cannot hold the smallest window: interpreter and "
        f"tokenizer {format_size(budget.fixed)} + context of {load.n_ctx} tokens "
        f"{format_size(cache)} + buffers {format_size(activations)} + window "
        f"{format_size(window)} = {format_size(least)}",
        f"allow more with --memory, or take {', '.join(remedies)}{' or ' if remedies else ''}"
        "a model of fewer bits, or more boards",
    )


def default_context(config: ModelConfig, budget: int, *, kv_bits: int = 16) -> int:
    """Context when none is asked for: at most 4096, the model's limit, a quarter of the memory."""
    n_ctx = min(DEFAULT_CONTEXT, config.max_position_embeddings)
    heads = Slice(range(config.num_key_value_heads), range(0))
    while n_ctx > SMALLEST_DEFAULT_CONTEXT:
        if cache_bytes(Load(config, heads, (), 0, n_ctx, kv_bits)) <= budget // 4:
            break
        n_ctx //= 2
    return n_ctx
