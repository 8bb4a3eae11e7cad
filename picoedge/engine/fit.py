"""Whether a model fits this board whole, and if not, its plan: the board's side of planning."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from picoedge.errors import StorageError, UsageError
from picoedge.host import memory
from picoedge.host.disk_speed import StorageSpeed, storage_speed
from picoedge.host.kernel_benchmark import MATRIX_BYTES, cached_compute, warm_up
from picoedge.host.process import rss_bytes
from picoedge.host.reclaim import REFAULT_BYTES, release_pages
from picoedge.planner.memory import (
    Budget,
    Load,
    MemoryPlan,
    Reading,
    activation_bytes,
    cache_bytes,
    check_room,
    default_context,
    plan_memory,
)
from picoedge.registry.paths import shelf_folder
from picoedge.store.shards import Slice
from picoedge.store.window.plan import Rates, plan_window

if TYPE_CHECKING:
    from picoedge.engine.options import OpenOptions
    from picoedge.kernels.api import Kernels
    from picoedge.store.pack.reader import Pack

GROWTH_BYTES = 3 << 20  # bound kernels, thread stacks, page tables, what Python still allocates
LARGE_MATRIX = 64 << 20
WHOLE_BATCH = 256  # tokens a prompt is cut into where memory is no concern
_WORTH_MAPPING = 1.15  # direct reads keep their promise of memory; mapped ones must be this faster
_ANY_SIZE = 1 << 62  # no limit
_RUNNING = (
    "picoedge.engine.session",
    "picoedge.model.transformer",
    "picoedge.store.window.weights",
)


@dataclass(frozen=True)
class Speeds:
    """What was measured of this board."""

    storage: StorageSpeed
    compute: float  # bytes of weights a second, of one token


@dataclass(frozen=True, eq=False)
class MemoryFit:
    """How a model will be held: by a plan, or (None) mapped whole."""

    pack: Pack
    load: Load
    budget: Budget
    plan: MemoryPlan | None


def fit_model(
    pack: Pack, kernels: Kernels, options: OpenOptions, part: Slice | None = None
) -> MemoryFit:
    """Decide before anything large is allocated.

    A whole model that fits is mapped. A slice never is: what the kernel reads around it, of shards
    that are other boards', would take as much memory again.

    Probes storage and kernels where a plan is needed and they are not known yet. Raises
    UsageError for a context the model was not made for, MemoryBudgetError, StorageError.
    """
    load = load_of(pack, part or pack.all_shards, options)
    if kernels.name == "numpy" or load.kv_bits == 32:  # f32 matrices are NumPy's in either twin
        load = dataclasses.replace(load, numpy=True)
    total = budget_bytes(options.memory_bytes)
    budget = Budget(total, fixed_bytes())
    if load.part == pack.all_shards and fits_resident(pack, load, budget):
        return MemoryFit(pack, load, budget, None)
    budget = _lean_budget(pack, kernels, total, load.part)
    if load.part != pack.all_shards and (held := resident_plan(load, budget)).total <= total:
        return MemoryFit(pack, load, budget, held)
    check_room(load, budget)  # before seconds are spent on probes
    speeds = measure_speeds(pack, kernels, total)
    ways = tuple(readings(speeds, options.window_io))
    budget = _lean_budget(pack, kernels, total, load.part)
    return MemoryFit(pack, load, budget, plan_memory(load, budget, ways))


def _lean_budget(pack: Pack, kernels: Kernels, total: int, part: Slice) -> Budget:
    """The budget once all is given back that is not needed any more."""
    release_pages(
        lambda: _warm_up(pack, kernels, part), [p for p in pack.path.iterdir() if p.is_file()]
    )
    return Budget(total, fixed_bytes() + REFAULT_BYTES)


def _warm_up(pack: Pack, kernels: Kernels, part: Slice) -> None:
    """A little of all that opening and running a model does, without any of its shards."""
    from picoedge.config import SamplingOptions
    from picoedge.model.sampling import Sampler
    from picoedge.model.transformer import Transformer
    from picoedge.store.window.weights import EmptyWeights

    warm_up(kernels)
    model = Transformer(
        pack, kernels, 16, batch=1, holding=EmptyWeights(pack, owns_head=part.owns_head)
    )
    if not part.owns_head:
        model.forward_slice(np.zeros((1, pack.config.hidden_size), np.float32), 0)
        return
    model.forward([0], 0)
    logits = np.zeros(pack.config.vocab_size, np.float32)
    for options in (SamplingOptions(temperature=0), SamplingOptions()):
        Sampler(options).pick(logits, [0])


def load_of(pack: Pack, part: Slice, options: OpenOptions) -> Load:
    """The part of a pack that will run, and the context it needs room for."""
    return Load(
        pack.config,
        part,
        pack.spans(part),
        pack.ffn_shard_cols,
        options.n_ctx or choose_context(pack, options),
        cache_bits(pack, options),
        head_shard_rows=pack.head_shard_rows,
        logit_rows=options.logit_rows,
    )


def cache_bits(pack: Pack, options: OpenOptions) -> int:
    """Bits of the cache of keys and values: 32 where the weights are f32, else as asked."""
    weights = pack.attention(0, range(1)).values()
    exact = all(matrix.spec.format.bits == 32 for matrix in weights)
    return 32 if exact else options.kv_bits


def choose_context(pack: Pack, options: OpenOptions) -> int:
    """The context asked for, else one that suits this board's memory.

    Raises UsageError for more positions than the model was trained with.
    """
    largest = pack.config.max_position_embeddings
    if options.n_ctx is None:
        available = memory.available_bytes()
        budget = min(available, options.memory_bytes or available)
        return default_context(pack.config, budget, kv_bits=cache_bits(pack, options))
    if options.n_ctx > largest:
        raise UsageError(
            f"a context of {options.n_ctx} tokens: the model knows {largest}",
            f"--ctx-size {largest} is its largest",
        )
    return options.n_ctx


def budget_bytes(ceiling: int | None) -> int:
    """What this process may take in all: what it has and what is free, at most `ceiling`.

    Without a ceiling a margin is left to others.
    """
    available = memory.available_bytes()
    if ceiling is None:
        return rss_bytes() + available - available // 16
    return min(ceiling, rss_bytes() + available)


def fixed_bytes() -> int:
    """What this process takes before the model, and what it will still grow by.

    The code that runs a model is loaded for it: it is the same for whoever asks.
    """
    for module in _RUNNING:
        import_module(module)
    return rss_bytes() + GROWTH_BYTES


def fits_resident(pack: Pack, load: Load, budget: Budget) -> bool:
    """Whether all that is run can be mapped within the budget, its cache full."""
    return resident_plan(load, budget).total + bytes_apart(pack) <= budget.total


def resident_plan(load: Load, budget: Budget, rates: Rates | None = None) -> MemoryPlan:
    """The plan where nothing is streamed; of a mapped model `bytes_apart` come on top of its total.

    Without `rates` it is not to be looked at for seconds.
    """
    rates = rates or Rates(disk=1.0, compute=1.0)
    batch = min(WHOLE_BATCH, load.n_ctx)
    window = plan_window(load.runs, _ANY_SIZE, rates, _ANY_SIZE)
    assert window is not None
    activations = activation_bytes(load, _ANY_SIZE, batch)
    cache = cache_bytes(load)
    reading = Reading("mmap", rates)
    return MemoryPlan(budget, load.n_ctx, load.kv_bits, batch, cache, activations, reading, window)


def bytes_apart(pack: Pack) -> int:
    """Bytes of a pack that are in no shard: rows of an embedding of its own, norms, headers."""
    return pack.nbytes - sum(run.nbytes for run in pack.spans(pack.all_shards))


def measure_speeds(pack: Pack, kernels: Kernels, budget: int) -> Speeds:
    """Of the storage that holds a pack and of its kernels; measured once, and kept."""
    folder = probes_folder()
    gate = pack.ffn(0, range(1))["gate"].spec
    storage = storage_speed(pack.path, cache=folder)
    # Larger than the processor's caches, which a model is as well, where there is room for that.
    nbytes = LARGE_MATRIX if budget >= 4 * LARGE_MATRIX else MATRIX_BYTES
    compute = cached_compute(kernels, gate.format.name, gate.cols, nbytes, cache=folder)
    return Speeds(storage, compute)


def readings(speeds: Speeds, window_io: str) -> Iterator[Reading]:
    """The ways of reading to choose from. Raises StorageError for one that does not work."""
    storage = speeds.storage
    for io in _ways(storage, window_io):
        disk = storage.effective_direct if io == "direct" else storage.effective_mapped
        reserve = 0 if io == "direct" else 2 * storage.read_ahead
        yield Reading(io, Rates(disk, speeds.compute), reserve)


def probes_folder() -> Path:
    """Where what was measured of this board is kept."""
    return shelf_folder(os.environ).parent


def _ways(speed: StorageSpeed, window_io: str) -> tuple[str, ...]:
    if window_io == "direct" and not speed.direct:
        raise StorageError(
            f"the file system on {speed.device} has no direct reads", "take --window-io mmap"
        )
    if window_io != "auto":
        return (window_io,)
    if speed.effective_mapped > _WORTH_MAPPING * speed.effective_direct:
        return ("mmap", "direct") if speed.direct else ("mmap",)
    return ("direct",)
