"""The progress of a run on a terminal, or in a file: one line.

step 412/2000  loss 3.212  held out 3.401  5.2k tok/s  12 min left  210 MB
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from picoedge.errors import PicoedgeError
from picoedge.host.resources import rss_bytes
from picoedge.sanitize import one_line
from picoedge.train.run.loop import RunWatcher
from picoedge.train.step.trainer import StepResult
from picoedge.units import format_size

_REDRAW_S = 0.2
_LINE_S = 30.0  # between two lines where nothing can be redrawn
_SMOOTH = 0.8  # of the shown loss and speed: the share of what they were before


class ProgressReport(RunWatcher):
    """Draws the line on `stream`, which may go away: training does not end by that."""

    def __init__(
        self, stream: TextIO, steps: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._steps, self._clock = stream, steps, clock
        self._redraws = stream.isatty()
        self._loss = self._step_s = self._tokens = 0.0
        self._held_out: float | None = None
        self._stepped_s, self._drawn_s = clock(), 0.0
        self._is_drawn = False
        self._done = 0

    def stepped(self, result: StepResult, tokens: int) -> None:
        """See `RunWatcher`."""
        now_s = self._clock()
        keep = min(_SMOOTH, self._done / (self._done + 1))
        self._step_s = keep * self._step_s + (1 - keep) * (now_s - self._stepped_s)
        self._tokens = keep * self._tokens + (1 - keep) * tokens
        self._loss = keep * self._loss + (1 - keep) * result.loss
        self._stepped_s, self._done = now_s, self._done + 1
        due_s = _REDRAW_S if self._redraws else _LINE_S
        if not self._drawn_s or now_s - self._drawn_s >= due_s or result.step == self._steps:
            self._drawn_s = now_s
            self._draw(self.line(result.step))

    def line(self, step: int) -> str:
        """The line after a step."""
        held_out = "" if self._held_out is None else f"  held out {self._held_out:.3f}"
        rate = self._tokens / self._step_s if self._step_s else 0.0
        left = format_time((self._steps - step) * self._step_s)
        return (
            f"step {step}/{self._steps}  loss {self._loss:.3f}{held_out}  "
            f"{format_rate(rate)} tok/s  {left} left  {format_size(rss_bytes())}"
        )

    def evaluated(self, step: int, loss: float, *, is_best: bool) -> None:
        """See `RunWatcher`."""
        self._held_out = loss
        self._stepped_s = self._clock()  # its time is no step's

    def saved(self, step: int, path: Path) -> None:
        """See `RunWatcher`."""
        self._stepped_s = self._clock()

    def not_saved(self, step: int, error: PicoedgeError) -> None:
        """See `RunWatcher`."""
        self.say(f"note: step {step} could not be kept: {error}; training goes on")

    def say(self, text: str) -> None:
        """A line that stays. What it tells of has taken no step's time."""
        self.erase()
        self._write(f"{one_line(text)}\n")
        self._stepped_s = self._clock()

    def erase(self) -> None:
        """Leave a clean line. Idempotent."""
        if self._is_drawn:
            self._is_drawn = False
            self._write("\r\x1b[K")

    def _draw(self, line: str) -> None:
        if self._redraws:
            self._is_drawn = True
            self._write(f"\r\x1b[K{line}")
        else:
            self._write(f"{line}\n")

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # the terminal is gone, or the reader of a pipe
            self._stream.write(text)
            self._stream.flush()


def format_rate(per_s: float) -> str:
    """`740`, `5.2k`, `31k`."""
    if per_s < 1000:
        return f"{per_s:.0f}"
    return f"{per_s / 1000:.1f}k" if per_s < 10_000 else f"{per_s / 1000:.0f}k"


def format_time(seconds: float) -> str:
    """`48 s`, `12 min`, `3 h 20 min`, `2 d 5 h`: to the nearest of its smaller unit."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"
