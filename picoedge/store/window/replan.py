"""Adjust a window plan to measured speeds, within its memory. Pure.

The window grows or shrinks by moving a few units between the resident set and the stream; all
others stay in place. Attention units do not move, as the KV cache is divided like them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from picoedge.store.shards import Unit
from picoedge.store.window.plan import Rates, WindowPlan, cut_span, page_bytes, plan_of

_STEPS = (0.5, 0.7, 0.85, 1.2, 1.5, 2.0, 3.0)  # window sizes to try, relative to the present one


def adjusted(plan: WindowPlan, rates: Rates, gain: float = 1.0) -> WindowPlan:
    """The fastest plan at these speeds of no more memory.

    `plan` itself unless another takes less than `gain` times its seconds per token.
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
