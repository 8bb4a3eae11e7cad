"""Adapt the memory plan while decoding: measure speeds, move units in or out of memory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from picoedge.store.window.plan import Rates, WindowPlan
from picoedge.store.window.replan import adjusted

if TYPE_CHECKING:
    from picoedge.model.transformer import Transformer
    from picoedge.planner.memory import MemoryPlan
    from picoedge.store.window.read_ahead import Usage
    from picoedge.store.window.weights import StreamedWeights

TOKENS = 8  # decoded between two measurements
_DEPARTURE = 1.25  # replan where a speed differs from the plan's by this factor, either way
_GAIN = 0.99  # of the seconds a token: a smaller gain is not worth reading units again


class Adapter:
    """Called after each pass of a model; moves units where that makes decoding quicker.

    Measures passes of one token only, not prompts. `plan` is the present plan.
    """

    def __init__(
        self,
        model: Transformer,
        holding: StreamedWeights,
        plan: MemoryPlan,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.plan = plan
        self._model, self._holding, self._clock = model, holding, clock
        self._begin()

    def __call__(self, tokens: int) -> None:
        """Count a pass of `tokens`; every TOKENS single ones compare speeds with the plan."""
        if tokens != 1 or not self.plan.window.streamed:
            self._begin()
            return
        self._tokens += 1
        if self._tokens <= TOKENS:
            return
        rates = self._measured()
        if _departs(rates, self.plan.reading.rates):
            self._replan(rates)
        self._begin()

    @property
    def usage(self) -> Usage:
        """Reads and waits of the window so far."""
        return self._holding.usage

    def _begin(self) -> None:
        self._tokens = 0
        self._since, self._usage = self._clock(), self._holding.usage

    def _measured(self) -> Rates:
        """Speeds since the last measurement."""
        usage, elapsed = self._holding.usage - self._usage, self._clock() - self._since
        rates, window = self.plan.reading.rates, self.plan.window
        compute_s = max(elapsed - usage.wait_s, 1e-9) / self._tokens
        disk = usage.bytes_read / usage.busy_s if usage.busy_s > 0 else rates.disk
        return dataclasses.replace(rates, disk=disk, compute=window.touched_bytes / compute_s)

    def _replan(self, rates: Rates) -> None:
        reading = dataclasses.replace(self.plan.reading, rates=rates)
        window = adjusted(self.plan.window, rates, _GAIN)
        if window is not self.plan.window:
            self._change(window)
        self.plan = dataclasses.replace(self.plan, reading=reading, window=window)

    def _change(self, window: WindowPlan) -> None:
        """Change the resident set; if that fails, restore the old one and raise."""
        self._model.unbind()
        try:
            self._holding.replan(window)
        except BaseException:
            self._holding.replan(self.plan.window)
            self._model.bind()
            raise
        self._model.bind()


def _departs(rates: Rates, planned: Rates) -> bool:
    pairs = ((rates.disk, planned.disk), (rates.compute, planned.compute))
    return any(max(a / b, b / a) > _DEPARTURE for a, b in pairs)
