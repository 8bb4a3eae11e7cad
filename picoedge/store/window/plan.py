"""Window plan: which units stay resident, which are streamed, and the ring for these. Pure.

Every token uses all units in the same order. An LRU cache too small for all of them would evict
each unit just before its next use, and read everything for every token. A fixed resident set reads
only the rest. It is spread evenly over the layers, so that the disk, which reads all the time,
keeps up with the processor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from picoedge.store.pages import PAGE, page_range
from picoedge.store.shards import Unit

_CYCLES = 3  # simulated tokens; the last is in steady state
RESIDENT_BYTES = 8 << 20  # per resident unit: larger ones only take larger buffers
_ROUNDING = 2 * PAGE  # at most, of a unit's page range beyond its bytes
_STEPS = (0.5, 0.7, 0.85, 1.2, 1.5, 2.0, 3.0)  # window sizes to try, relative to the present one


@dataclass(frozen=True)
class Rates:
    """Measured speeds of a board."""

    disk: float  # read, bytes/s
    compute: float  # weights used by one token, bytes/s
    unit_s: float = 20e-6  # per unit, beside the arithmetic: calls, waiting
    token_s: float = 0.0  # per token, beside the weights
    latency_s: float = 2e-3  # from a free place to the start of its read


@dataclass(frozen=True)
class Ring:
    """Ring buffer of `nbytes` for the streamed units.

    `places[i]`: offset of unit i. It may be read once the unit `behind[i]` positions earlier in the
    cycle (and all before) has been used.
    """

    places: tuple[int, ...]
    behind: tuple[int, ...]
    nbytes: int

    @property
    def depth(self) -> int:
        """Units in the ring at any time, at least: one in use, the others read ahead."""
        return min(self.behind, default=0)


def lay_ring(sizes: Sequence[int], nbytes: int) -> Ring:
    """Place units of these sizes, each at most `nbytes`, one after another in a ring of `nbytes`.

    A unit that would pass the end is placed at 0.
    """
    places, at = [], 0
    for size in sizes:
        assert 0 < size <= nbytes, "a unit is larger than the window"
        at = 0 if at + size > nbytes else at
        places.append(at)
        at += size
    behind = tuple(_behind(places, sizes, i) for i in range(len(sizes)))
    used = max((p + s for p, s in zip(places, sizes, strict=True)), default=0)
    return Ring(tuple(places), behind, used)


def _behind(places: Sequence[int], sizes: Sequence[int], i: int) -> int:
    """Distance back in the cycle to the nearest unit that overlaps unit i."""
    start, end = places[i], places[i] + sizes[i]
    for k in range(1, len(places)):
        j = i - k  # negative: in the previous cycle
        if places[j] < end and start < places[j] + sizes[j]:
            return k
    return len(places)


@dataclass(frozen=True)
class UnitCost:
    """A unit as the forecast sees it."""

    nbytes: int
    streamed: bool


@dataclass(frozen=True)
class Forecast:
    """Seconds per token in steady state, and the seconds the disk and the processor work."""

    s_per_token: float
    disk_s: float
    compute_s: float

    @property
    def clock(self) -> str:
        """The bottleneck: "disk" or "compute"."""
        return "disk" if self.disk_s > self.compute_s else "compute"


def forecast(steps: Sequence[UnitCost], ring: Ring, rates: Rates) -> Forecast:
    """Simulate disk and processor over a few tokens.

    The disk reads the streamed units in order, each once its place in the ring is free; the
    processor uses all units in order, each once it has been read (the steady-state conditions of
    TPI-LLM, arXiv 2410.00531 section 3.3, for units of any size).
    """
    used: list[float] = []  # end of use of each streamed unit
    n, count = len(ring.places), 0
    disk, now, began = 0.0, 0.0, 0.0
    for _ in range(_CYCLES):
        began, now = now, now + rates.token_s
        for step in steps:
            if step.streamed:
                free = count - ring.behind[count % n]
                ready = used[free] + rates.latency_s if free >= 0 else 0.0
                disk = max(disk, ready) + step.nbytes / rates.disk
                now = max(now, disk)
                count += 1
            now += step.nbytes / rates.compute + rates.unit_s
            if step.streamed:
                used.append(now)
    streamed = sum(step.nbytes for step in steps if step.streamed)
    total = sum(step.nbytes for step in steps)
    compute_s = total / rates.compute + len(steps) * rates.unit_s + rates.token_s
    return Forecast(now - began, streamed / rates.disk, compute_s)


@dataclass(frozen=True)
class WindowPlan:
    """Units in order of use, the resident ones among them, and the ring for the others."""

    units: tuple[Unit, ...]
    resident: frozenset[Unit]
    ring: Ring
    forecast: Forecast

    @property
    def streamed(self) -> tuple[Unit, ...]:
        """Units read for every token, in order of use."""
        return tuple(unit for unit in self.units if unit not in self.resident)

    @property
    def resident_bytes(self) -> int:
        """Memory of the resident units."""
        return sum(page_bytes(unit) for unit in self.resident)

    @property
    def streamed_bytes(self) -> int:
        """Bytes read per token."""
        return sum(page_bytes(unit) for unit in self.streamed)

    @property
    def touched_bytes(self) -> int:
        """Bytes of weights used per token."""
        return sum(unit.nbytes for unit in self.units)

    @property
    def window_bytes(self) -> int:
        """Memory of the ring."""
        return self.ring.nbytes


def page_bytes(unit: Unit) -> int:
    """Bytes read and held for a unit: whole pages."""
    start, end = page_range(unit)
    return end - start


def plan_window(
    spans: Sequence[Unit], memory: int, rates: Rates, most: int, *, reserve: int = 0
) -> WindowPlan | None:
    """The fastest plan of at most `memory` bytes; None where not even the smallest window fits.

    `spans`: in order of use, a slice's attention or FFN shards of a layer, or head shards.
    Streamed parts are cut into units of at most `most` bytes (or one shard). `reserve`: memory
    that a window takes beside its ring.
    """
    resident = {span: len(span.shards) for span in spans}
    if sum(page_bytes(unit) for span in spans for unit in cut_span(span, RESIDENT_BYTES)) <= memory:
        return _plan(spans, resident, most, 0, rates)
    window = smallest_window(spans, most)
    plans: list[WindowPlan] = []
    while window + reserve <= memory and not _ever_slower(plans):
        resident = spread(spans, memory - reserve - window)
        plans.append(_plan(spans, resident, most, window, rates))
        window += window // 3
    return min(plans, key=lambda plan: plan.forecast.s_per_token, default=None)


def smallest_window(spans: Sequence[Unit], most: int) -> int:
    """Bytes of a ring in which one unit is used while the next is read."""
    return 2 * max(page_bytes(unit) for span in spans for unit in cut_span(span, most))


def _ever_slower(plans: Sequence[WindowPlan]) -> bool:
    """Whether the last three windows, each larger, became slower."""
    if len(plans) < 3:
        return False
    a, b, c = (plan.forecast.s_per_token for plan in plans[-3:])
    return a < b < c


def _plan(
    spans: Sequence[Unit], resident: Mapping[Unit, int], most: int, window: int, rates: Rates
) -> WindowPlan:
    units: list[Unit] = []
    kept: set[Unit] = set()
    for span in spans:
        count = resident[span]
        held = cut_span(span.part(0, count), RESIDENT_BYTES) if count else []
        kept.update(held)
        units += held
        if count < len(span.shards):
            units += cut_span(span.part(count, len(span.shards)), most)
    return plan_of(tuple(units), frozenset(kept), window, rates)


def plan_of(
    units: tuple[Unit, ...], resident: frozenset[Unit], window: int, rates: Rates
) -> WindowPlan:
    """Plan of `units`, in order of use, with a ring of at most `window` bytes."""
    ring = lay_ring([page_bytes(unit) for unit in units if unit not in resident], window)
    steps = [UnitCost(page_bytes(unit), unit not in resident) for unit in units]
    return WindowPlan(units, resident, ring, forecast(steps, ring, rates))


def widest(span: Unit, most: int) -> int:
    """Shards in a unit of at most `most` bytes, at least one."""
    return min(len(span.shards), max(1, most // span.shard_bytes))


def unit_count(span: Unit, shards: int, most: int) -> int:
    """Number of units of at most `most` bytes (or one shard) for `shards` shards of a span."""
    return -(-shards // widest(span, most))


def cut_span(span: Unit, most: int) -> list[Unit]:
    """Units of nearly equal size that make up a span, each of at most `most` bytes or one shard."""
    shards = len(span.shards)
    count = unit_count(span, shards, most)
    cuts = [shards * k // count for k in range(count + 1)]
    return [span.part(first, last) for first, last in itertools.pairwise(cuts)]


def spread(spans: Sequence[Unit], memory: int) -> dict[Unit, int]:
    """Resident shards of each span, counted from its first: as many as fit, evenly over layers.

    The head goes first: for the logits of every token it is used more often than a layer.
    """
    free = memory
    kept = dict.fromkeys(spans, 0)
    for span in spans:
        if span.kind == "head":
            kept[span] = _most(span, len(span.shards), free)
            free -= _held_bytes(span, kept[span])
    layers = [span for span in spans if span.kind != "head"]
    total, due = sum(span.nbytes for span in layers), 0.0
    pages = _ROUNDING * len(layers)  # of one unit per span
    share = min(1.0, max(0, free - pages) / total) if total else 0.0
    for span in layers:
        due += share * span.nbytes
        kept[span] = _most(span, min(len(span.shards), round(due / span.shard_bytes)), free)
        due -= kept[span] * span.shard_bytes
        free -= _held_bytes(span, kept[span])
    for span in layers:  # what rounding left free
        free += _held_bytes(span, kept[span])
        kept[span] = max(kept[span], _most(span, len(span.shards), free))
        free -= _held_bytes(span, kept[span])
    return kept


def _held_bytes(span: Unit, shards: int) -> int:
    """Memory of the first `shards` of a span, at most: its units are rounded to pages."""
    return shards * span.shard_bytes + unit_count(span, shards, RESIDENT_BYTES) * _ROUNDING


def _most(span: Unit, wanted: int, memory: int) -> int:
    """As many shards of a span as fit, at most `wanted`."""
    count = max(0, min(wanted, memory // span.shard_bytes))
    while count and _held_bytes(span, count) > memory:
        count -= 1
    return count


# -- while decoding ------------------------------------------------------------------------------


def adjusted(plan: WindowPlan, rates: Rates, gain: float = 1.0) -> WindowPlan:
    """The fastest plan at these speeds of no more memory.

    The window grows or shrinks by moving a few units between the resident set and the stream; all
    others stay in place. Attention units do not move, as the KV cache is divided like them. `plan`
    itself unless another takes less than `gain` times its seconds per token.
    """
    present = plan_of(plan.units, plan.resident, plan.window_bytes, rates)
    best = min([present, *_others(plan, rates)], key=lambda other: other.forecast.s_per_token)
    return best if best.forecast.s_per_token < gain * present.forecast.s_per_token else plan


def _others(plan: WindowPlan, rates: Rates) -> Iterator[WindowPlan]:
    if not plan.streamed:
        return
    most = max(page_bytes(unit) for unit in plan.streamed)
    memory = plan.resident_bytes + plan.window_bytes
    for step in _STEPS:
        window = max(2 * most, int(plan.window_bytes * step))
        if window == plan.window_bytes:
            continue
        move = _evict if window > plan.window_bytes else _promote
        units, resident = move(plan, abs(window - plan.window_bytes), most)
        if sum(map(page_bytes, resident)) + window <= memory:
            yield plan_of(units, resident, window, rates)


def _evict(plan: WindowPlan, nbytes: int, most: int) -> tuple[tuple[Unit, ...], frozenset[Unit]]:
    """Stream resident units of at least `nbytes`, spread evenly over the layers."""
    movable = [unit for unit in plan.units if unit in plan.resident and unit.kind != "attention"]
    evicted = _evenly(movable, nbytes, enough=True)
    units: list[Unit] = []
    for unit in plan.units:
        units += cut_span(unit, most) if unit in evicted else [unit]
    return tuple(units), plan.resident - evicted


def _promote(plan: WindowPlan, nbytes: int, most: int) -> tuple[tuple[Unit, ...], frozenset[Unit]]:
    """Make streamed units of at most `nbytes` resident, spread evenly over the layers."""
    movable = [unit for unit in plan.streamed if unit.kind != "attention"]
    return plan.units, plan.resident | _evenly(movable, nbytes, enough=False)


def _evenly(units: Sequence[Unit], nbytes: int, *, enough: bool) -> frozenset[Unit]:
    """Units of `nbytes`, at least if `enough`, else at most, evenly spaced."""
    mean = sum(map(page_bytes, units)) / max(1, len(units))
    count = min(len(units), max(1, round(nbytes / mean))) if units else 0
    order = [units[(2 * i + 1) * len(units) // (2 * count)] for i in range(count)]
    chosen: set[Unit] = set()
    taken = 0
    for unit in (*order, *(unit for unit in units if unit not in order)):
        if enough and taken >= nbytes:
            break
        if enough or taken + page_bytes(unit) <= nbytes:
            chosen.add(unit)
            taken += page_bytes(unit)
    return frozenset(chosen)
