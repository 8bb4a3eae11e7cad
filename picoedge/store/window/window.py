"""The sliding window: units read in the background, ahead of whoever uses them.

    window.acquire(i)    waits until streamed unit i is there; units come in cyclic order
    window.release(i)    its place may be filled with a later one

Reading never stops at the end of a token: the first units of the next one are the same whatever
the token is.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

from picoedge.errors import StorageError
from picoedge.store.reads import READ_STALL_S, StallDetector, stalled_read, start_thread
from picoedge.store.units import Unit
from picoedge.store.window.io import WindowIO
from picoedge.store.window.plan import Ring
from picoedge.store.window.read_ahead import ReadAhead

_FAREWELL_S = 1.0  # given to reads under way when the window is closed


class Window:
    """Streams `units` through a ring. One thread acquires and releases; `readers` threads read.

    `check` is given each unit that has been read, before it is handed out, in a reader's thread.
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
        """Wait for unit `index`. Raises what its reading raised, StorageError of a dead disk.

        Units are expected in order; after an error or an interrupted pass any may come, and
        reading begins anew there.
        """
        ahead = self._ahead
        with ahead.news:
            if ahead.halted or ahead.expected != index:
                self._restart(index)
            if not ahead.ready:
                self._wait()

    def release(self, index: int) -> None:
        """Unit `index`, acquired before, has been used."""
        ahead = self._ahead
        assert ahead.expected == index, "it was not acquired"
        self._io.release(ahead.units[index])
        with ahead.room:
            ahead.advance()
            self.usage.units += 1

    def close(self) -> None:
        """Stop reading. Idempotent. A reader that hangs in a dead disk is left behind."""
        if self._ahead.closed:
            return
        self._ahead.stop()
        deadline = self._clock() + _FAREWELL_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - self._clock()))
        self._io.close()

    def _wait(self) -> None:
        """Until the expected unit is there. However this fails, the next unit restarts."""
        ahead, began = self._ahead, self._clock()
        assert not ahead.closed, "the window is closed"
        ahead.room.notify_all()  # an interrupt may have come between a release and its news
        try:
            self._listen(lambda: ahead.ready or ahead.error is not None)
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
        """Forget what was read ahead, and begin at unit `index`."""
        self._ahead.halt()
        self._listen(lambda: not self._ahead.in_flight)
        for unit in self._ahead.unused:
            self._io.release(unit)
        self._ahead.restart(index)

    def _listen(self, enough: Callable[[], bool]) -> None:
        """Let reads go on until it is enough. Raises StorageError where none ends for too long."""
        detector, heard = StallDetector(self._stall_s), 0
        while not enough():
            heard += self._ahead.news.wait(detector.poll_s)
            if detector.stalled(heard) and not enough():
                raise self._dead()

    def _dead(self) -> StorageError:
        waited = list(self._ahead.in_flight.values())
        unit, chunk = waited[0] if waited else (self._ahead.units[self._ahead.expected], 0)
        offset = self._io.begins(unit, chunk)
        return no_answer(self._folder, unit, self._stall_s, offset)


def no_answer(folder: Path, unit: Unit, stall_s: float, offset: int | None = None) -> StorageError:
    """The error for a read of `unit`, at byte `offset` (its first), that does not end."""
    offset = unit.offset if offset is None else offset
    return stalled_read(
        f"{folder / unit.file}, shard {unit.shard_at(offset)}, byte {offset}", stall_s
    )
