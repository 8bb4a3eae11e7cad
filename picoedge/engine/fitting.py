"""Whether a model fits a budget whole, and if not, its plan: the board's side of planning."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from picoedge.engine import memory
from picoedge.engine.compute import cached_compute
from picoedge.engine.places import shelf_folder
from picoedge.engine.planning import Budget, MemoryPlan, Reading, plan_memory
from picoedge.engine.process import rss_bytes
from picoedge.engine.storage import StorageSpeed, storage_speed
from picoedge.errors import StorageError
from picoedge.store.slices import Slice
from picoedge.store.units import Unit, cut_units
from picoedge.store.window_plan import Rates

if TYPE_CHECKING:
    from picoedge.engine.opening import OpenOptions
    from picoedge.kernels.api import Kernels
    from picoedge.store.reader import Pack

GROWTH_BYTES = 5 << 20  # bound kernels, thread stacks, page tables, what Python still allocates
_WORTH_MAPPING = 1.15  # direct reads keep their promise of memory; mapped ones must be this faster


@dataclass(frozen=True)
class Shape:
    """A pack, the part of it that is run, and the context: what memory is needed for."""

    pack: Pack
    part: Slice
    n_ctx: int
    kv_bits: int

    def cut(self, most: int) -> tuple[Unit, ...]:
        """Units of at most `most` bytes."""
        return cut_units(self.pack, self.part, most)


def spare_bytes() -> int:
    """What this process may take in all when nobody says: what is free, less a margin."""
    available = memory.available_bytes()
    return rss_bytes() + available - available // 16


def fits_whole(shape: Shape, budget: int) -> bool:
    """Whether all of the pack can be mapped within the budget, its cache full."""
    sentencepiece = (shape.pack.path / "tokenizer.model").exists()
    need = memory.estimate(
        shape.pack.config,
        shape.pack.nbytes,
        shape.n_ctx,
        kv_bits=shape.kv_bits,
        sentencepiece=sentencepiece,
    )
    return need.total <= budget


def plan_for(shape: Shape, kernels: Kernels, options: OpenOptions, fixed: int) -> MemoryPlan:
    """The plan for a model that is not held whole; `fixed`: what the process takes beside it.

    Probes storage and kernels where that is not known yet. Raises MemoryBudgetError, StorageError.
    """
    budget = Budget(options.memory_bytes or spare_bytes(), fixed)
    return plan_memory(
        shape.pack.config,
        shape.part,
        cache(shape.cut),
        budget,
        tuple(readings(shape.pack, kernels, options.window_io)),
        n_ctx=shape.n_ctx,
        kv_bits=shape.kv_bits,
    )


def fixed_bytes() -> int:
    """What this process takes before the model, and what it will still grow by."""
    return rss_bytes() + GROWTH_BYTES


def readings(pack: Pack, kernels: Kernels, window_io: str) -> Iterator[Reading]:
    """The ways of reading to choose from, with the speeds of this board."""
    folder = probes_folder()
    speed = storage_speed(pack.path, cache=folder)
    gate = pack.ffn(0, range(1))["gate"].spec
    compute = cached_compute(kernels, gate.format.name, gate.cols, cache=folder)
    for io in _ways(speed, window_io):
        disk = speed.effective_direct if io == "direct" else speed.effective_mapped
        reserve = 0 if io == "direct" else 2 * speed.read_ahead
        yield Reading(io, Rates(disk, compute), reserve)


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
