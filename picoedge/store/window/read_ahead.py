"""Reading ahead: threads that fill a ring of places with units, in the order they are used in.

Units are counted by sequence numbers that go on over the end of the cycle: 0 is the unit that
reading began with. Threads know this object only, so a window that is forgotten can be collected.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from picoedge.errors import PicoedgeError
from picoedge.store.reads import aborted_read, attempt
from picoedge.store.units import Unit
from picoedge.store.window.io import WindowIO
from picoedge.store.window.plan import Ring, page_bytes


@dataclass
class Usage:
    """What a window has done so far."""

    bytes_read: int = 0
    wait_s: float = 0.0  # spent by whoever uses the units, waiting for them
    units: int = 0  # used
    busy_s: float = 0.0  # with at least one read under way
    longest_wait_s: float = 0.0  # for one unit

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.bytes_read + other.bytes_read,
            self.wait_s + other.wait_s,
            self.units + other.units,
            self.busy_s + other.busy_s,
            max(self.longest_wait_s, other.longest_wait_s),
        )

    def __sub__(self, other: Usage) -> Usage:
        return Usage(
            self.bytes_read - other.bytes_read,
            self.wait_s - other.wait_s,
            self.units - other.units,
            self.busy_s - other.busy_s,
            self.longest_wait_s,
        )


class ReadAhead:
    """What readers and the user of units share. But for `read` and `stop`: hold `room` or `news`.

    An error belongs to its unit: those before it are still read and handed out, those after it
    are not begun.
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
        self._clock, self._began = clock, 0.0  # when the oldest read under way began
        self._ring, self._io, self._check = ring, io, check
        lock = threading.RLock()  # the garbage collector may call `stop` in a thread that holds it
        self.room, self.news = threading.Condition(lock), threading.Condition(lock)
        self.in_flight: dict[int, tuple[Unit, int]] = {}  # by thread, the oldest first: its chunk
        self.closed = False
        self.restart(0)

    # -- the user's side -----------------------------------------------------------------------

    @property
    def expected(self) -> int:
        """Index of the unit to be used next."""
        return (self._base + self._used) % len(self.units)

    @property
    def ready(self) -> bool:
        """Whether that unit is there."""
        return self._used in self._there

    @property
    def error(self) -> PicoedgeError | None:
        """Why that unit will not come."""
        if self._failed is not None and self._failed[0] <= self._used:
            return self._failed[1]
        return None

    @property
    def unused(self) -> list[Unit]:
        """The unit to be used next, and those after it of which something may have been read."""
        count = min(self._next + 1 - self._used, len(self.units))
        return [self._at(self._used + i) for i in range(count)]

    def advance(self) -> None:
        """The unit has been used: its place is free."""
        self._used += 1
        self._there.discard(self._used - 1)
        self.room.notify_all()

    def halt(self) -> None:
        """Begin no further read until `restart`."""
        self.halted = True

    def restart(self, index: int) -> None:
        """Begin at unit `index`, with nothing read. Nothing may be in flight."""
        assert not self.in_flight, "it would be written over what is read next"
        self._base = index
        self._used = 0  # sequence number of the unit to be used next
        self._next = 0  # sequence number of the unit that is being read
        self._chunk = 0  # the next chunk of it
        self._missing: dict[int, int] = {}  # sequence number -> chunks that have not arrived
        self._there: set[int] = set()  # sequence numbers that may be used
        self._failed: tuple[int, PicoedgeError] | None = None  # the first that could not be read
        self.halted = False
        with self.room:
            self.room.notify_all()

    def stop(self) -> None:
        """Have the readers end, each after the read it is at. Idempotent."""
        with self.room:
            self.closed = True
            self.room.notify_all()

    def _at(self, sequence: int) -> Unit:
        return self.units[(self._base + sequence) % len(self.units)]

    # -- the readers' side ---------------------------------------------------------------------

    def read(self) -> None:
        """Read chunk after chunk, until `stop`: what a reader's thread runs."""
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
            error: PicoedgeError | None = aborted_read(_name(unit))
            try:
                complete, error = self._read(sequence, unit, chunk)
            finally:
                with self.news:
                    del self.in_flight[me]
                    now = self._clock()
                    self.usage.busy_s += now - self._began
                    self._began = now
                    self._keep(sequence, unit, complete, error)
                    self.news.notify_all()

    def _read(self, sequence: int, unit: Unit, chunk: int) -> tuple[bool, PicoedgeError | None]:
        """One read; whether it was the last one of its unit, and why that cannot be used."""
        error = attempt(partial(self._io.fill, unit, chunk), _name(unit))
        complete = error is None and self._complete(sequence)
        if complete and self._check is not None:
            error = attempt(partial(self._check, unit), _name(unit))
        return complete, error

    def _take(self) -> tuple[int, Unit, int] | None:
        """The next chunk, as (sequence number, unit, chunk), when there is room; None: closed."""
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
        """Whether the next unit's place in the ring has been used by all who share it."""
        if self.halted or self._failed is not None:
            return False
        behind = self._ring.behind[(self._base + self._next) % len(self.units)]
        return self._used > self._next - behind

    def _complete(self, sequence: int) -> bool:
        """Count a chunk that has arrived; whether it was the last one of its unit."""
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
            self._there.add(sequence)
            self.usage.bytes_read += page_bytes(unit)


def _name(unit: Unit) -> str:
    return f"{unit.file}, shard {unit.shard_at(unit.offset)}"
