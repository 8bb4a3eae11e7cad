"""Divide a memory budget: cache, buffers, resident weights, and a window for streamed ones.

Pure: the board's speeds and what the process already takes are arguments. `MemoryNeeds` estimates
what slices of a model need, for planning over boards.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from picoedge.config import ModelConfig
from picoedge.errors import MemoryBudgetError
from picoedge.kernels.api import kv_cache_bytes
from picoedge.kernels.blocks import BLOCK_COLS
from picoedge.planner.topology import BoardFacts
from picoedge.store.pages import PAGE
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
_ROUNDING = 2 * PAGE  # of a unit that begins and ends within pages
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
    adapter_bytes: int = 0  # of an adapter that each board will be sent, at most


@dataclass(frozen=True)
class Budget:
    """Memory to plan with, in bytes; `fixed` is taken by the process itself."""

    total: int
    fixed: int  # interpreter, libraries, tokenizer, and what they will still grow by


@dataclass(frozen=True)
class Reading:
    """A way to read streamed units ("direct" or "mmap"), and its memory beside the window."""

    io: str
    rates: Rates
    reserve: int = 0


@dataclass(frozen=True)
class MemoryPlan:
    """Use of every byte of a budget."""

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
        if left < 0:  # even a hub without shards, which needs no window, then has no room
            return None
        window = plan_window(load.runs, left, reading.rates, size, reserve=reading.reserve)
        if window is None:
            return None
        return MemoryPlan(
            budget, load.n_ctx, load.kv_bits, batch, cache, activations, reading, window
        )

    least, best = min(BATCHES[-1], load.n_ctx), None
    smallest = sum(run.nbytes for run in load.runs) // _MOST_UNITS
    sizes = [size for size in _UNIT_SIZES if size >= smallest][:4] or [_UNIT_SIZES[-1]]
    rest = [size for size in _UNIT_SIZES if size < sizes[0]]
    for some in (sizes, rest):  # thousands of small units are better than no plan
        if best is None:
            tried = [(size, plan(least, reading, size)) for reading in readings for size in some]
            best = _best(plan for _, plan in tried)
    if best is None:
        raise _too_small(load, budget, min(reading.reserve for reading in readings))
    size = next(size for size, tested in tried if tested is best)
    larger = {min(batch, load.n_ctx) for batch in BATCHES} - {least}
    return _best([best, *(plan(batch, best.reading, size) for batch in larger)]) or best


def _best(plans: Iterable[MemoryPlan | None]) -> MemoryPlan | None:
    return min((plan for plan in plans if plan is not None), key=_preference, default=None)


def _preference(plan: MemoryPlan) -> tuple[float, int, int]:
    """Least for the best plan: seconds of a typical prompt and answer, then sizes of chunks.

    The seconds leave out computing the prompt: all plans need that. Where nothing is streamed,
    chunks of _AMPLE_BATCH are enough.
    """
    prompt = min(max(_TYPICAL_PROMPT, plan.n_ctx // 4), plan.n_ctx // 2)
    passes, forecast = math.ceil(prompt / plan.batch), plan.window.forecast
    seconds = passes * forecast.disk_s + _TYPICAL_ANSWER * forecast.s_per_token
    return seconds, -min(plan.batch, _AMPLE_BATCH), plan.batch


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
    own = len(load.part.head_shards) * load.head_shard_rows
    logits = 4 * load.logit_rows * (config.vocab_size if load.part.owns_head else own)
    if load.part.owns_head and load.logit_rows > 1:
        logits += 16 * config.vocab_size  # one row in f64, and its exponentials
    units = sum(unit_count(run, len(run.shards), most) for run in load.runs)
    bound = _UNIT_BYTES * max(0, units - _FEW_UNITS)  # matters where there are thousands
    rest = scores + logits + bound + load.adapter_bytes
    if load.numpy:
        return _NUMPY_COPIES * batch * per_token + _NUMPY_SCRATCH + rest
    return batch * per_token + rest


def check_room(load: Load, budget: Budget) -> None:
    """Raise MemoryBudgetError where not even the smallest window fits."""
    if budget.fixed + sum(_least(load)) > budget.total:
        raise _too_small(load, budget, 0)


def _least(load: Load) -> tuple[int, int, int]:
    """Bytes of the cache, the buffers and the window of the smallest plan."""
    activations = activation_bytes(load, _UNIT_SIZES[0], min(BATCHES[-1], load.n_ctx))
    return cache_bytes(load), activations, smallest_window(load.runs, _UNIT_SIZES[0])


def _too_small(load: Load, budget: Budget, reserve: int) -> MemoryBudgetError:
    cache, activations, window = _least(load)
    window += reserve
    least = budget.fixed + cache + activations + window
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


# -- boards of a cluster: what slices need, and the plan of each ---------------------------------


class Counts(NamedTuple):
    """Shards of each kind, in a layer or in the head: a model's, or a board's."""

    attention: int
    ffn: int
    head: int = 0


def counts_of(part: Slice) -> Counts:
    """The counts of a slice's shards."""
    return Counts(len(part.attention), len(part.ffn), len(part.head_shards))


def slice_load(load: Load, part: Slice, *, numpy: bool = False) -> Load:
    """The load of one slice, from the whole model's."""
    runs = ((run, part.of(run.kind)) for run in load.runs)
    cut = tuple(run.part(own.start, own.stop) for run, own in runs if own)
    return dataclasses.replace(load, part=part, runs=cut, numpy=load.numpy or numpy)


def plan_slice(load: Load, part: Slice, board: BoardFacts) -> MemoryPlan:
    """The plan that a board itself will make for a slice. Raises MemoryBudgetError."""
    rates = Rates(board.disk_bytes_per_s, board.compute_bytes_per_s, board.unit_s)
    reading = Reading(board.read_io, rates, board.read_ahead_bytes)
    budget = Budget(board.budget_bytes, board.fixed_bytes)
    return plan_memory(slice_load(load, part, numpy=board.numpy), budget, [reading])


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of a board's memory that a slice needs."""

    beside: int  # cache and buffers
    weights: int  # all resident, at most
    window: int  # the smallest it can be streamed through

    def streamed(self, room: int, reserve: int) -> float:
        """Bytes streamed for a token with `room` bytes of memory; inf: too few to run the slice.

        `reserve` is what reading needs beside its window.
        """
        free = room - self.beside
        if self.weights <= free:
            return 0.0
        kept = free - self.window - reserve
        return math.inf if kept < 0 else float(self.weights - min(kept, self.weights))


def need_of(load: Load) -> MemoryNeed:
    """The memory a slice needs, by the same rules as `plan_memory`."""
    most = max(_UNIT_SIZES[0], sum(run.nbytes for run in load.runs) // _MOST_UNITS)
    activations = activation_bytes(load, most, min(BATCHES[-1], load.n_ctx))
    weights = sum(
        run.nbytes + unit_count(run, len(run.shards), RESIDENT_BYTES) * _ROUNDING
        for run in load.runs
    )
    # Of whole width, though fewer shards may make narrower units: more of them never need less.
    unit = max((widest(run, most) * run.shard_bytes for run in load.runs), default=0)
    return MemoryNeed(cache_bytes(load) + activations, weights, 2 * (unit + _ROUNDING))


class MemoryNeeds:
    """The memory needs of slices of one model by their counts of shards, each computed once.

    `counts` are the whole model's; `shard_bytes`, by kind, are of one shard in every layer.
    """

    def __init__(self, load: Load) -> None:
        self.load, self.counts = load, counts_of(load.part)
        self.shard_bytes: dict[str, int] = {"attention": 0, "ffn": 0, "head": 0}
        for run in load.runs:
            self.shard_bytes[run.kind] += run.shard_bytes
        self._known: dict[tuple[Counts, bool, bool], MemoryNeed] = {}

    def of(self, counts: Counts, *, hub: bool, numpy: bool) -> MemoryNeed:
        """The need of a slice with these counts; a worker has at least one shard."""
        key = counts, hub, numpy
        if key not in self._known:
            self._known[key] = self._work_out(counts, hub=hub, numpy=numpy)
        return self._known[key]

    def _work_out(self, counts: Counts, *, hub: bool, numpy: bool) -> MemoryNeed:
        """Layers and head apart: all combinations of both would be far more to compute."""
        layers, head = counts._replace(head=0), Counts(0, 0, counts.head)
        if counts in (layers, head):
            runs = range(counts.attention), range(counts.ffn), range(counts.head)
            return need_of(slice_load(self.load, Slice(*runs, owns_head=hub), numpy=numpy))
        one, other, nothing = (
            self.of(each, hub=hub, numpy=numpy) for each in (layers, head, Counts(0, 0, 0))
        )
        return MemoryNeed(
            one.beside + other.beside - nothing.beside,
            one.weights + other.weights,
            max(one.window, other.window),
        )
