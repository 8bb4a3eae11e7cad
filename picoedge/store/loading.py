"""Units read whole into memory of their own, a few at a time: the resident set of a plan."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

from picoedge.errors import PicoedgeError
from picoedge.kernels.blocks import U8
from picoedge.store.units import Unit
from picoedge.store.window_io import READERS, Files, read_unit

Check = Callable[[Unit, U8], None]
Progress = Callable[[int], None]
"""bytes that have just been read"""


def read_units(
    folder: Path, units: Iterable[Unit], check: Check | None, progress: Progress | None = None
) -> dict[Unit, U8]:
    """The bytes of each unit, u8 [nbytes]. Raises StorageError, and what `check` raises."""
    with closing(Files(folder, direct=True)) as files:
        load = _Load(files, units, check, progress)
        threads = [threading.Thread(target=load.work, daemon=True) for _ in range(READERS - 1)]
        for thread in threads:
            thread.start()
        try:
            load.work()
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
        self,
        files: Files,
        units: Iterable[Unit],
        check: Check | None,
        progress: Progress | None,
    ) -> None:
        self.arrays: dict[Unit, U8] = {}
        self.error: PicoedgeError | None = None
        self._files, self._check, self._progress = files, check, progress
        self._units = iter(units)
        self._lock = threading.Lock()

    def work(self) -> None:
        """Read unit after unit, until there is none left or one could not be read."""
        while (unit := self._next()) is not None:
            try:
                array = read_unit(self._files, unit)
                if self._check is not None:
                    self._check(unit, array)
            except PicoedgeError as error:
                self.error = self.error or error
                return
            self._keep(unit, array)

    def stop(self) -> None:
        """Begin no other unit."""
        with self._lock:
            self._units = iter(())

    def _next(self) -> Unit | None:
        with self._lock:
            return None if self.error is not None else next(self._units, None)

    def _keep(self, unit: Unit, array: U8) -> None:
        with self._lock:
            self.arrays[unit] = array
            if self._progress is not None:
                self._progress(unit.nbytes)
