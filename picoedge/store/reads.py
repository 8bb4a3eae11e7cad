"""Reads that are done in threads: what becomes of their errors, and of those that never end."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

from picoedge.errors import MemoryBudgetError, PicoedgeError, StorageError

PATIENCE_S = 30.0  # without a single finished read, after which a disk is taken for dead
_LOOK_S = 1.0  # between two looks at whether it is
_NO_MEMORY = "free some memory, raise the limit (ulimit -v), or give a smaller --memory"


class Silence:
    """How long nothing has been heard of reads that somebody waits for.

    Time is counted in looks: that of a program which was stopped meanwhile does not count.
    """

    def __init__(self, patience_s: float) -> None:
        self.look_s = min(_LOOK_S, patience_s)
        self._patience_s, self._silent_s, self._heard = patience_s, 0.0, 0

    def too_long(self, heard: int) -> bool:
        """Whether it is, after a look of `look_s`; `heard` counts all that has happened so far."""
        self._silent_s = self._silent_s + self.look_s if heard == self._heard else 0.0
        self._heard = heard
        return self._silent_s >= self._patience_s


def silent(where: str, patience_s: float) -> StorageError:
    """The error for a read at `where` that does not end."""
    return StorageError(
        f"{where}: the storage has not answered for {patience_s:.0f} s",
        "the card or disk is gone or dying: check it, then picoedge verify",
    )


def attempt(work: Callable[[], None], where: str) -> PicoedgeError | None:
    """Do it; an error is returned, to be raised by whoever waits for it in another thread."""
    try:
        work()
    except PicoedgeError as error:
        return error
    except (OSError, MemoryError) as error:
        return _carried(error, where)
    return None


def broken_off(where: str) -> StorageError:
    """The error for a read whose thread ended by a fault of the program."""
    return StorageError(f"{where}: reading was broken off")


def no_memory(what: str) -> MemoryBudgetError:
    """The error for memory that the system does not give."""
    return MemoryBudgetError(f"no memory for {what}", _NO_MEMORY)


def start_thread(work: Callable[[], None], name: str) -> threading.Thread:
    """A thread that nobody need wait for. Raises MemoryBudgetError."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # there is no memory for its stack, or a limit of threads
        raise no_memory(f"one more thread ({name})") from error
    return thread


def _carried(error: OSError | MemoryError, where: str) -> PicoedgeError:
    carried: PicoedgeError
    if isinstance(error, MemoryError) or error.errno == errno.ENOMEM:
        carried = no_memory(f"reading {where}")
    else:
        carried = StorageError(f"{where}: reading failed: {error.strerror or error}")
    carried.__cause__ = error
    return carried
