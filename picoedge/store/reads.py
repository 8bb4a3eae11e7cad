"""Reads done in threads: their errors carried to the waiting thread, and stalls detected."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

from picoedge.errors import MemoryBudgetError, PicoedgeError, StorageError

READ_STALL_S = 30.0  # without a finished read: Linux resets a SCSI disk after as long
_POLL_S = 1.0
_NO_MEMORY = "free some memory, raise the limit (ulimit -v), or give a smaller --memory"


class StallDetector:
    """Counts polls without a finished read; time while this process was stopped does not count."""

    def __init__(self, stall_s: float) -> None:
        self.poll_s = min(_POLL_S, stall_s)
        self._stall_s, self._idle_s, self._finished = stall_s, 0.0, 0

    def stalled(self, finished: int) -> bool:
        """Whether `finished`, asked once per `poll_s`, has not changed for `stall_s` seconds."""
        self._idle_s = self._idle_s + self.poll_s if finished == self._finished else 0.0
        self._finished = finished
        return self._idle_s >= self._stall_s


def stalled_read(where: str, stall_s: float) -> StorageError:
    """The error for a read at `where` that does not end."""
    return StorageError(
        f"{where}: the storage has not answered for {stall_s:.0f} s",
        "the card or disk is gone or dying: check it, then picoedge verify",
    )


def attempt(work: Callable[[], None], where: str) -> PicoedgeError | None:
    """Do `work` and return its error, for the thread that waits to raise."""
    try:
        work()
    except PicoedgeError as error:
        return error
    except (OSError, MemoryError) as error:
        return _translated(error, where)
    return None


def aborted_read(where: str) -> StorageError:
    """The error for a read whose thread ended by a bug."""
    return StorageError(f"{where}: reading was broken off")


def no_memory(what: str) -> MemoryBudgetError:
    """The error for a failed allocation."""
    return MemoryBudgetError(f"no memory for {what}", _NO_MEMORY)


def start_thread(work: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread. Raises MemoryBudgetError."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # no memory for its stack, or a limit of threads
        raise no_memory(f"one more thread ({name})") from error
    return thread


def _translated(error: OSError | MemoryError, where: str) -> PicoedgeError:
    translated: PicoedgeError
    if isinstance(error, MemoryError) or error.errno == errno.ENOMEM:
        translated = no_memory(f"reading {where}")
    else:
        translated = StorageError(f"{where}: reading failed: {error.strerror or error}")
    translated.__cause__ = error
    return translated
