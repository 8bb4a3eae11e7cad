"""Units read whole into memory of their own, a few at a time: the resident set of a plan."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from picoedge.errors import PicoedgeError
from picoedge.kernels.blocks import U8
from picoedge.store.units import Unit
from picoedge.store.window import PATIENCE_S, no_answer
from picoedge.store.window_io import READERS, Files, read_unit

_LOOK_S = 1.0
Check = Callable[[Unit, U8], None]
Progress = Callable[[int], None]
"""bytes that have just been read"""


def read_units(
    folder: Path,
    units: Iterable[Unit],
    check: Check | None,
    progress: Progress | None = None,
    *,
    patience_s: float = PATIENCE_S,
) -> dict[Unit, U8]:
    """The bytes of each unit, u8 [nbytes]. Raises StorageError, and what `check` raises."""
    load = _Load(Files(folder, direct=True), units, check, progress)
    threads = [threading.Thread(target=load.work, daemon=True) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    try:
        load.wait(patience_s)
    finally:
        load.stop()
    for thread in threads:
        thread.join()
    load.files.close()
    if load.error is not None:
        raise load.error
    return load.arrays


class _Load:
    """What the threads of one load share."""

    def __init__(
        self, files: Files, units: Iterable[Unit], check: Check | None, progress: Progress | None
    ) -> None:
        self.files, self.arrays = files, dict[Unit, U8]()
        self.error: PicoedgeError | None = None
        self._check, self._progress = check, progress
        self._units, self._working = iter(units), READERS
        self._in_hand: set[Unit] = set()
        self._news = threading.Condition()

    def wait(self, patience_s: float) -> None:
        """Until all threads have ended. Raises StorageError where no unit comes for too long."""
        silent_s, look = 0.0, min(_LOOK_S, patience_s)
        with self._news:
            while self._working:
                silent_s = 0.0 if self._news.wait(look) else silent_s + look
                if silent_s >= patience_s and self._in_hand:
                    raise no_answer(self.files.folder, self._in_hand.pop(), patience_s)

    def work(self) -> None:
        """Read unit after unit, until there is none left or one could not be read."""
        while (unit := self._next()) is not None:
            try:
                array = read_unit(self.files, unit)
                if self._check is not None:
                    self._check(unit, array)
            except PicoedgeError as error:
                self.error = self.error or error
                break
            self._keep(unit, array)
        with self._news:
            self._working -= 1
            self._news.notify_all()

    def stop(self) -> None:
        """Begin no other unit."""
        with self._news:
            self._units = iter(())

    def _next(self) -> Unit | None:
        with self._news:
            unit = None if self.error is not None else next(self._units, None)
            if unit is not None:
                self._in_hand.add(unit)
            return unit

    def _keep(self, unit: Unit, array: U8) -> None:
        with self._news:
            self.arrays[unit] = array
            self._in_hand.discard(unit)
            if self._progress is not None:
                self._progress(unit.nbytes)
            self._news.notify_all()
