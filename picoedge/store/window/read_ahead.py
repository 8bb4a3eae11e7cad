"""Read-ahead: threads fill a ring with units in their order of use.

Units have sequence numbers that continue over the end of the cycle; 0 is the unit that reading
began with. Threads refer to `ReadAhead` alone, so that an unused `Window` can be collected.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial

from picoedge.errors import PicoedgeError
from picoedge.files import aborted_read, attempt
from picoedge.store.shards import Unit
from picoedge.store.window.io import WindowIO
from picoedge.store.window.plan import Ring, page_bytes


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

    Callers hold `room` or `arrived`, except for `read` and `stop`. A failed unit stops reading, but
    units before it are still read and used.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        ring: Ring,
        io: WindowIO,
        check: Callable[[Unit], None] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.units, self.usage = list(units), Usage()
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
        """Why that unit could not be read."""
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
            error = attempt(partial(self._check, unit), _name(unit))
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
        if self.halted or self._failed is not None:
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
