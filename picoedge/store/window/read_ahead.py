"""Window: threads fill a ring with units in their order of use, ahead of that use.

    window.acquire(i)    waits until unit i has been read; units come in cyclic order
    window.release(i)    lets its place be filled with a later unit

Reading goes on across tokens: the next token needs the same units, whatever it is. Units have
sequence numbers that continue over the end of the cycle; 0 is the unit that reading began with.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path

from picoedge.errors import PicoedgeError, StorageError
from picoedge.files import (
    READ_STALL_S,
    StallDetector,
    aborted_read,
    attempt,
    stalled_read,
    start_thread,
)
from picoedge.kernels.arrays import U8
from picoedge.store.shards import Unit
from picoedge.store.window.io import WindowIO
from picoedge.store.window.plan import Ring, page_bytes

CheckUnit = Callable[[Unit, U8], None]
_CLOSE_S = 1.0  # to wait for reads in flight when the window is closed


@dataclass
class Usage:
    """Counters of a window."""

    bytes_read: int = 0
    wait_s: float = 0.0  # spent waiting for reads
    units: int = 0  # used
    busy_s: float = 0.0  # with at least one read in flight
    longest_wait_s: float = 0.0  # for one unit

    def __add__(self, other: Usage) -> Usage:
        longest_s = max(self.longest_wait_s, other.longest_wait_s)
        sums = [a + b for a, b in zip(astuple(self), astuple(other), strict=True)]
        return replace(Usage(*sums), longest_wait_s=longest_s)

    def __sub__(self, other: Usage) -> Usage:
        sums = [a - b for a, b in zip(astuple(self), astuple(other), strict=True)]
        return replace(Usage(*sums), longest_wait_s=self.longest_wait_s)


class ReadAhead:
    """State shared by the readers and the user of units.

    Readers refer to it alone, so that an unused `Window` can be collected. Callers hold `room` or
    `arrived`, except for `read` and `stop`. A failed unit stops reading, but units before it are
    still read and used.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        ring: Ring,
        io: WindowIO,
        check: CheckUnit | None,
        clock: Callable[[], float],
        *,
        once: bool,
    ) -> None:
        self.units, self.usage = list(units), Usage()
        self._last = len(units) if once else None  # sequence number not to be read
        self._clock, self._began = clock, 0.0  # start of the oldest read in flight
        self._ring, self._io, self._check = ring, io, check
        # Reentrant: the garbage collector may call `stop` in a thread that holds the lock.
        lock = threading.RLock()
        self.room, self.arrived = threading.Condition(lock), threading.Condition(lock)
        self.in_flight: dict[int, tuple[Unit, int]] = {}  # by thread; oldest first
        self.closed = False
        self.restart(0)

    # -- user -----------------------------------------------------------------------

    @property
    def expected(self) -> int:
        """Index of the unit to be used next."""
        return (self._base + self._used) % len(self.units)

    @property
    def ready(self) -> bool:
        """Whether that unit has been read."""
        return self._used in self._complete_units

    @property
    def error(self) -> PicoedgeError | None:
        """The error that kept that unit from being read."""
        if self._failed is not None and self._failed[0] <= self._used:
            return self._failed[1]
        return None

    @property
    def unused(self) -> list[Unit]:
        """The unit to be used next, and later ones that may be partly read."""
        count = min(self._next + 1 - self._used, len(self.units))
        return [self._at(self._used + i) for i in range(count)]

    def advance(self) -> None:
        """Free the place of the unit used last."""
        self._used += 1
        self._complete_units.discard(self._used - 1)
        self.room.notify_all()

    def halt(self) -> None:
        """Begin no read until `restart`."""
        self.halted = True

    def restart(self, index: int) -> None:
        """Restart at unit `index` with nothing read. No read may be in flight."""
        assert not self.in_flight, "an old read would overwrite a new one"
        self._base = index
        self._used = 0  # sequence number to be used next
        self._next = 0  # sequence number being read
        self._chunk = 0  # its next chunk
        self._missing: dict[int, int] = {}  # sequence number -> unread chunks
        self._complete_units: set[int] = set()  # sequence numbers read
        self._failed: tuple[int, PicoedgeError] | None = None  # the first unreadable one
        self.halted = False
        with self.room:
            self.room.notify_all()

    def stop(self) -> None:
        """End the readers, each after its current read. Idempotent."""
        with self.room:
            self.closed = True
            self.room.notify_all()

    def _at(self, sequence: int) -> Unit:
        return self.units[(self._base + sequence) % len(self.units)]

    # -- readers ---------------------------------------------------------------------

    def read(self) -> None:
        """Read chunks until `stop`: body of a reader thread."""
        me = threading.get_ident()
        while True:
            with self.room:
                taken = self._take()
                if taken is None:
                    return
                sequence, unit, chunk = taken
                self._began = self._began if self.in_flight else self._clock()
                self.in_flight[me] = unit, chunk
            complete = False
            error: PicoedgeError | None = None
            try:
                complete, error = self._read(sequence, unit, chunk)
            except BaseException:
                error = aborted_read(_name(unit))
                raise
            finally:
                with self.arrived:
                    del self.in_flight[me]
                    now = self._clock()
                    self.usage.busy_s += now - self._began
                    self._began = now
                    self._keep(sequence, unit, complete, error)
                    self.arrived.notify_all()

    def _read(self, sequence: int, unit: Unit, chunk: int) -> tuple[bool, PicoedgeError | None]:
        """Read one chunk; return whether its unit is complete, and the unit's error."""
        error = attempt(partial(self._io.fill, unit, chunk), _name(unit))
        complete = error is None and self._complete(sequence)
        if complete and self._check is not None:
            error = attempt(partial(self._check, unit, self._io.array(unit)), _name(unit))
        return complete, error

    def _take(self) -> tuple[int, Unit, int] | None:
        """Wait for room; return (sequence number, unit, chunk), or None if closed."""
        while not self.closed and not self._free():
            self.room.wait()
        if self.closed:
            return None
        sequence, chunk = self._next, self._chunk
        unit = self._at(sequence)
        chunks = self._io.chunks(unit)
        self._missing.setdefault(sequence, chunks)
        self._chunk += 1
        if self._chunk == chunks:
            self._next, self._chunk = sequence + 1, 0
        return sequence, unit, chunk

    def _free(self) -> bool:
        """Whether all units that overlap the next one's place in the ring have been used."""
        if self.halted or self._failed is not None or self._next == self._last:
            return False
        behind = self._ring.behind[(self._base + self._next) % len(self.units)]
        return self._used > self._next - behind

    def _complete(self, sequence: int) -> bool:
        """Count a chunk that was read; return whether it was its unit's last."""
        with self.room:
            self._missing[sequence] -= 1
            if not self._missing[sequence]:
                del self._missing[sequence]
                return True
            return False

    def _keep(self, sequence: int, unit: Unit, complete: bool, error: PicoedgeError | None) -> None:
        if error is not None:
            if self._failed is None or sequence < self._failed[0]:
                self._failed = sequence, error
        elif complete:
            self._complete_units.add(sequence)
            self.usage.bytes_read += page_bytes(unit)


def _name(unit: Unit) -> str:
    return f"{unit.file}, shard {unit.shard_at(unit.offset)}"


class Window:
    """Streams `units` through a ring, read by `readers` threads, used by one.

    `check(unit, bytes)` runs in a reader thread after the unit has been read; it may raise.
    `once`: reading ends with the last unit, instead of beginning again with the first.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        ring: Ring,
        io: WindowIO,
        *,
        folder: Path,
        readers: int,
        check: CheckUnit | None = None,
        once: bool = False,
        clock: Callable[[], float] = time.monotonic,
        stall_s: float = READ_STALL_S,
    ) -> None:
        assert units, "nothing to stream"
        self.io, self._folder, self._clock, self._stall_s = io, folder, clock, stall_s
        self._ahead = ahead = ReadAhead(units, ring, io, check, clock, once=once)
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
        self.io.release(ahead.units[index])
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
        self.io.close()

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
            self.io.release(unit)
        self._ahead.restart(index)

    def _wait_until(self, enough: Callable[[], bool]) -> None:
        """Wait until `enough()`. Raises StorageError where no read finishes for `stall_s`."""
        detector, finished = StallDetector(self._stall_s), 0
        while not enough():
            finished += self._ahead.arrived.wait(detector.poll_s)
            if detector.stalled(finished) and not enough():
                reads = list(self._ahead.in_flight.values())
                unit, chunk = reads[0] if reads else (self._ahead.units[self._ahead.expected], 0)
                place = unit.place(self._folder, self.io.begins(unit, chunk))
                raise stalled_read(place, self._stall_s)
