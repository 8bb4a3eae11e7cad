"""Sliding window: streamed units, read in the background ahead of their use.

    window.acquire(i)    waits until streamed unit i has been read; units come in cyclic order
    window.release(i)    lets its place be filled with a later unit

Reading goes on across tokens: the next token needs the same units, whatever it is.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

from picoedge.errors import StorageError
from picoedge.files import READ_STALL_S, StallDetector, stalled_read, start_thread
from picoedge.store.shards import Unit
from picoedge.store.window.io import WindowIO
from picoedge.store.window.plan import Ring
from picoedge.store.window.read_ahead import ReadAhead

_CLOSE_S = 1.0  # to wait for reads in flight when the window is closed


class Window:
    """Streams `units` through a ring, read by `readers` threads, used by one.

    `check(unit)` runs in a reader thread after the unit has been read; it may raise.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        ring: Ring,
        io: WindowIO,
        *,
        folder: Path,
        readers: int,
        check: Callable[[Unit], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        stall_s: float = READ_STALL_S,
    ) -> None:
        assert units, "nothing to stream"
        self._io, self._folder, self._clock, self._stall_s = io, folder, clock, stall_s
        self._ahead = ahead = ReadAhead(units, ring, io, check, clock)
        self.usage = ahead.usage
        weakref.finalize(self, ahead.stop)
        self._threads = [start_thread(ahead.read, f"window-{i}") for i in range(readers)]

    def acquire(self, index: int) -> None:
        """Wait for unit `index`. Raises the error of its read, StorageError for a dead disk.

        Units must come in order, except after an error or an interrupted pass: then reading
        restarts at `index`.
        """
        ahead = self._ahead
        with ahead.arrived:
            if ahead.halted or ahead.expected != index:
                self._restart(index)
            if not ahead.ready:
                self._wait()

    def release(self, index: int) -> None:
        """Mark unit `index`, which must be acquired, as used."""
        ahead = self._ahead
        assert ahead.expected == index, "it was not acquired"
        self._io.release(ahead.units[index])
        with ahead.room:
            ahead.advance()
            self.usage.units += 1

    def close(self) -> None:
        """Stop reading. Idempotent. A reader that hangs on a dead disk is abandoned."""
        if self._ahead.closed:
            return
        self._ahead.stop()
        deadline = self._clock() + _CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - self._clock()))
        self._io.close()

    def _wait(self) -> None:
        """Wait for the expected unit. After any failure the next `acquire` restarts reading."""
        ahead, began = self._ahead, self._clock()
        assert not ahead.closed, "the window is closed"
        ahead.room.notify_all()  # an interrupt may have come before a release notified
        try:
            self._wait_until(lambda: ahead.ready or ahead.error is not None)
        except StorageError:
            ahead.halt()
            raise
        if ahead.error is not None:
            ahead.halt()
            raise ahead.error
        waited = self._clock() - began
        self.usage.wait_s += waited
        self.usage.longest_wait_s = max(self.usage.longest_wait_s, waited)

    def _restart(self, index: int) -> None:
        """Discard what was read ahead, and restart at unit `index`."""
        self._ahead.halt()
        self._wait_until(lambda: not self._ahead.in_flight)
        for unit in self._ahead.unused:
            self._io.release(unit)
        self._ahead.restart(index)

    def _wait_until(self, enough: Callable[[], bool]) -> None:
        """Wait until `enough()`. Raises StorageError where no read finishes for `stall_s`."""
        detector, finished = StallDetector(self._stall_s), 0
        while not enough():
            finished += self._ahead.arrived.wait(detector.poll_s)
            if detector.stalled(finished) and not enough():
                reads = list(self._ahead.in_flight.values())
                unit, chunk = reads[0] if reads else (self._ahead.units[self._ahead.expected], 0)
                offset = self._io.begins(unit, chunk)
                raise no_answer(self._folder, unit, self._stall_s, offset)


def no_answer(folder: Path, unit: Unit, stall_s: float, offset: int) -> StorageError:
    """The error for a read of `unit` at file offset `offset` that does not finish."""
    return stalled_read(
        f"{folder / unit.file}, shard {unit.shard_at(offset)}, byte {offset}", stall_s
    )
