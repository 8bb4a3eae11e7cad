"""The learning rate of each step: linear warm-up, then a cosine down to a tenth. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from picoedge.kernels.elementary import cosine_of_half_turns

FLOOR = 0.1  # of the peak, at the last step


@dataclass(frozen=True)
class Schedule:
    """`peak` is reached after `warmup` of `steps` steps (Loshchilov and Hutter 2017)."""

    peak: float
    warmup: int
    steps: int

    def rate(self, step: int) -> float:
        """The rate of a step, which counts from 1."""
        if step <= self.warmup:
            return self.peak * step / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + cosine_of_half_turns(done)))
