"""A window that follows the board: speeds are measured while decoding, and the plan with them."""

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

TOKENS = 8  # between two looks at the speeds
_DEPARTURE = 1.25  # of a speed from the plan's, either way, that is worth another plan
_GAIN = 0.99  # of the seconds a token; less is not worth reading units anew


class Adapter:
    """Called after each pass of a model; changes how its weights are held where that is quicker.

    Only single tokens count: what a prompt takes is another thing. `plan` is what is followed.
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
        """`tokens` have been done."""
        if tokens != 1 or not self.plan.window.streamed:
            self._begin()
            return
        self._tokens += 1
        if self._tokens <= TOKENS:
            return
        rates = self._measured()
        if _departs(rates, self.plan.reading.rates):
            self._follow(rates)
        self._begin()

    @property
    def usage(self) -> Usage:
        """What the windows have done so far."""
        return self._holding.usage

    def _begin(self) -> None:
        self._tokens = 0
        self._since, self._usage = self._clock(), self._holding.usage

    def _measured(self) -> Rates:
        """Speeds since the last look."""
        usage, elapsed = self._holding.usage - self._usage, self._clock() - self._since
        rates, window = self.plan.reading.rates, self.plan.window
        compute_s = max(elapsed - usage.wait_s, 1e-9) / self._tokens
        disk = usage.bytes_read / usage.busy_s if usage.busy_s > 0 else rates.disk
        return dataclasses.replace(rates, disk=disk, compute=window.touched_bytes / compute_s)

    def _follow(self, rates: Rates) -> None:
        reading = dataclasses.replace(self.plan.reading, rates=rates)
        window = adjusted(self.plan.window, rates, _GAIN)
        if window is not self.plan.window:
            self._change(window)
        self.plan = dataclasses.replace(self.plan, reading=reading, window=window)

    def _change(self, window: WindowPlan) -> None:
        """Hold the model by another plan; where that fails, as it was, if the storage answers."""
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
