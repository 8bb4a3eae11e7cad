"""Load the resident units of a plan into own memory, several in parallel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from itertools import accumulate
from pathlib import Path

from picoedge.errors import PicoedgeError
from picoedge.kernels.arrays import U8
from picoedge.store.pages import anonymous, page_range
from picoedge.store.reads import READ_STALL_S, StallDetector, aborted_read, attempt, start_thread
from picoedge.store.shards import Unit
from picoedge.store.window.io import READERS, Files, read_unit
from picoedge.store.window.window import no_answer

CheckUnit = Callable[[Unit, U8], None]
OnBytes = Callable[[int], None]
"""called with the bytes just read"""


def read_units(
    folder: Path,
    units: Iterable[Unit],
    check: CheckUnit | None,
    progress: OnBytes | None = None,
    *,
    stall_s: float = READ_STALL_S,
) -> dict[Unit, U8]:
    """Bytes of each unit, u8 [nbytes], in one block of anonymous memory.

    Raises StorageError, MemoryBudgetError, and the errors of `check`. Files are closed after the
    last read, which may be later where a read hangs or an interrupt comes.
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
    """State shared by the threads of one load."""

    def __init__(
        self, files: Files, units: Iterable[Unit], check: CheckUnit | None, progress: OnBytes | None
    ) -> None:
        self.files, self.arrays = files, dict[Unit, U8]()
        units = list(units)
        self._places = _places(units)
        self.error: PicoedgeError | None = None
        self._check, self._progress = check, progress
        self._units, self._working, self._stopped = iter(units), 0, False
        self._in_flight: dict[Unit, int] = {}  # unit -> offset read up to
        self._finished = 0
        self._progressed = threading.Condition()

    def start(self, name: str) -> threading.Thread:
        """Start a reader thread. Raises MemoryBudgetError."""
        with self._progressed:
            thread = start_thread(self._work, name)
            self._working += 1
            return thread

    def wait(self, stall_s: float) -> None:
        """Wait for all threads. Raises StorageError where no read finishes for `stall_s`."""
        detector = StallDetector(stall_s)
        with self._progressed:
            while self._working:
                self._progressed.wait(detector.poll_s)
                if detector.stalled(self._finished) and self._in_flight:
                    unit, offset = next(iter(self._in_flight.items()))
                    raise self.error or no_answer(self.files.folder, unit, stall_s, offset)

    def stop(self) -> None:
        """Begin no other unit; the last thread to end closes the files."""
        with self._progressed:
            self._stopped = True
            self._close_if_idle()

    def _work(self) -> None:
        """Read unit after unit until the last, or an error."""
        try:
            while (unit := self._next()) is not None:
                self._read_one(unit)
        finally:
            with self._progressed:
                self._working -= 1
                self._close_if_idle()
                self._notify()

    def _read_one(self, unit: Unit) -> None:
        where = f"{self.files.folder / unit.file}, shard {unit.shard_at(unit.offset)}"
        error: PicoedgeError | None = aborted_read(where)
        try:
            error = attempt(partial(self._read, unit), where)
        finally:
            with self._progressed:
                del self._in_flight[unit]
                self.error = self.error or error
                self._notify()

    def _read(self, unit: Unit) -> None:
        array = read_unit(self.files, unit, self._places[unit], partial(self._advanced, unit))
        if self._check is not None:
            self._check(unit, array)
        with self._progressed:
            self.arrays[unit] = array
            if self._progress is not None:
                self._progress(unit.nbytes)

    def _next(self) -> Unit | None:
        with self._progressed:
            unit = None if self._stopped or self.error is not None else next(self._units, None)
            if unit is not None:
                self._in_flight[unit] = unit.offset
            return unit

    def _advanced(self, unit: Unit, offset: int) -> None:
        with self._progressed:
            self._in_flight[unit] = min(offset, unit.end - 1)
            self._notify()

    def _notify(self) -> None:
        self._finished += 1
        self._progressed.notify_all()

    def _close_if_idle(self) -> None:
        if self._stopped and not self._working:
            self.files.close()


def _places(units: list[Unit]) -> dict[Unit, U8]:
    """Memory for the pages of each unit, in one block: huge pages do not end where units do."""
    sizes = [last - first for first, last in map(page_range, units)]
    block, ends = anonymous(sum(sizes)), accumulate(sizes)
    return {
        unit: block[end - size : end] for unit, size, end in zip(units, sizes, ends, strict=True)
    }
