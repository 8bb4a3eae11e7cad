"""A plan that turned out wrong, adjusted within its memory. Pure arithmetic.

A window too small for a slow processor or too large for a slow disk is changed by moving a few
units between the resident set and the stream; the rest stays where it is. Attention units keep
their part, because the cache of keys and values is cut as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from picoedge.store.units import Unit
from picoedge.store.window.plan import Rates, WindowPlan, cut_span, page_bytes, plan_of

_STEPS = (0.5, 0.7, 0.85, 1.2, 1.5, 2.0, 3.0)  # window sizes to try, to today's


def adjusted(plan: WindowPlan, rates: Rates, gain: float = 1.0) -> WindowPlan:
    """The plan of no more memory that is quickest at these speeds.

    `plan` itself where none takes less than `gain` of its seconds a token.
    """
    today = plan_of(plan.units, plan.resident, plan.window_bytes, rates)
    best = min([today, *_others(plan, rates)], key=lambda each: each.forecast.s_per_token)
    return best if best.forecast.s_per_token < gain * today.forecast.s_per_token else plan


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
    """Stream resident units of at least `nbytes`, taken evenly from the depth."""
    movable = [unit for unit in plan.units if unit in plan.resident and unit.kind != "attention"]
    gone = _evenly(movable, nbytes, enough=True)
    units: list[Unit] = []
    for unit in plan.units:
        units += cut_span(unit, most) if unit in gone else [unit]
    return tuple(units), plan.resident - gone


def _promote(plan: WindowPlan, nbytes: int, most: int) -> tuple[tuple[Unit, ...], frozenset[Unit]]:
    """Keep streamed units of at most `nbytes`, taken evenly from the depth."""
    movable = [unit for unit in plan.streamed if unit.kind != "attention"]
    return plan.units, plan.resident | _evenly(movable, nbytes, enough=False)


def _evenly(units: Sequence[Unit], nbytes: int, *, enough: bool) -> frozenset[Unit]:
    """Units of about `nbytes`, `enough` or at most, evenly spaced among all."""
    each = sum(map(page_bytes, units)) / max(1, len(units))
    count = min(len(units), max(1, round(nbytes / each))) if units else 0
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
