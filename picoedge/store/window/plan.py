"""What stays in memory, what is streamed, and through how large a window. Pure arithmetic.

Every token uses the units in the same cyclic order, so whatever is dropped as the oldest is needed
again before anything younger: with a least-recently-used cache all of it is read again as soon as
the whole does not fit. Keeping a fixed set and streaming the rest reads the rest, and no more. The
set is spread evenly, so that the disk, which never stops, is never far behind.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from picoedge.store.pages import PAGE
from picoedge.store.units import Unit, page_range

_CYCLES = 3  # simulated tokens; the last one is in steady state
RESIDENT_BYTES = 8 << 20  # of one resident unit: wider ones take wider buffers, to no use
_ROUNDING = 2 * PAGE  # what a unit takes beyond its bytes, at most: it begins and ends in a page


@dataclass(frozen=True)
class Rates:
    """Speeds of a board."""

    disk: float  # bytes a second, read
    compute: float  # bytes of weights a second, used for one token
    unit_s: float = 20e-6  # calls and waiting beside the arithmetic, a unit
    token_s: float = 0.0  # what a token takes beside its weights
    latency_s: float = 2e-3  # from a free place to a read that is under way


@dataclass(frozen=True)
class Ring:
    """Places for units that follow one another in a ring of `nbytes`.

    `places[i]` is unit i's first byte. It may be filled again as soon as the unit `behind[i]`
    places earlier in the cycle (and all before that) has been used.
    """

    places: tuple[int, ...]
    behind: tuple[int, ...]
    nbytes: int

    @property
    def depth(self) -> int:
        """Units that are held at once, at least: one in use, the others ahead of it."""
        return min(self.behind, default=0)


def lay_ring(sizes: Sequence[int], nbytes: int) -> Ring:
    """Lay units of these sizes one behind another in a ring of at most `nbytes`.

    Each begins where the one before it ends, or at 0 where it would not fit. Every size must fit.
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
    """How far back in the cycle the nearest unit lies that shares bytes with unit i."""
    start, end = places[i], places[i] + sizes[i]
    for k in range(1, len(places)):
        j = i - k  # negative: of the cycle before
        if places[j] < end and start < places[j] + sizes[j]:
            return k
    return len(places)


@dataclass(frozen=True)
class UnitCost:
    """A unit as the disk and the processor see it."""

    nbytes: int
    streamed: bool


@dataclass(frozen=True)
class Forecast:
    """Seconds of one token in steady state, and what they are made of."""

    s_per_token: float
    disk_s: float
    compute_s: float

    @property
    def clock(self) -> str:
        """What sets the pace: "disk" or "compute"."""
        return "disk" if self.disk_s > self.compute_s else "compute"


def forecast(steps: Sequence[UnitCost], ring: Ring, rates: Rates) -> Forecast:
    """Follow disk and processor through a few tokens.

    The disk reads the streamed units in order, each when its place in the ring is free; the
    processor uses every unit in order, each when it is there (after TPI-LLM's conditions for a
    steady state, arXiv 2410.00531 section 3.3, for units of any size).
    """
    used: list[float] = []  # when each streamed unit had been used, in sequence
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
    """Units in order of use, which of them are resident, and the ring for the others."""

    units: tuple[Unit, ...]
    resident: frozenset[Unit]
    ring: Ring
    forecast: Forecast

    @property
    def streamed(self) -> tuple[Unit, ...]:
        """The units read for every token, in order."""
        return tuple(unit for unit in self.units if unit not in self.resident)

    @property
    def resident_bytes(self) -> int:
        """Memory of the resident units."""
        return sum(page_bytes(unit) for unit in self.resident)

    @property
    def streamed_bytes(self) -> int:
        """Bytes read for a token."""
        return sum(page_bytes(unit) for unit in self.streamed)

    @property
    def touched_bytes(self) -> int:
        """Bytes of weights that a token uses."""
        return sum(unit.nbytes for unit in self.units)

    @property
    def window_bytes(self) -> int:
        """Memory of the window."""
        return self.ring.nbytes


def page_bytes(unit: Unit) -> int:
    """Bytes read, and held, for a unit: whole pages."""
    start, end = page_range(unit)
    return end - start


def plan_window(
    runs: Sequence[Unit], memory: int, rates: Rates, most: int, *, reserve: int = 0
) -> WindowPlan | None:
    """The plan with the least seconds a token that takes at most `memory` bytes.

    `runs` are whole: all attention shards of a layer, all its FFN shards, and so on, in order of
    use. What is streamed of them is cut into units of at most `most` bytes (or one shard).
    `reserve` is memory that a window takes beside its own. None: not even the smallest fits.
    """
    resident = {run: len(run.shards) for run in runs}
    if sum(page_bytes(piece) for run in runs for piece in cut_span(run, RESIDENT_BYTES)) <= memory:
        return _plan(runs, resident, most, 0, rates)
    window = smallest_window(runs, most)
    plans: list[WindowPlan] = []
    while window + reserve <= memory and not _past_the_best(plans):
        resident = spread(runs, memory - reserve - window)
        plans.append(_plan(runs, resident, most, window, rates))
        window += window // 3
    return min(plans, key=lambda plan: plan.forecast.s_per_token, default=None)


def smallest_window(runs: Sequence[Unit], most: int) -> int:
    """Bytes of a window in which one unit is used while the next is read."""
    return 2 * max(page_bytes(unit) for run in runs for unit in cut_span(run, most))


def _past_the_best(plans: Sequence[WindowPlan]) -> bool:
    """Whether larger windows only take memory from the resident units."""
    if len(plans) < 3:
        return False
    a, b, c = (plan.forecast.s_per_token for plan in plans[-3:])
    return a < b < c


def _plan(
    runs: Sequence[Unit], resident: Mapping[Unit, int], most: int, window: int, rates: Rates
) -> WindowPlan:
    units: list[Unit] = []
    kept: set[Unit] = set()
    for run in runs:
        count = resident[run]
        held = cut_span(run.part(0, count), RESIDENT_BYTES) if count else []
        kept.update(held)
        units += held
        if count < len(run.shards):
            units += cut_span(run.part(count, len(run.shards)), most)
    return plan_of(tuple(units), frozenset(kept), window, rates)


def plan_of(
    units: tuple[Unit, ...], resident: frozenset[Unit], window: int, rates: Rates
) -> WindowPlan:
    """The plan of these units in this order, with a ring of at most `window` bytes."""
    ring = lay_ring([page_bytes(unit) for unit in units if unit not in resident], window)
    steps = [UnitCost(page_bytes(unit), unit not in resident) for unit in units]
    return WindowPlan(units, resident, ring, forecast(steps, ring, rates))


def widest(run: Unit, most: int) -> int:
    """Shards of a unit of at most `most` bytes, or one."""
    return min(len(run.shards), max(1, most // run.shard_bytes))


def unit_count(run: Unit, shards: int, most: int) -> int:
    """Units of at most `most` bytes, or one shard, that so many shards of a run make."""
    return -(-shards // widest(run, most))


def cut_span(run: Unit, most: int) -> list[Unit]:
    """A run cut into units of nearly one size, each of at most `most` bytes, or one shard."""
    shards = len(run.shards)
    count = unit_count(run, shards, most)
    cuts = [shards * k // count for k in range(count + 1)]
    return [run.part(first, last) for first, last in itertools.pairwise(cuts)]


def spread(runs: Sequence[Unit], memory: int) -> dict[Unit, int]:
    """Shards to keep of each run, from its first: as many as fit, evenly through the depth.

    The head goes first: where the logits of every token are wanted it is used more often than a
    layer is.
    """
    left = memory
    kept = dict.fromkeys(runs, 0)
    for run in runs:
        if run.kind == "head":
            kept[run] = _most(run, len(run.shards), left)
            left -= _held_bytes(run, kept[run])
    layers = [run for run in runs if run.kind != "head"]
    total, due = sum(run.nbytes for run in layers), 0.0
    pages = _ROUNDING * len(layers)  # of one unit each
    share = min(1.0, max(0, left - pages) / total) if total else 0.0
    for run in layers:
        due += share * run.nbytes
        kept[run] = _most(run, min(len(run.shards), round(due / run.shard_bytes)), left)
        due -= kept[run] * run.shard_bytes
        left -= _held_bytes(run, kept[run])
    for run in layers:  # what rounding left over
        left += _held_bytes(run, kept[run])
        kept[run] = max(kept[run], _most(run, len(run.shards), left))
        left -= _held_bytes(run, kept[run])
    return kept


def _held_bytes(run: Unit, shards: int) -> int:
    """Memory of the first `shards` of a run, at most: its units begin and end within pages."""
    return shards * run.shard_bytes + unit_count(run, shards, RESIDENT_BYTES) * _ROUNDING


def _most(run: Unit, wanted: int, memory: int) -> int:
    """As many shards of a run as fit, at most `wanted`."""
    count = max(0, min(wanted, memory // run.shard_bytes))
    while count and _held_bytes(run, count) > memory:
        count -= 1
    return count
