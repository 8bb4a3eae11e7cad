"""Models of which a test says what stays in memory, and how large a ring the rest goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from picoedge.kernels.loader import load_kernels
from picoedge.model.bound_kernels import Reduce
from picoedge.model.transformer import Transformer
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import Slice, Unit
from picoedge.store.window.plan import (
    Rates,
    UnitCost,
    WindowPlan,
    forecast,
    lay_ring,
    page_bytes,
)
from picoedge.store.window.weights import StreamedWeights

RATES = Rates(disk=1e9, compute=1e9)
Keep = Callable[[int, Unit], bool]


def keep_none(i: int, unit: Unit) -> bool:
    """Everything is streamed."""
    return False


def keep_head(i: int, unit: Unit) -> bool:
    """Only the head stays."""
    return unit.kind == "head"


def keep_others(i: int, unit: Unit) -> bool:
    """Every second unit stays."""
    return i % 2 == 0


def cut(packed: Pack, part: Slice, most: int) -> tuple[Unit, ...]:
    """Units of at most `most` bytes, or of one shard."""
    units: list[Unit] = []
    for run in packed.spans(part):
        each = max(1, most // run.shard_bytes)
        count = len(run.shards)
        units += [run.part(i, min(i + each, count)) for i in range(0, count, each)]
    return tuple(units)


def plan_of(
    packed: Pack,
    most: int = 1,
    keep: Keep = keep_none,
    room: float = 2,
    part: Slice | None = None,
) -> WindowPlan:
    """A plan with units of at most `most` bytes in a ring for `room` of the largest."""
    part = part or packed.all_shards
    units = cut(packed, part, most)
    kept = frozenset(unit for i, unit in enumerate(units) if keep(i, unit))
    sizes = [page_bytes(unit) for unit in units if unit not in kept]
    ring = lay_ring(sizes, int(room * max(sizes, default=0)))
    steps = [UnitCost(page_bytes(unit), unit not in kept) for unit in units]
    return WindowPlan(units, kept, ring, forecast(steps, ring, RATES))


@contextmanager
def whole(packed: Pack, backend: str | None = None, batch: int = 64) -> Iterator[Transformer]:
    """A model all of which is mapped."""
    model = Transformer(packed, load_kernels(backend, 1), 64, batch=batch)
    try:
        yield model
    finally:
        model.close()


@contextmanager
def windowed(
    packed: Pack,
    plan: WindowPlan,
    io: str,
    backend: str | None = None,
    *,
    batch: int = 64,
    n_ctx: int = 64,
    part: Slice | None = None,
    reduce: Reduce | None = None,
    verify: bool = False,
    read_ahead: int = 0,
) -> Iterator[Transformer]:
    """A model held as the plan says."""
    part = part or packed.all_shards
    weights = StreamedWeights(packed, part, plan, io=io, verify=verify, read_ahead=read_ahead)
    try:
        model = Transformer(
            packed, load_kernels(backend, 1), n_ctx, batch=batch, reduce=reduce, holding=weights
        )
    except BaseException:
        weights.close()
        raise
    try:
        yield model
    finally:
        model.close()
