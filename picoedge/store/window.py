"""The sliding window: units read in the background, ahead of whoever uses them.

    window.acquire(i)    waits until streamed unit i is there; units come in cyclic order
    window.release(i)    its place may be filled with a later one

Reading never stops at the end of a token: the first units of the next one are the same whatever
the token is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from picoedge.errors import PicoedgeError, StorageError
from picoedge.store.units import Unit
from picoedge.store.window_io import WindowIO
from picoedge.store.window_plan import Ring, span_bytes

PATIENCE_S = 30.0  # without a single finished read, after which a disk is taken for dead
_LOOK_S = 1.0  # between two looks at whether it is


@dataclass
class Usage:
    """What a window has done so far."""

    bytes_read: int = 0
    wait_s: float = 0.0  # spent by whoever uses the units, waiting for them
    units: int = 0  # used


class Window:
    """Streams `units` through a ring. One thread acquires and releases; `readers` threads read.

    `check` is given each unit that has been read, before it is handed out.
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
        patience_s: float = PATIENCE_S,
    ) -> None:
        assert units, "nothing to stream"
        self.usage = Usage()
        self._units, self._ring, self._io, self._folder = list(units), ring, io, folder
        self._check, self._clock, self._patience_s = check, clock, patience_s
        lock = threading.Lock()
        self._room, self._news = threading.Condition(lock), threading.Condition(lock)
        self._base = 0  # unit that sequence number 0 stands for
        self._used = 0  # units released, which is the sequence number of the one to use next
        self._next = 0  # sequence number that is being read
        self._chunk = 0  # next chunk of it
        self._unread: dict[int, int] = {}  # sequence number -> chunks that have not arrived
        self._there: set[int] = set()  # sequence numbers that may be used
        self._in_flight: dict[int, tuple[Unit, float]] = {}  # by thread: what is read, since when
        self._error: PicoedgeError | None = None
        self._halted = self._closed = False
        self._heard = clock()  # when a read last finished
        self._threads = [
            threading.Thread(target=self._read, name=f"window-{i}", daemon=True)
            for i in range(readers)
        ]
        for thread in self._threads:
            thread.start()

    # -- the user's side -----------------------------------------------------------------------

    def acquire(self, index: int) -> None:
        """Wait for unit `index`. Raises what its reading raised, StorageError of a dead disk.

        Units are expected in order; after an interrupted pass any may come, and reading begins
        anew there.
        """
        with self._news:
            if self._error is not None or (self._base + self._used) % len(self._units) != index:
                self._restart(index)
            if self._used not in self._there:
                self._wait_for(self._used)

    def release(self, index: int) -> None:
        """Unit `index`, acquired before, has been used."""
        self._io.release(self._units[index])
        with self._room:
            self._there.remove(self._used)
            self._used += 1
            self.usage.units += 1
            self._room.notify_all()

    def close(self) -> None:
        """Stop reading. Idempotent."""
        with self._room:
            self._closed = True
            self._room.notify_all()
        deadline = self._clock() + _LOOK_S
        for thread in self._threads:  # one that hangs in a dead disk is left behind
            thread.join(max(0.0, deadline - self._clock()))
        self._io.close()

    def _wait_for(self, sequence: int) -> None:
        began = self._clock()
        self._heard = max(self._heard, began)
        while sequence not in self._there:
            if self._error is not None:
                raise self._error
            self._news.wait(_LOOK_S)
            if self._clock() - self._heard > self._patience_s:
                raise self._dead(self._at(sequence))
        self.usage.wait_s += self._clock() - began

    def _restart(self, index: int) -> None:
        """Forget what was read ahead, and begin at unit `index`."""
        self._halted = True
        self._heard = max(self._heard, self._clock())
        while self._in_flight:  # it would be written over what is read next
            self._news.wait(_LOOK_S)
            if self._clock() - self._heard > self._patience_s:
                raise self._dead(self._units[index])
        self._base, self._used, self._next, self._chunk = index, 0, 0, 0
        self._unread.clear()
        self._there.clear()
        self._error, self._halted = None, False
        self._room.notify_all()

    def _dead(self, unit: Unit) -> StorageError:
        waited = [u for u, _ in self._in_flight.values()]
        unit = waited[0] if waited else unit
        return StorageError(
            f"{self._folder / unit.file}, shard {unit.shard_at(unit.offset)}, byte {unit.offset}: "
            f"the storage has not answered for {self._patience_s:.0f} s",
            "the card or disk is gone or dying: check it, then picoedge verify",
        )

    # -- the readers' side ---------------------------------------------------------------------

    def _at(self, sequence: int) -> Unit:
        return self._units[(self._base + sequence) % len(self._units)]

    def _free(self) -> bool:
        """Whether the next unit's place in the ring has been used by all who share it."""
        if self._halted or self._error is not None:
            return False
        behind = self._ring.behind[(self._base + self._next) % len(self._units)]
        return self._used > self._next - behind

    def _take(self) -> tuple[int, int] | None:
        """The next chunk, as (sequence number, chunk), when there is room; None: closed."""
        while not self._closed and not self._free():
            self._room.wait()
        if self._closed:
            return None
        sequence, chunk = self._next, self._chunk
        chunks = self._io.chunks(self._at(sequence))
        self._unread.setdefault(sequence, chunks)
        self._chunk += 1
        if self._chunk == chunks:
            self._next, self._chunk = sequence + 1, 0
        return sequence, chunk

    def _read(self) -> None:
        me = threading.get_ident()
        while True:
            with self._room:
                taken = self._take()
                if taken is None:
                    return
                sequence, chunk = taken
                unit = self._at(sequence)
                self._in_flight[me] = unit, self._clock()
            error = _attempt(partial(self._io.fill, unit, chunk))
            complete = self._complete(sequence)
            if complete and error is None and self._check is not None:
                error = _attempt(partial(self._check, unit))
            with self._news:
                del self._in_flight[me]
                self._heard = self._clock()
                self._error = error or self._error
                if complete and error is None:
                    self._there.add(sequence)
                    self.usage.bytes_read += span_bytes(unit)
                self._news.notify_all()

    def _complete(self, sequence: int) -> bool:
        """Whether the chunk that has just arrived was the last one of its unit."""
        with self._room:
            self._unread[sequence] -= 1
            if self._unread[sequence]:
                return False
            del self._unread[sequence]
            return True


def _attempt(work: Callable[[], None]) -> PicoedgeError | None:
    """Do it; an error is carried to whoever waits for the unit, and raised there."""
    try:
        work()
    except PicoedgeError as error:
        return error
    return None
