"""Units read whole into memory of their own, a few at a time: the resident set of a plan."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from itertools import accumulate
from pathlib import Path

from picoedge.errors import PicoedgeError
from picoedge.kernels.arrays import U8
from picoedge.store.pages import anonymous
from picoedge.store.reads import READ_STALL_S, StallDetector, aborted_read, attempt, start_thread
from picoedge.store.units import Unit, page_range
from picoedge.store.window.io import READERS, Files, read_unit
from picoedge.store.window.window import no_answer

CheckUnit = Callable[[Unit, U8], None]
OnBytes = Callable[[int], None]
"""bytes that have just been read"""


def read_units(
    folder: Path,
    units: Iterable[Unit],
    check: CheckUnit | None,
    progress: OnBytes | None = None,
    *,
    stall_s: float = READ_STALL_S,
) -> dict[Unit, U8]:
    """The bytes of each unit, u8 [nbytes], one after the other in memory of their own.

    Raises StorageError, MemoryBudgetError, and what `check` raises. The files are closed when no
    read is under way in them, which is after this only where one hangs or an interrupt comes.
    """
    load = _Load(Files(folder, direct=True), units, check, progress)
    threads = []
    try:
        threads = [load.start(f"load-{i}") for i in range(READERS)]
        load.wait(stall_s)
    finally:
        load.stop()
    for thread in threads:
        thread.join()
    if load.error is not None:
        raise load.error
    return load.arrays


class _Load:
    """What the threads of one load share."""

    def __init__(
        self, files: Files, units: Iterable[Unit], check: CheckUnit | None, progress: OnBytes | None
    ) -> None:
        self.files, self.arrays = files, dict[Unit, U8]()
        units = list(units)
        self._places = _places(units)
        self.error: PicoedgeError | None = None
        self._check, self._progress = check, progress
        self._units, self._working, self._stopped = iter(units), 0, False
        self._in_hand: dict[Unit, int] = {}  # and the byte that it has been read up to
        self._heard = 0
        self._news = threading.Condition()

    def start(self, name: str) -> threading.Thread:
        """One more thread that reads. Raises MemoryBudgetError."""
        with self._news:
            thread = start_thread(self._work, name)
            self._working += 1
            return thread

    def wait(self, stall_s: float) -> None:
        """Until all threads have ended. Raises StorageError where no read ends for too long."""
        detector = StallDetector(stall_s)
        with self._news:
            while self._working:
                self._news.wait(detector.poll_s)
                if detector.stalled(self._heard) and self._in_hand:
                    unit, offset = next(iter(self._in_hand.items()))
                    raise self.error or no_answer(self.files.folder, unit, stall_s, offset)

    def stop(self) -> None:
        """Begin no other unit; whoever works last closes the files."""
        with self._news:
            self._stopped = True
            self._close_if_idle()

    def _work(self) -> None:
        """Read unit after unit, until there is none left or one could not be read."""
        try:
            while (unit := self._next()) is not None:
                self._read_one(unit)
        finally:
            with self._news:
                self._working -= 1
                self._close_if_idle()
                self._tell()

    def _read_one(self, unit: Unit) -> None:
        where = f"{self.files.folder / unit.file}, shard {unit.shard_at(unit.offset)}"
        error: PicoedgeError | None = aborted_read(where)
        try:
            error = attempt(partial(self._read, unit), where)
        finally:
            with self._news:
                del self._in_hand[unit]
                self.error = self.error or error
                self._tell()

    def _read(self, unit: Unit) -> None:
        array = read_unit(self.files, unit, self._places[unit], partial(self._listen, unit))
        if self._check is not None:
            self._check(unit, array)
        with self._news:
            self.arrays[unit] = array
            if self._progress is not None:
                self._progress(unit.nbytes)

    def _next(self) -> Unit | None:
        with self._news:
            unit = None if self._stopped or self.error is not None else next(self._units, None)
            if unit is not None:
                self._in_hand[unit] = unit.offset
            return unit

    def _listen(self, unit: Unit, offset: int) -> None:
        with self._news:
            self._in_hand[unit] = min(offset, unit.end - 1)
            self._tell()

    def _tell(self) -> None:
        self._heard += 1
        self._news.notify_all()

    def _close_if_idle(self) -> None:
        if self._stopped and not self._working:
            self.files.close()


def _places(units: list[Unit]) -> dict[Unit, U8]:
    """Memory for the pages of each: one block, as huge pages do not end where units do."""
    sizes = [last - first for first, last in map(page_range, units)]
    block, ends = anonymous(sum(sizes)), accumulate(sizes)
    return {
        unit: block[end - size : end] for unit, size, end in zip(units, sizes, ends, strict=True)
    }
