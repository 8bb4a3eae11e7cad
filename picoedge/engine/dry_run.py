"""What a model would take of this board, and how fast it would run: a plan, and nothing loaded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.engine.fit import (
    MemoryFit,
    Speeds,
    bytes_apart,
    fit_model,
    measure_speeds,
    resident_plan,
)
from picoedge.engine.loader import check_options, start_kernels
from picoedge.engine.open import read_pack
from picoedge.engine.options import OpenOptions
from picoedge.planner.memory import MemoryPlan
from picoedge.store.window.plan import Rates, span_bytes
from picoedge.units import MB

if TYPE_CHECKING:
    from picoedge.kernels.api import Kernels
    from picoedge.store.units import Unit


@dataclass(frozen=True, eq=False)
class Survey:
    """The plan that a conversation with a model would follow, and what it was made from."""

    model: str
    plan: MemoryPlan
    whole: bool  # all of it mapped, nothing streamed
    apart: int  # bytes mapped beside the plan's: 0 where something is streamed
    speeds: Speeds
    kernels: str
    threads: int

    @property
    def total(self) -> int:
        """Bytes taken when the context is full."""
        return self.plan.total + self.apart

    def to_json(self) -> dict[str, Any]:
        """The plan's fields, its layers (the head is the one after the last), and the speeds."""
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


def survey_model(path: Path, options: OpenOptions) -> Survey:
    """Plan for the pack at `path` as `opening.open_session` would, and stop there.

    Raises what that raises before it loads: ModelError, TextError, UsageError,
    MemoryBudgetError, StorageError.
    """
    check_options(options)
    pack, *held = read_pack(path)
    kernels = start_kernels(options)
    try:
        fit = fit_model(pack, kernels, options)
        del held  # until here: a tokenizer is part of what a conversation takes
        return _survey(fit, measure_speeds(pack, kernels, fit.budget.total), kernels)
    finally:
        kernels.close()


def _survey(fit: MemoryFit, speeds: Speeds, kernels: Kernels) -> Survey:
    plan, apart = fit.plan, 0
    if plan is None:
        rates = Rates(speeds.storage.effective_mapped, speeds.compute)
        plan, apart = resident_plan(fit.load, fit.budget, rates), bytes_apart(fit.pack)
    whole = not plan.window.streamed
    return Survey(fit.pack.name, plan, whole, apart, speeds, kernels.name, kernels.threads)


def _by_layer(units: tuple[Unit, ...], chosen: frozenset[Unit]) -> list[dict[str, int]]:
    """Bytes of the chosen units of each kind in each layer."""
    layers: dict[int, Counter[str]] = {}
    for unit in units:
        counts = layers.setdefault(unit.layer, Counter())
        counts[unit.kind] += span_bytes(unit) if unit in chosen else 0
    return [{"layer": layer, **counts} for layer, counts in layers.items()]
