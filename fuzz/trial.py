"""One input on its parser, and the faults that count."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fuzz.target import EXTRA_BYTES, HANG_S, Run, Target
from picoedge.errors import PicoedgeError
from picoedge.host.resources import peak_rss_bytes, rss_bytes

AGAIN_S = 0.5  # between two looks at an input that had no core for HANG_S
LONGEST_TRACE = 6


@dataclass(frozen=True)
class Fault:
    """An input that its parser failed on. `what` names the error and where it was raised."""

    target: str
    what: str
    data: bytes
    number: int

    @property
    def kind(self) -> str:
        """The error and the function that raised it: faults of one kind are told once."""
        return self.what.partition(": ")[0].partition(" < ")[0]


class HangError(BaseException):
    """An input took more than HANG_S."""


class Stopwatch:
    """Seconds that a process ran or slept: time for which it had no core does not count.

    Otherwise inputs on a busy machine would hang.
    """

    def __init__(self, pid: int | str = "self") -> None:
        self._schedule = Path(f"/proc/{pid}/schedstat")
        self._began = self._now()

    def seconds(self) -> float:
        """Since the start."""
        return self._now() - self._began

    def _now(self) -> float:
        try:
            ready_ns = int(self._schedule.read_bytes().split()[1])
        except (OSError, IndexError):  # not every kernel counts, and the process may be gone
            ready_ns = 0
        return time.monotonic() - ready_ns / 1e9


def try_input(target: Target, run: Run, data: bytes, number: int = -1) -> Fault | None:
    """The fault of one input, if any. Only for the main thread: it uses the alarm."""
    watch, is_over = Stopwatch(), False

    def on_alarm(signal_number: int, frame: FrameType | None) -> None:
        nonlocal is_over
        if not is_over and watch.seconds() >= HANG_S:
            is_over = True
            raise HangError(f"more than {HANG_S:g} s")

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, HANG_S, AGAIN_S)
    try:
        run(data)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also a panic of a library, which is no Exception
        if not isinstance(error, (PicoedgeError, *target.also)):
            return Fault(target.name, _what(error), data, number)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if is_over:  # the parser took the alarm for an error of the file
        return Fault(target.name, f"HangError: more than {HANG_S:g} s", data, number)
    return None


def _what(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"{Path(f.filename).name}:{f.name}" for f in frames if "picoedge" in f.filename]
    where = " < ".join(reversed(ours[-LONGEST_TRACE:]))
    return f"{type(error).__name__} in {where}: {str(error)[:120]}"


# -- memory --------------------------------------------------------------------------------------


def reset_peak() -> int:
    """Forget the largest size so far; the size now."""
    Path("/proc/self/clear_refs").write_text("5")
    return rss_bytes()


def memory_faults(
    target: Target, run: Run, before: int, inputs: Iterable[tuple[int, bytes]]
) -> list[Fault]:
    """Of inputs just tried together, those that take too much: each is tried again alone.

    `before`: the size of the process before the first.
    """
    if peak_rss_bytes() - before <= EXTRA_BYTES:
        return []
    faults = []
    for number, data in inputs:
        alone = reset_peak()
        try_input(target, run, data)
        grown = peak_rss_bytes() - alone
        if grown > len(data) + EXTRA_BYTES:
            what = f"memory: {grown >> 20} MB for {len(data)} bytes"
            faults.append(Fault(target.name, what, data, number))
    return faults
