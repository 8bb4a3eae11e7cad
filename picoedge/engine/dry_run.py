"""Dry run: the memory plan and speed of a conversation on this board, without loading a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from picoedge.engine.fit import (
    MemoryFit,
    Speeds,
    bytes_apart,
    fit_model,
    measure_speeds,
    resident_plan,
)
from picoedge.engine.open import OpenPack, start_kernels
from picoedge.planner.memory import MemoryPlan
from picoedge.store.window.plan import Rates, page_bytes
from picoedge.units import MB

if TYPE_CHECKING:
    from picoedge.kernels.api import Kernels
    from picoedge.store.shards import Unit


@dataclass(frozen=True, eq=False)
class SessionPlan:
    """The memory plan of a conversation with a model, and the measured speeds behind it."""

    model: str
    plan: MemoryPlan
    whole: bool  # all weights mapped, nothing streamed
    apart: int  # bytes mapped beyond the plan's; 0 with streaming
    speeds: Speeds
    kernels: str
    threads: int

    @property
    def total(self) -> int:
        """Bytes taken when the context is full."""
        return self.plan.total + self.apart

    def to_json(self) -> dict[str, Any]:
        """The plan's fields, its layers (the head counts as the one after the last), and speeds."""
        storage, window = self.speeds.storage, self.plan.window
        return {
            "model": self.model,
            "whole": self.whole,
            **self.plan.to_json(),
            "apart_mb": self.apart / MB,
            "total_mb": self.total / MB,
            "resident": _by_layer(window.units, window.resident),
            "streamed": _by_layer(window.units, frozenset(window.streamed)),
            "storage": {
                "device": storage.device,
                "direct_bytes_per_s": storage.direct,
                "mapped_bytes_per_s": storage.mapped,
                "limit_bytes_per_s": storage.limit,
            },
            "kernels": {
                "name": self.kernels,
                "threads": self.threads,
                "weight_bytes_per_s": self.speeds.compute,
            },
        }


def plan_session(opened: OpenPack) -> SessionPlan:
    """Plan as `open_session` would for a conversation, and load nothing.

    Raises MemoryBudgetError, StorageError.
    """
    kernels = start_kernels(opened.options)
    try:
        fit = fit_model(opened.pack, kernels, opened.options)
        opened.take_tokenizer()  # until here: a conversation keeps it in memory
        return _session_plan(fit, measure_speeds(opened.pack, kernels, fit.budget.total), kernels)
    finally:
        kernels.close()


def _session_plan(fit: MemoryFit, speeds: Speeds, kernels: Kernels) -> SessionPlan:
    plan, apart = fit.plan, 0
    if plan is None:
        rates = Rates(speeds.storage.effective_mapped, speeds.compute)
        plan, apart = resident_plan(fit.load, fit.budget, rates), bytes_apart(fit.pack)
    whole = not plan.window.streamed
    return SessionPlan(fit.pack.name, plan, whole, apart, speeds, kernels.name, kernels.threads)


def _by_layer(units: tuple[Unit, ...], chosen: frozenset[Unit]) -> list[dict[str, int]]:
    """Bytes of the chosen units by layer and kind."""
    layers: dict[int, Counter[str]] = {}
    for unit in units:
        counts = layers.setdefault(unit.layer, Counter())
        counts[unit.kind] += page_bytes(unit) if unit in chosen else 0
    return [{"layer": layer, **counts} for layer, counts in layers.items()]
