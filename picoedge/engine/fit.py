"""Fit a model to this board: measure memory and speeds, plan with `planner.memory`, adapt."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from picoedge.config import SamplingOptions
from picoedge.errors import StorageError, UsageError
from picoedge.host import resources
from picoedge.host.disk_speed import StorageSpeed, storage_speed
from picoedge.host.kernel_benchmark import MATRIX_BYTES, cached_compute
from picoedge.host.reclaim import release_pages
from picoedge.host.resources import REFAULT_BYTES, lasting_bytes, rss_bytes
from picoedge.kernels.api import Project, Residual
from picoedge.kernels.blocks import FORMATS, MatrixSpec, Weights
from picoedge.model.sampling import Sampler
from picoedge.model.transformer import Transformer
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
from picoedge.store.pages import anonymous
from picoedge.store.shards import Slice
from picoedge.store.window.plan import Rates, adjusted, plan_window
from picoedge.store.window.weights import NOTHING_HELD, StreamedWeights

if TYPE_CHECKING:
    from picoedge.engine.options import OpenOptions
    from picoedge.kernels.api import Kernels
    from picoedge.store.pack.reader import Pack
    from picoedge.store.window.read_ahead import Usage

GROWTH_BYTES = 3 << 20  # measured: bound kernels, thread stacks, page tables, Python's own
LARGE_MATRIX = 64 << 20  # larger than any processor cache, as a model is
WHOLE_BATCH = 256  # tokens of a prompt at once where all weights are resident
# Of the free memory: a program that takes no more than the rest asks no daemon for it.
LEFT_FREE = 0.5
_WORTH_MAPPING = 1.15  # mapped reads may overshoot the window, so they must be this much faster
_UNLIMITED = 1 << 62
_SESSION = "picoedge.engine.session"  # loaded first, so that no figure depends on the caller
TOKENS = 8  # decoded between two measurements
_DEPARTURE = 1.25  # replan where a speed differs from the plan's by this factor, either way
_GAIN = 0.99  # of the seconds a token: a smaller gain is not worth reading units again


@dataclass(frozen=True)
class Speeds:
    """Measured speeds of this board."""

    storage: StorageSpeed
    compute: float  # bytes of weights a second while decoding


@dataclass(frozen=True, eq=False)
class MemoryFit:
    """A model's fit to this board: weights held by `plan`, or (None) all mapped."""

    pack: Pack
    load: Load
    budget: Budget
    plan: MemoryPlan | None


def fit_model(
    pack: Pack,
    kernels: Kernels,
    options: OpenOptions,
    part: Slice | None = None,
    lent_bytes: int = 0,
) -> MemoryFit:
    """Plan a model's memory before anything large is allocated.

    A whole model that fits is mapped. A slice never is: the kernel reads ahead, into shards of
    other boards, and would take as much memory again. Where a plan is needed, storage and kernels
    are measured if they have not been yet. `lent_bytes` of memory are this process's, though not in
    it yet. Raises MemoryBudgetError, StorageError, UsageError.
    """
    load = load_of(pack, part or pack.all_shards, options)
    if kernels.name == "numpy" or load.kv_bits == 32:  # f32 inputs take more than int8 blocks
        load = dataclasses.replace(load, numpy=True)
    total = budget_bytes(options.memory_bytes, lent_bytes)
    budget = _resident_budget(total)
    if load.part == pack.all_shards and fits_resident(pack, load, budget):
        return MemoryFit(pack, load, budget, None)
    budget = _lean_budget(pack, kernels, total, load.part)
    if load.part != pack.all_shards and (plan := resident_plan(load, budget)).total <= total:
        return MemoryFit(pack, load, budget, plan)
    check_room(load, budget)  # before seconds are spent on measuring
    speeds = measure_speeds(pack, kernels, total)
    budget = _lean_budget(pack, kernels, total, load.part)
    plan = plan_memory(load, budget, readings(speeds, options.window_io))
    return MemoryFit(pack, load, budget, plan)


def _lean_budget(pack: Pack, kernels: Kernels, total: int, part: Slice) -> Budget:
    """The budget after releasing the memory that start-up needed and decoding does not."""
    files = [path for path in pack.path.iterdir() if path.is_file()]
    release_pages(lambda: _warm_up(pack, kernels, part), files)
    return Budget(total, fixed_bytes() + REFAULT_BYTES)


def _warm_up(pack: Pack, kernels: Kernels, part: Slice) -> None:
    """Run a small matrix, then one token without weights.

    The code that decoding needs is then in memory, and is counted in the budget.
    """
    spec = MatrixSpec(FORMATS["q8"], 240, 256)
    matrix = Weights(spec, anonymous(spec.nbytes), spec.nbytes, 1)
    ones = np.ones((1, spec.cols), np.float32)
    source = Residual(ones, None, None, ones[0], 1e-5)
    out = np.empty((1, spec.rows), np.float32)
    kernels.project(Project(source, [matrix], [None], out))(1)
    nothing = Slice(range(0), range(0), owns_head=part.owns_head)
    weights = StreamedWeights(pack, nothing, NOTHING_HELD, io="direct")
    model = Transformer(pack, kernels, 16, batch=1, holding=weights)
    if not part.owns_head:
        model.forward_slice(np.zeros((1, pack.config.hidden_size), np.float32), 0)
        return
    model.forward([0], 0)
    logits = np.zeros(pack.config.vocab_size, np.float32)
    for options in (SamplingOptions(temperature=0), SamplingOptions()):
        Sampler(options).pick(logits, [0])


def load_of(pack: Pack, part: Slice, options: OpenOptions) -> Load:
    """The load: the shards of `part`, and the context to make room for."""
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
    """Bits of the key-value cache: 32 for f32 weights, else as the options say."""
    specs = pack.shard("attention", 0).matrices.values()
    exact = all(spec.format.bits == 32 for spec in specs)
    return 32 if exact else options.kv_bits


def choose_context(pack: Pack, options: OpenOptions) -> int:
    """The context asked for, else a context that suits this board's memory.

    Raises UsageError for more positions than the model was trained with.
    """
    largest = pack.config.max_position_embeddings
    if options.n_ctx is None:
        available = resources.available_bytes()
        budget = min(available, options.memory_bytes or available)
        return default_context(pack.config, budget, kv_bits=cache_bits(pack, options))
    if options.n_ctx > largest:
        raise UsageError(
            f"a context of {options.n_ctx} tokens: the model knows {largest}",
            f"--ctx-size {largest} is its largest",
        )
    return options.n_ctx


def budget_bytes(ceiling: int | None, lent_bytes: int = 0) -> int:
    """Memory this process may take in all: its own and the free memory, at most `ceiling`.

    Without a ceiling a sixteenth of the free memory is left to others.
    """
    available = resources.available_bytes()
    owned = lasting_bytes() + lent_bytes
    if ceiling is None:
        return owned + available - available // 16
    return min(ceiling, owned + available)


def fixed_bytes() -> int:
    """Memory of this process without the model, with its growth while the model runs."""
    import_module(_SESSION)
    return rss_bytes() + GROWTH_BYTES


def is_pressed(pack: Pack, options: OpenOptions, share: float = 1.0) -> bool:
    """Whether the model would be held in another way if others left more memory on this board.

    `share` of the memory that is free now counts as free.
    """
    n_ctx, bits = options.n_ctx, cache_bits(pack, options)
    n_ctx = n_ctx or default_context(pack.config, _UNLIMITED, kv_bits=bits)
    load = load_of(pack, pack.all_shards, dataclasses.replace(options, n_ctx=n_ctx))
    total = round(share * budget_bytes(options.memory_bytes))
    is_all = total == options.memory_bytes  # what this process may take is there
    return not is_all and not fits_resident(pack, load, _resident_budget(total))


def _resident_budget(total: int) -> Budget:
    """The budget before memory that only starting needed is released: the release is counted."""
    import_module(_SESSION)
    return Budget(total, lasting_bytes() + GROWTH_BYTES)


def fits_resident(pack: Pack, load: Load, budget: Budget) -> bool:
    """Whether all weights can be mapped within the budget, with the cache full."""
    return resident_plan(load, budget).total + bytes_apart(pack) <= budget.total


def resident_plan(load: Load, budget: Budget, rates: Rates | None = None) -> MemoryPlan:
    """The plan without streaming. For a mapped model add `bytes_apart` to its total.

    Without `rates` its seconds are meaningless; only its bytes are valid.
    """
    rates = rates or Rates(disk=1.0, compute=1.0)
    batch = min(WHOLE_BATCH, load.n_ctx)
    window = plan_window(load.runs, _UNLIMITED, rates, _UNLIMITED)
    assert window is not None
    activations = activation_bytes(load, _UNLIMITED, batch)
    cache = cache_bytes(load)
    reading = Reading("mmap", rates)
    return MemoryPlan(budget, load.n_ctx, load.kv_bits, batch, cache, activations, reading, window)


def bytes_apart(pack: Pack) -> int:
    """Bytes of a pack outside its shards: an untied embedding, norms, headers."""
    return pack.nbytes - sum(span.nbytes for span in pack.spans(pack.all_shards))


def measure_speeds(pack: Pack, kernels: Kernels, budget: int) -> Speeds:
    """Speeds of the pack's storage and of its kernels; measured once, and kept."""
    folder = probes_folder()
    gate = pack.shard("ffn", 0).matrices["gate"]
    storage = storage_speed(pack.path, cache=folder)
    nbytes = LARGE_MATRIX if budget >= 4 * LARGE_MATRIX else MATRIX_BYTES
    compute = cached_compute(kernels, gate.format.name, gate.cols, nbytes, cache=folder)
    return Speeds(storage, compute)


def readings(speeds: Speeds, window_io: str) -> list[Reading]:
    """The ways to read streamed units, the preferred first.

    Raises StorageError where direct reads are asked for and the file system has none.
    """
    storage = speeds.storage
    if window_io == "direct" and not storage.direct:
        raise StorageError(
            f"the file system on {storage.device} has no direct reads", "take --window-io mmap"
        )
    direct = Reading("direct", Rates(storage.effective_direct, speeds.compute))
    mapped = Rates(storage.effective_mapped, speeds.compute)
    mmap = Reading("mmap", mapped, reserve=2 * storage.read_ahead)
    if window_io != "auto":
        return [direct if window_io == "direct" else mmap]
    if storage.effective_mapped > _WORTH_MAPPING * storage.effective_direct:
        return [mmap, direct] if storage.direct else [mmap]
    return [direct]


def probes_folder() -> Path:
    """The folder of this board's measurements."""
    return shelf_folder(os.environ).parent


# -- while decoding -----------------------------------------------------------------------------


class LoadedModel(Transformer):
    """A model that runs on this board; a `session.LanguageModel`."""

    memory_plan: MemoryPlan | None = None  # None: all weights are mapped
    tuner: WindowTuner | None = None  # adapts the plan to measured speeds while decoding

    attend: None = None  # nothing happens to it between questions

    @property
    def slice(self) -> LoadedModel:
        """Itself: what this board runs of the model."""
        return self


class WindowTuner:
    """Called after each pass of a model; moves units where that makes decoding quicker.

    Measures passes of one token only, not prompts. `plan` is the present plan.
    """

    def __init__(
        self,
        model: Transformer,
        weights: StreamedWeights,
        plan: MemoryPlan,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.plan = plan
        self._model, self._weights, self._clock = model, weights, clock
        self._begin()

    def __call__(self, tokens: int) -> None:
        """Count a pass of `tokens`; every TOKENS single ones compare speeds with the plan."""
        if tokens != 1 or not self.plan.window.streamed:
            self._begin()
            return
        self._tokens += 1
        if self._tokens <= TOKENS:
            return
        rates, planned = self._measured(), self.plan.reading.rates
        pairs = ((rates.disk, planned.disk), (rates.compute, planned.compute))
        if any(max(a / b, b / a) > _DEPARTURE for a, b in pairs):
            self._replan(rates)
        self._begin()

    @property
    def usage(self) -> Usage:
        """Reads and waits of the window so far."""
        return self._weights.usage

    def _begin(self) -> None:
        self._tokens = 0
        self._since, self._usage = self._clock(), self._weights.usage

    def _measured(self) -> Rates:
        """Speeds since the last measurement."""
        usage, elapsed = self._weights.usage - self._usage, self._clock() - self._since
        rates, window = self.plan.reading.rates, self.plan.window
        compute_s = max(elapsed - usage.wait_s, 1e-9) / self._tokens
        disk = usage.bytes_read / usage.busy_s if usage.busy_s > 0 else rates.disk
        return dataclasses.replace(rates, disk=disk, compute=window.touched_bytes / compute_s)

    def _replan(self, rates: Rates) -> None:
        reading = dataclasses.replace(self.plan.reading, rates=rates)
        window = adjusted(self.plan.window, rates, _GAIN)
        if window is not self.plan.window:
            self._model.unbind()
            try:
                self._weights.replan(window)
            except BaseException:
                self._weights.replan(self.plan.window)
                self._model.bind()
                raise
            self._model.bind()
        self.plan = dataclasses.replace(self.plan, reading=reading, window=window)
